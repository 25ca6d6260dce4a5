/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Sends DNS queries of type A over loopback to itself, and prints the nanoseconds of one send:
 *
 *     sends udp|udp-unconnected|tcp|tcp-in-two|tcp-empty PORT COUNT [NAME]
 *
 * Over TCP, each message leaves before the next one is written. In two: its length is a write of its own. Empty: each
 * send is a packet without octets, as an acknowledgement is; this needs CAP_NET_ADMIN. In NAME, each # is a digit of a
 * number that grows with each query; NAME - sends octets that are no DNS message. The receiver discards what it gets.
 * The first WARM_UP sends of COUNT are not measured.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP 200
#define LENGTH 2 /* octets of the length in front of a message over TCP */
#define HEADER 12

static unsigned char frame[LENGTH + HEADER + 256 + 4] = "\0\0\x12\x34\1\0\0\1\0\0\0\0\0\0";
static size_t frame_size;
static unsigned char *digits[16];
static int digit_count;

static int check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

/* Appends a question for the name to the header in `frame`. */
static void make_frame(const char *name)
{
	unsigned char *at = frame + LENGTH + HEADER, *length = at++;

	if (strlen(name) > 253)
		exit(2);
	if (!strcmp(name, "-")) {
		memset(frame, 0xff, sizeof(frame));
		frame_size = LENGTH + HEADER + 64;
		return;
	}
	for (; *name; name++) {
		if (*name == '.') {
			length = at++;
			continue;
		}
		if (*name == '#' && digit_count < 16)
			digits[digit_count++] = at;
		*at++ = *name == '#' ? '0' : *name;
		++*length;
	}
	memcpy(at, "\0\0\1\0\1", 5);
	frame_size = at + 5 - frame;
	frame[1] = frame_size - LENGTH;
}

static void next_name(void)
{
	for (int i = digit_count - 1; i >= 0; i--) {
		if (++*digits[i] <= '9')
			return;
		*digits[i] = '0';
	}
}

/* The kernel sends a window probe when it ends the repair of a connection: net/ipv4/tcp.c, do_tcp_setsockopt(). */
static void send_empty(int sock)
{
	int on = TCP_REPAIR_ON, off = TCP_REPAIR_OFF;

	check(setsockopt(sock, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on)), "TCP_REPAIR");
	check(setsockopt(sock, IPPROTO_TCP, TCP_REPAIR, &off, sizeof(off)), "TCP_REPAIR");
}

/* Waits until all has left, so that no packet has several messages. */
static void wait_until_sent(int sock)
{
	int unsent = 0;

	while (check(ioctl(sock, SIOCOUTQNSD, &unsent), "SIOCOUTQNSD"), unsent)
		sched_yield();
}

static void discard_all(int listener)
{
	static char octets[1 << 16];
	int sock = check(accept(listener, NULL, NULL), "accept");

	while (read(sock, octets, sizeof(octets)) > 0)
		;
	_exit(0);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: sends udp|udp-unconnected|tcp|tcp-in-two|tcp-empty PORT COUNT [NAME]\n");
		return 2;
	}
	bool tcp = !strncmp(argv[1], "tcp", 3), in_two = !strcmp(argv[1], "tcp-in-two");
	bool unconnected = !strcmp(argv[1], "udp-unconnected"), empty = !strcmp(argv[1], "tcp-empty");
	int type = tcp ? SOCK_STREAM : SOCK_DGRAM, one = 1;
	int receiver = check(socket(AF_INET, type, 0), "socket"), sock = check(socket(AF_INET, type, 0), "socket");
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
	const struct sockaddr *to = unconnected ? (struct sockaddr *)&server : NULL;
	long count = atol(argv[3]);
	double started = 0;

	make_frame(argc > 4 ? argv[4] : "www.wanted.test");
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(receiver, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	/* The smallest buffer: datagrams are dropped on arrival, so nothing has to read them. */
	if (!tcp)
		setsockopt(receiver, SOL_SOCKET, SO_RCVBUF, &one, sizeof(one));
	check(bind(receiver, (struct sockaddr *)&server, sizeof(server)), "bind");
	if (tcp) {
		check(listen(receiver, 1), "listen");
		if (check(fork(), "fork") == 0) {
			close(sock);
			discard_all(receiver);
		}
		setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	if (!unconnected)
		check(connect(sock, (struct sockaddr *)&server, sizeof(server)), "connect");

	size_t skipped = tcp ? (in_two ? LENGTH : 0) : LENGTH;

	for (long i = 0; i < count; i++) {
		if (i == WARM_UP)
			started = now();
		if (empty) {
			send_empty(sock);
			continue;
		}
		if (in_two)
			check(send(sock, frame, LENGTH, 0), "send");
		check(sendto(sock, frame + skipped, frame_size - skipped, 0, to, to ? sizeof(server) : 0), "send");
		next_name();
		if (tcp)
			wait_until_sent(sock);
	}
	if (count > WARM_UP)
		printf("%.1f\n", (now() - started) / (count - WARM_UP));
	close(sock);
	wait(NULL);
	return 0;
}
