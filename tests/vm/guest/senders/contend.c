// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// contend udp|tcp QUERIES PROCESSES URGENT few|new: sends DNS queries from processes that interrupt each other.
//
// PROCESSES ordinary processes (steady0, steady1, ...) send QUERIES queries together, as fast as they can. Until they
// have finished, URGENT real-time processes (urgent0, ..., each with another priority) wake up by timers, on the same
// processors, and send some queries at once. So they interrupt the others at any instruction, and each other, if the
// kernel is preemptible.
//
// Queries go over IPv4 and IPv6 to port 53 of loopback, in a network namespace of its own. With `few`, they are for a
// few names, sometimes for a new one, and over UDP, one of 64 sends has several datagrams (UDP_SEGMENT). With `new`,
// each is for a new name, which has the process and a number in it: contention.py knows the names. Prints a line for
// each process and kind of name: COMM PID KIND SENT, where SENT is a number of queries.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103 // linux/udp.h
#endif
#define HEADER 12
#define PORT 53
// Of real-time processes. dnsprobe itself uses the lowest one.
#define LOWEST_PRIORITY 10
// What an urgent process sends when it wakes up.
#define BURST 4
// After this many queries for few names, the same names follow, but for one or two new ones.
#define REPEAT 640
// Datagrams of a send that has several.
#define SEGMENTS 4
#define SHORTEST_PAUSE_NS 200000

enum kind { MATCHED, OTHER, WILD, DEEP, LONG, NEW, PARTS, KINDS };
static const char *const kind_names[KINDS] = { "matched", "other", "wild", "deep", "long", "new", "parts" };

struct asker {
	char comm[24]; // the kernel keeps 15
	pid_t pid;
	long sent[KINDS];
};

struct shared {
	int running; // steady processes
	struct asker askers[];
};

struct query {
	unsigned char message[512];
	size_t length;
	enum kind kind;
};

static struct shared *shared;
static bool all_new, over_tcp;

static void fail(const char *what)
{
	perror(what);
	_exit(1);
}

static void put_query(struct query *query, const char *name, bool aaaa)
{
	static const unsigned char header[HEADER] = { [2] = 1, [5] = 1 }; // RD, QDCOUNT
	unsigned char *at = query->message + HEADER;

	memcpy(query->message, header, HEADER);
	while (*name) {
		size_t length = strcspn(name, ".");

		*at++ = (unsigned char)length;
		memcpy(at, name, length);
		at += length;
		name += length + (name[length] == '.');
	}
	memcpy(at, aaaa ? "\0\0\34\0\1" : "\0\0\1\0\1", 5);
	query->length = (size_t)(at + 5 - query->message);
}

// Writes labels of `label` times the letter, each with a dot behind it, until the name in `text` and `suffix` have
// `octets` in wire format.
static void fill(char *text, const char *suffix, char letter, size_t label, size_t octets)
{
	// One length octet in front of each label, where a dot is behind all but the last, and the root.
	while (strlen(text) + strlen(suffix) + 2 < octets) {
		size_t room = octets - strlen(text) - strlen(suffix) - 3;
		size_t length = room < label ? room : label;

		if (!length)
			break;
		memset(text + strlen(text), letter, length);
		strcat(text, ".");
	}
	strcat(text, suffix);
}

// Makes the query with this number. Its type and its family (see send_query()) follow from the number, too.
static void make_query(struct query *query, const struct asker *asker, long number)
{
	char name[512] = "";

	if (all_new) {
		sprintf(name, "n%ld.p%d.", number, asker->pid);
		query->kind = NEW;
		switch (number % 4) {
		case 0:
			strcat(name, "new.exact.test");
			break;
		case 1:
			fill(name, "long.exact.test", 'l', 63, 255);
			break;
		case 2:
			fill(name, "deep.exact.test", 'd', 1, 120);
			break;
		case 3:
			sprintf(name, "ads%ldp%d.wild.exact.test", number, asker->pid);
			break;
		}
	} else if (number % (10 * REPEAT) == 416) {
		query->kind = WILD;
		sprintf(name, "ads%ldp%d.wild.exact.test", number, asker->pid);
	} else if (number % REPEAT == 96) {
		query->kind = NEW;
		sprintf(name, "n%ld.p%d.new.exact.test", number, asker->pid);
	} else if (number % 64 == 40 && !over_tcp) {
		query->kind = PARTS;
		strcat(name, "parts.exact.test");
	} else {
		query->kind = number % 5;
		switch (query->kind) {
		case MATCHED:
			strcat(name, "www.Matched.exact.test");
			break;
		case OTHER:
			strcat(name, "other.exact.test");
			break;
		case WILD:
			strcat(name, "ads7.wild.exact.test");
			break;
		case DEEP:
			fill(name, "deep.exact.test", 'd', 1, 240);
			break;
		default:
			fill(name, "long.exact.test", 'l', 63, 255);
			break;
		}
	}
	put_query(query, name, number & 1);
}

