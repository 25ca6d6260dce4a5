/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Makes processes as fast as it can: storm KIND FAMILIES WORKERS. The kinds of families are
 *
 *   leaf    a process that exits at once: fork, exit
 *   asker   a process that sends a query for www.watched.test (A) to 127.0.0.1 and exits: fork, exit
 *   job     like a job of make(1): a shell that runs a compiler; fork, exec, fork, exec, exit, exit
 *   orphan  a process that forks another and does not wait for it: fork, fork, exit, exit
 *
 * Prints the number of processes. Each worker adopts the orphans (PR_SET_CHILD_SUBREAPER), so all processes have ended
 * when storm ends.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;

static void fail(const char *what)
{
	perror(what);
	_exit(1);
}

static pid_t start(void)
{
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	return pid;
}

static void execute_as(const char *name)
{
	execl(self, self, name, (char *)NULL);
	fail(self);
}

/* The programs of a job: the shell runs the compiler and waits, the compiler exits. */
static int run_program_of_job(const char *name)
{
	if (!strcmp(name, "shell")) {
		pid_t compiler = start();

		if (compiler == 0)
			execute_as("compiler");
		waitpid(compiler, NULL, 0);
	}
	return 0;
}

static void ask(void)
{
	static const char query[] = "\0\1\1\0\0\1\0\0\0\0\0\0\3www\7watched\4test\0\0\1\0\1";
	struct sockaddr_in server = { .sin_family = AF_INET,
				      .sin_port = htons(53),
				      .sin_addr = { htonl(INADDR_LOOPBACK) } };
	int sender = socket(AF_INET, SOCK_DGRAM, 0);

	if (sendto(sender, query, sizeof(query) - 1, 0, (struct sockaddr *)&server, sizeof(server)) < 0)
		fail("sendto");
}

static void make_family(const char *kind)
{
	pid_t pid = start();

	if (pid == 0) {
		if (!strcmp(kind, "job"))
			execute_as("shell");
		if (!strcmp(kind, "orphan"))
			start();
		if (!strcmp(kind, "asker"))
			ask();
		_exit(0);
	}
	waitpid(pid, NULL, 0);
}

static void work(const char *kind, long families)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (long i = 0; i < families; i++) {
		make_family(kind);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	while (wait(NULL) > 0 || errno != ECHILD)
		;
	_exit(0);
}

int main(int argc, char **argv)
{
	long families, workers;

	self = argv[0];
	if (argc == 2)
		return run_program_of_job(argv[1]);
	if (argc != 4) {
		fprintf(stderr, "usage: storm leaf|asker|job|orphan FAMILIES WORKERS\n");
		return 2;
	}
	families = atol(argv[2]);
	workers = atol(argv[3]);
	for (long i = 0; i < workers; i++)
		if (start() == 0)
			work(argv[1], families / workers + (i < families % workers));
	for (long i = 0; i < workers; i++) {
		int status;

		if (wait(&status) < 0 || status)
			return 1;
	}
	printf("%ld\n", workers + families * (!strcmp(argv[1], "job") || !strcmp(argv[1], "orphan") ? 2 : 1));
	return 0;
}
