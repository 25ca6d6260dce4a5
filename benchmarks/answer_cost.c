/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Sends packets of one kind over loopback: answer_cost KIND COUNT. It needs a network namespace of its own.
 *
 *   answered   queries that a rule counts, each with its answer
 *   no_rule    answers to a name that no rule matches
 *   udp        datagrams between ports that are not watched
 *   tcp        segments of a connection between ports that are not watched
 *
 * Prints the nanoseconds that each took.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const unsigned char COUNTED[] = "\0\1\1\0\0\1\0\0\0\0\0\0\3www\6wanted\4test\0\0\1\0\1";
static const unsigned char ANSWER[] = "\0\1\x81\x80\0\1\0\1\0\0\0\0\3www\6wanted\4test\0\0\1\0\1"
				      "\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1";
static const unsigned char NO_RULE[] = "\0\1\x81\x80\0\1\0\1\0\0\0\0\3www\5other\4test\0\0\1\0\1"
				       "\xc0\x0c\0\1\0\1\0\0\0\0\0\4\x7f\0\0\1";

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_at(int kind, int port, struct sockaddr_in *place)
{
	socklen_t length = sizeof(*place);
	int one = 1, sock = socket(AF_INET, kind, 0);

	*place = (struct sockaddr_in){ .sin_family = AF_INET,
				       .sin_port = htons(port),
				       .sin_addr = { htonl(INADDR_LOOPBACK) } };
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (sock < 0 || bind(sock, (struct sockaddr *)place, length) ||
	    getsockname(sock, (struct sockaddr *)place, &length))
		fail("bind");
	return sock;
}

static void pass(int from, int to, const void *octets, size_t size)
{
	char room[512];

	if (send(from, octets, size, 0) < 0)
		fail("send");
	if (recv(to, room, sizeof(room), 0) < 0)
		fail("recv");
}

int main(int argc, char **argv)
{
	struct sockaddr_in here, there;
	struct timespec begin, end;
	int client, server;

	if (argc != 3)
		return 2;

	const char *kind = argv[1];
	long count = atol(argv[2]);
	int is_tcp = !strcmp(kind, "tcp"), is_watched = strcmp(kind, "udp") && !is_tcp;

	server = open_at(is_tcp ? SOCK_STREAM : SOCK_DGRAM, is_watched ? 53 : 9053, &there);
	client = open_at(is_tcp ? SOCK_STREAM : SOCK_DGRAM, 0, &here);
	if (is_tcp && listen(server, 1))
		fail("listen");
	if (connect(client, (struct sockaddr *)&there, sizeof(there)) ||
	    (!is_tcp && connect(server, (struct sockaddr *)&here, sizeof(here))))
		fail("connect");
	if (is_tcp) {
		int one = 1, accepted = accept(server, NULL, NULL);

		server = accepted;
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (long i = 0; i < count; i++) {
		if (!strcmp(kind, "answered")) {
			pass(client, server, COUNTED, sizeof(COUNTED) - 1);
			pass(server, client, ANSWER, sizeof(ANSWER) - 1);
		} else if (!strcmp(kind, "no_rule")) {
			pass(server, client, NO_RULE, sizeof(NO_RULE) - 1);
		} else {
			pass(client, server, COUNTED, sizeof(COUNTED) - 1);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.0f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / count);
	return 0;
}