static void address_of(struct sockaddr_storage *address, bool six)
{
	memset(address, 0, sizeof(*address));
	if (six) {
		struct sockaddr_in6 *to = (struct sockaddr_in6 *)address;

		to->sin6_family = AF_INET6;
		to->sin6_port = htons(PORT);
		to->sin6_addr = in6addr_loopback;
	} else {
		struct sockaddr_in *to = (struct sockaddr_in *)address;

		to->sin_family = AF_INET;
		to->sin_port = htons(PORT);
		to->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
}

static int open_socket(bool six)
{
	int made = socket(six ? AF_INET6 : AF_INET, over_tcp ? SOCK_STREAM : SOCK_DGRAM, 0);

	if (made < 0)
		fail("socket");
	return made;
}

static void open_senders(int sockets[2])
{
	for (int six = 0; six < 2; six++) {
		struct sockaddr_storage to;
		int yes = 1;

		address_of(&to, six);
		sockets[six] = open_socket(six);
		if (over_tcp)
			setsockopt(sockets[six], IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
		if (connect(sockets[six], (struct sockaddr *)&to, sizeof(to)))
			fail("connect");
	}
}

// Waits until the reader has everything: octets that are still in a socket when its network namespace ends never leave.
static void finish(const int sockets[2])
{
	for (int six = 0; six < 2; six++) {
		char dropped;

		if (shutdown(sockets[six], SHUT_WR) || recv(sockets[six], &dropped, 1, 0))
			fail("the end of a connection");
	}
}

// Reads what comes over TCP, and drops it.
static void drain(const int listeners[2])
{
	int poller = epoll_create1(0);

	for (int six = 0; six < 2; six++) {
		struct epoll_event event = { .events = EPOLLIN, .data.fd = listeners[six] };

		epoll_ctl(poller, EPOLL_CTL_ADD, listeners[six], &event);
	}
	for (;;) {
		static char dropped[1 << 16];
		struct epoll_event event;

		if (epoll_wait(poller, &event, 1, -1) != 1)
			continue;
		if (event.data.fd == listeners[0] || event.data.fd == listeners[1]) {
			event.data.fd = accept(event.data.fd, NULL, NULL);
			epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
		} else if (recv(event.data.fd, dropped, sizeof(dropped), 0) <= 0) {
			close(event.data.fd);
		}
	}
}

// Over UDP, nobody reads, and the sockets have the smallest buffer. So the kernel drops the queries, and no error
// message comes back, which would be a packet at the same hooks. Over TCP, returns the process that reads.
static pid_t open_receivers(void)
{
	int receivers[2], smallest = 1;
	pid_t reader = 0;

	for (int six = 0; six < 2; six++) {
		struct sockaddr_storage to;

		address_of(&to, six);
		receivers[six] = open_socket(six);
		if (!over_tcp)
			setsockopt(receivers[six], SOL_SOCKET, SO_RCVBUF, &smallest, sizeof(smallest));
		if (bind(receivers[six], (struct sockaddr *)&to, sizeof(to)))
			fail("bind");
		if (over_tcp && listen(receivers[six], 64))
			fail("listen");
	}
	if (over_tcp) {
		reader = fork();
		if (!reader) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			drain(receivers);
		}
	}
	return reader;
}

static void send_all(int to, const void *octets, size_t length)
{
	if (send(to, octets, length, 0) != (ssize_t)length)
		fail("send");
}

// Sends the same message in several datagrams, by one system call.
static void send_segmented(int to, const struct query *query)
{
	static unsigned char octets[SEGMENTS * sizeof(query->message)];
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(uint16_t))];
	} control = { .header = {
			  .cmsg_len = CMSG_LEN(sizeof(uint16_t)), .cmsg_level = SOL_UDP, .cmsg_type = UDP_SEGMENT } };
	struct iovec part = { octets, query->length * SEGMENTS };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	uint16_t size = (uint16_t)query->length;

	memcpy(CMSG_DATA(&control.header), &size, sizeof(size));
	for (int i = 0; i < SEGMENTS; i++)
		memcpy(octets + i * query->length, query->message, query->length);
	if (sendmsg(to, &message, 0) != (ssize_t)part.iov_len)
		fail("sendmsg");
}

// With the length in front that messages have over TCP.
static void send_framed(int to, const struct query *query)
{
	unsigned char framed[2 + sizeof(query->message)] = { (unsigned char)(query->length >> 8),
							     (unsigned char)query->length };

	memcpy(framed + 2, query->message, query->length);
	send_all(to, framed, 2 + query->length);
}

