/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Floods over UDP, from and to loopback. It needs a network namespace of its own, as root.
 *
 *   answer_flood silent NAME COUNT USER USERS   queries that nobody answers, with ids that wrap around, by USERS users
 *                                               from USER on, a process and a socket each
 *   answer_flood forge NAME COUNT               a query on a connected and on an unconnected socket, and COUNT answers
 *                                               to each that fit none
 *
 * Prints the number of queries, or of answers, and waits for a line of input; the sockets are open until then. After
 * the line, "forge" sends the true answers, prints their number, and waits again.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RIGHT, OTHER_NAME, NO_RULE };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in address_of(const char *address)
{
	struct sockaddr_in found = { .sin_family = AF_INET, .sin_port = htons(53) };

	inet_pton(AF_INET, address, &found.sin_addr);
	return found;
}

static int open_at(const char *address)
{
	struct sockaddr_in place = address_of(address);
	int sock = socket(AF_INET, SOCK_DGRAM, 0);

	if (sock < 0 || bind(sock, (struct sockaddr *)&place, sizeof(place)))
		fail(address);
	return sock;
}

/* Puts a message with a question for the address of a name below `name`, or of one that no rule matches. */
static size_t put_message(unsigned char *message, unsigned id, int is_answer, const char *name, int kind)
{
	unsigned char *at = message + 12;

	memset(message, 0, 12);
	message[0] = id >> 8;
	message[1] = id;
	message[2] = is_answer ? 0x81 : 1;
	message[5] = 1;
	message[7] = is_answer;
	memcpy(at, kind == OTHER_NAME ? "\5other" : "\5asked", 6);
	at += 6;
	for (const char *label = kind == NO_RULE ? "norule" : name; *label; label += *label == '.') {
		size_t length = strcspn(label, ".");

		*at++ = length;
		memcpy(at, label, length);
		at += length;
		label += length;
	}
	memcpy(at, "\0\0\1\0\1", 5);
	at += 5;
	if (is_answer) {
		memcpy(at, "\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1", 16);
		at += 16;
	}
	return at - message;
}

static void send_message(int sock, const struct sockaddr_in *to, const unsigned char *message, size_t size)
{
	if (sendto(sock, message, size, 0, (const struct sockaddr *)to, to ? sizeof(*to) : 0) < 0)
		fail("sendto");
}

/* Asks as one user. Sends nothing of it again: the ids wrap around. */
static void ask(const char *name, long count, uid_t user)
{
	struct sockaddr_in server = address_of("127.0.0.1");
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	unsigned char message[512];
	size_t size = put_message(message, 0, 0, name, RIGHT);

	if (setuid(user) || connect(sock, (struct sockaddr *)&server, sizeof(server)))
		fail("connect");
	for (long i = 0; i < count; i++) {
		message[0] = i >> 8;
		message[1] = i;
		send_message(sock, NULL, message, size);
	}
}

static void wait_for_line(long number)
{
	printf("%ld\n", number);
	fflush(stdout);
	getchar();
}

static void flood_silent(const char *name, long count, uid_t user, long users)
{
	int done[2], end[2];
	char octet;

	open_at("127.0.0.1");
	if (pipe(done) || pipe(end))
		fail("pipe");
	for (long i = 0; i < users; i++) {
		if (fork() == 0) {
			close(end[1]);
			ask(name, count / users, user + i);
			if (write(done[1], "", 1) != 1 || read(end[0], &octet, 1))
				fail("pipe");
			_exit(0);
		}
	}
	for (long i = 0; i < users; i++)
		if (read(done[0], &octet, 1) != 1)
			fail("read");
	wait_for_line(count / users * users);
	close(end[1]);
	while (wait(NULL) > 0)
		;
}

static void flood_answers(const char *name, long count)
{
	struct sockaddr_in server = address_of("127.0.0.1"), here[2];
	int servers[] = { open_at("127.0.0.1"), open_at("127.0.0.2") };
	int clients[] = { socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET, SOCK_DGRAM, 0) };
	socklen_t length = sizeof(here[0]);
	unsigned char message[512];
	size_t size;

	if (connect(clients[0], (struct sockaddr *)&server, sizeof(server)))
		fail("connect");
	for (int i = 0; i < 2; i++) {
		size = put_message(message, 7, 0, name, RIGHT);
		send_message(clients[i], i ? &server : NULL, message, size);
		if (getsockname(clients[i], (struct sockaddr *)&here[i], &length))
			fail("getsockname");
		here[i].sin_addr = server.sin_addr;
	}
	for (long i = 0; i < count; i++) {
		/* Another id; another name; nothing of interest. */
		unsigned id = i % 4 == 0 ? (8 + i % 60000) : 7;
		int kind = i % 4 == 1 ? OTHER_NAME : i % 4 == 2 ? NO_RULE : RIGHT;

		size = put_message(message, i % 4 == 3 ? 6 : id, 1, name, kind);
		send_message(servers[0], &here[0], message, size);
		/* To the other socket, the right answer as well, from another server. */
		size = put_message(message, 7, 1, name, kind);
		send_message(servers[1], &here[1], message, size);
	}
	wait_for_line(count);
	size = put_message(message, 7, 1, name, RIGHT);
	for (int i = 0; i < 2; i++)
		send_message(servers[0], &here[i], message, size);
	wait_for_line(2);
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "silent"))
		flood_silent(argv[2], atol(argv[3]), atol(argv[4]), atol(argv[5]));
	else if (argc == 4 && !strcmp(argv[1], "forge"))
		flood_answers(argv[2], atol(argv[3]));
	else
		return 2;
	return 0;
}
