/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Sends DNS queries over UDP as fast as it can: flood ADDRESS PORT NAME COUNT DISTINCT PROCESSES. All queries have the
 * same NAME; with DISTINCT 1, each has a different label in front of it. Prints the number of sends that succeeded.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t put_name(unsigned char *at, const char *text)
{
	unsigned char *start = at;

	while (*text) {
		size_t length = strcspn(text, ".");

		*at++ = length;
		memcpy(at, text, length);
		at += length;
		text += length;
		text += *text == '.';
	}
	*at++ = 0;
	return at - start;
}

static size_t put_query(unsigned char *message, const char *name, int number, long index)
{
	unsigned char *at = message + 12;
	char label[32];

	memset(message, 0, 12);
	message[0] = index >> 8;
	message[1] = index;
	message[2] = 1; /* RD */
	message[5] = 1; /* QDCOUNT */
	if (number >= 0) {
		int length = snprintf(label, sizeof(label), "n%d-%ld", number, index);

		*at++ = length;
		memcpy(at, label, length);
		at += length;
	}
	at += put_name(at, name);
	memcpy(at, "\0\1\0\1", 4);
	return at + 4 - message;
}

static long send_all(const struct sockaddr_in *server, const char *name, long count, int number)
{
	unsigned char message[512];
	size_t length = put_query(message, name, -1, 0);
	int sock = socket(AF_INET, SOCK_DGRAM, 0);
	long sent = 0;

	if (sock < 0 || connect(sock, (const struct sockaddr *)server, sizeof(*server)))
		return -1;
	for (long i = 0; i < count; i++) {
		if (number >= 0)
			length = put_query(message, name, number, i);
		/* The error of an earlier, refused send is reported here once. Nothing is sent then. */
		while (send(sock, message, length, 0) < 0)
			if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EINTR)
				return -1;
		sent++;
	}
	return sent;
}

int main(int argc, char **argv)
{
	if (argc != 7) {
		fprintf(stderr, "usage: flood ADDRESS PORT NAME COUNT DISTINCT PROCESSES\n");
		return 2;
	}
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
	int processes = atoi(argv[6]);
	long each = atol(argv[4]) / processes, total = 0;
	long *sent = mmap(NULL, sizeof(long) * processes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	inet_pton(AF_INET, argv[1], &server.sin_addr);
	for (int i = 0; i < processes; i++) {
		if (fork() == 0) {
			sent[i] = send_all(&server, argv[3], each, atoi(argv[5]) ? i : -1);
			_exit(0);
		}
	}
	while (wait(NULL) > 0)
		;
	for (int i = 0; i < processes; i++)
		total += sent[i];
	printf("%ld\n", total);
	return 0;
}