static void send_query(struct asker *asker, const int sockets[2], long number)
{
	// Those for few names, which would take longer to make than to send.
	static struct query made[REPEAT];
	struct query *query = &made[number % REPEAT];

	if (all_new || !query->length || number % (REPEAT / 2) == 96)
		make_query(query, asker, number);
	query->message[0] = (unsigned char)(number >> 8);
	query->message[1] = (unsigned char)number;
	if (over_tcp)
		send_framed(sockets[number >> 1 & 1], query);
	else if (query->kind == PARTS)
		send_segmented(sockets[number >> 1 & 1], query);
	else
		send_all(sockets[number >> 1 & 1], query->message, query->length);
	asker->sent[query->kind] += query->kind == PARTS ? SEGMENTS : 1;
}

static void be_steady(struct asker *asker, const int sockets[2], long queries)
{
	for (long number = 0; number < queries; number++)
		send_query(asker, sockets, number);
	__atomic_sub_fetch(&shared->running, 1, __ATOMIC_SEQ_CST);
}

static long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000 + now.tv_nsec;
}

static void be_urgent(struct asker *asker, const int sockets[2], int priority)
{
	struct sched_param param = { .sched_priority = priority };

	if (sched_setscheduler(0, SCHED_FIFO, &param))
		fail("sched_setscheduler");
	srandom((unsigned int)priority);
	for (long number = 0; __atomic_load_n(&shared->running, __ATOMIC_SEQ_CST);) {
		long before = now_ns();

		for (int i = 0; i < BURST; i++)
			send_query(asker, sockets, number++);

		// Leave most of the time to the others, such as dnsprobe with its reloads, however slow the machine is.
		long pause = 16 * (now_ns() - before);
		struct timespec wait = { 0 };

		if (pause < SHORTEST_PAUSE_NS)
			pause = SHORTEST_PAUSE_NS;
		if (pause > 100000000)
			pause = 100000000;
		wait.tv_nsec = pause / 2 + random() % pause;
		nanosleep(&wait, NULL);
	}
}

static void start(int index, int processes, long queries)
{
	struct asker *asker = &shared->askers[index];
	bool urgent = index >= processes;
	int number = urgent ? index - processes : index;
	cpu_set_t allowed;
	int sockets[2];

	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CPU_ZERO(&allowed);
	CPU_SET(number % (int)sysconf(_SC_NPROCESSORS_ONLN), &allowed);
	if (sched_setaffinity(0, sizeof(allowed), &allowed))
		fail("sched_setaffinity");
	snprintf(asker->comm, sizeof(asker->comm), "%s%d", urgent ? "urgent" : "steady", number);
	prctl(PR_SET_NAME, asker->comm);
	asker->pid = getpid();
	open_senders(sockets);
	if (urgent)
		be_urgent(asker, sockets, LOWEST_PRIORITY + number);
	else
		be_steady(asker, sockets, queries / processes + (number < queries % processes));
	if (over_tcp)
		finish(sockets);
	_exit(0);
}

static void enter_own_network(void)
{
	struct ifreq loopback = { .ifr_name = "lo", .ifr_flags = IFF_UP };

	if (unshare(CLONE_NEWNET))
		fail("unshare");
	if (ioctl(open_socket(false), SIOCSIFFLAGS, &loopback))
		fail("loopback");
}

int main(int count, char **arguments)
{
	if (count != 6) {
		fprintf(stderr, "usage: %s udp|tcp QUERIES PROCESSES URGENT few|new\n", arguments[0]);
		return 2;
	}
	long queries = atol(arguments[2]);
	int processes = atoi(arguments[3]), askers = processes + atoi(arguments[4]);
	int failed = 0, status;
	pid_t reader;

	enter_own_network();
	over_tcp = !strcmp(arguments[1], "tcp");
	all_new = !strcmp(arguments[5], "new");
	reader = open_receivers();
	shared = mmap(NULL, sizeof(*shared) + sizeof(*shared->askers) * (size_t)askers, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		fail("mmap");
	shared->running = processes;
	for (int i = 0; i < askers; i++)
		start(i, processes, queries);
	for (int i = 0; i < askers; i++) {
		if (wait(&status) == reader || status) {
			failed = 1;
			shared->running = 0; // so that the urgent ones end
		}
	}
	if (reader)
		kill(reader, SIGKILL);
	for (int i = 0; i < askers; i++)
		for (int kind = 0; kind < KINDS; kind++)
			printf("%s %d %s %ld\n", shared->askers[i].comm, shared->askers[i].pid, kind_names[kind],
			       shared->askers[i].sent[kind]);
	return failed;
}
