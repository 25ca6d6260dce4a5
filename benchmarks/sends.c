/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Sends the same DNS query COUNT times over loopback to itself: sends udp|tcp PORT COUNT. The receiver discards it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* A query for the A record of www.wanted.test, with its length in front. */
static const unsigned char frame[] = "\0\x21\x12\x34\1\0\0\1\0\0\0\0\0\0\3www\6wanted\4test\0\0\1\0\1";
#define FRAME_SIZE (sizeof(frame) - 1)

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

static void discard_all(int listener)
{
	static char octets[1 << 16];
	int sock = check(accept(listener, NULL, NULL), "accept");

	while (read(sock, octets, sizeof(octets)) > 0)
		;
	_exit(0);
}

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: sends udp|tcp PORT COUNT\n");
		return 2;
	}
	int tcp = !strcmp(argv[1], "tcp"), type = tcp ? SOCK_STREAM : SOCK_DGRAM, one = 1;
	int receiver = check(socket(AF_INET, type, 0), "socket"), sock = check(socket(AF_INET, type, 0), "socket");
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };

	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	check(bind(receiver, (struct sockaddr *)&server, sizeof(server)), "bind");
	if (tcp) {
		check(listen(receiver, 1), "listen");
		if (check(fork(), "fork") == 0) {
			close(sock);
			discard_all(receiver);
		}
		setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	check(connect(sock, (struct sockaddr *)&server, sizeof(server)), "connect");

	for (long i = atol(argv[3]); i > 0; i--)
		check(tcp ? send(sock, frame, FRAME_SIZE, 0) : send(sock, frame + 2, FRAME_SIZE - 2, 0), "send");
	close(sock);
	wait(NULL);
	return 0;
}
