// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// hammer: another program that uses BPF. On each processor, a process changes, reads and deletes entries of a map with
// large values, as fast as it can, until SIGTERM. Prints "ready", and at the end the number of calls.
//
// While a process is inside such a call, the kernel skips all BPF programs at kprobes on that processor.

#define _GNU_SOURCE
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ENTRIES 64
// A large value makes most of a call the copy of the value.
#define VALUE_SIZE 16384

static void fail(const char *what)
{
	perror(what);
	_exit(1);
}

static int create_map(void)
{
	union bpf_attr attributes = { .map_type = BPF_MAP_TYPE_HASH,
				      .key_size = sizeof(uint32_t),
				      .value_size = VALUE_SIZE,
				      .max_entries = ENTRIES };
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_MEMLOCK, &unlimited); // kernels before 5.11 count the memory of maps
	int map = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof(attributes));

	if (map < 0)
		fail("BPF_MAP_CREATE");
	return map;
}

static void call(int command, int map, uint32_t key, void *value)
{
	union bpf_attr attributes = { .map_fd = (uint32_t)map, .key = (uintptr_t)&key };

	if (value)
		attributes.value = (uintptr_t)value;
	// An entry may be missing: the processes delete each other's.
	syscall(SYS_bpf, command, &attributes, sizeof(attributes));
}

static void hammer(int map, int processor, volatile uint64_t *calls)
{
	static unsigned char value[VALUE_SIZE];
	cpu_set_t allowed;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CPU_ZERO(&allowed);
	CPU_SET(processor, &allowed);
	if (sched_setaffinity(0, sizeof(allowed), &allowed))
		fail("sched_setaffinity");
	nice(5); // leave most of the time to the senders, which interrupt it all the more
	for (uint32_t round = 0;; round++) {
		uint32_t key = round % ENTRIES;

		call(BPF_MAP_UPDATE_ELEM, map, key, value);
		call(BPF_MAP_LOOKUP_ELEM, map, key, value);
		if (round % 4 == 0)
			call(BPF_MAP_DELETE_ELEM, map, key, NULL);
		*calls += 2 + (round % 4 == 0);
	}
}

int main(void)
{
	int processors = (int)sysconf(_SC_NPROCESSORS_ONLN), map = create_map(), number;
	uint64_t *calls =
	    mmap(NULL, sizeof(*calls) * (size_t)processors, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t *children = calloc((size_t)processors, sizeof(*children));
	uint64_t total = 0;
	sigset_t end;

	if (calls == MAP_FAILED || !children)
		fail("memory");
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	for (int i = 0; i < processors; i++) {
		children[i] = fork();
		if (children[i] < 0)
			fail("fork");
		if (!children[i])
			hammer(map, i, &calls[i]);
	}
	printf("ready\n");
	fflush(stdout);
	sigwait(&end, &number);
	for (int i = 0; i < processors; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
		total += calls[i];
	}
	printf("%lu\n", total);
	return 0;
}
