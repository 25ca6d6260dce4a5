// send WAY FAMILY NAME COUNT [COMM]: sends COUNT DNS queries of type A for NAME to port 53 of loopback, in one of the
// ways that programs use. FAMILY is 4, 6, or m for IPv4-mapped IPv6. With COUNT 0, it sends until SIGTERM and prints
// the number of queries.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static unsigned char message[512];
static size_t length;
static struct sockaddr_storage server;
static socklen_t server_length;
static volatile sig_atomic_t stopped;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void make_message(const char *name)
{
	static const unsigned char header[12] = { 0x12, 0x34, 1, 0, 0, 1 };
	static const unsigned char type_a_class_in[4] = { 0, 1, 0, 1 };
	memcpy(message, header, sizeof(header));
	length = sizeof(header);
	while (*name) {
		size_t label = strcspn(name, ".");
		message[length++] = (unsigned char)label;
		memcpy(message + length, name, label);
		length += label;
		name += label + (name[label] == '.');
	}
	message[length++] = 0;
	memcpy(message + length, type_a_class_in, sizeof(type_a_class_in));
	length += sizeof(type_a_class_in);
}

static int make_socket(const char *family)
{
	struct sockaddr_in *four = (struct sockaddr_in *)&server;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&server;
	if (*family == '4') {
		four->sin_family = AF_INET;
		four->sin_port = htons(53);
		four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		server_length = sizeof(*four);
	} else {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(53);
		inet_pton(AF_INET6, *family == 'm' ? "::ffff:127.0.0.1" : "::1", &six->sin6_addr);
		server_length = sizeof(*six);
	}
	int made = socket(server.ss_family, SOCK_DGRAM, 0);
	if (made < 0)
		fail("socket");
	return made;
}

// io_uring without liburing: submits one entry, and waits for it. With IOSQE_FIXED_FILE, only the ring has the socket:
// it is registered there, and closed.
static void send_by_uring(int socket_fd, struct msghdr *header, int flags)
{
	static struct io_uring_params parameters;
	static int ring = -1;
	static unsigned char *submission, *completion;
	static struct io_uring_sqe *entries;
	if (ring < 0) {
		ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
		if (ring < 0)
			fail("io_uring_setup");
		size_t submission_size = parameters.sq_off.array + parameters.sq_entries * sizeof(uint32_t);
		size_t completion_size = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
		submission = mmap(NULL, submission_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
				  IORING_OFF_SQ_RING);
		completion = mmap(NULL, completion_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
				  IORING_OFF_CQ_RING);
		entries = mmap(NULL, parameters.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
		if (submission == MAP_FAILED || completion == MAP_FAILED || entries == MAP_FAILED)
			fail("mmap");
		if (flags & IOSQE_FIXED_FILE) {
			if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_FILES, &socket_fd, 1) < 0)
				fail("io_uring_register");
			close(socket_fd);
		}
	}
	uint32_t *tail = (uint32_t *)(submission + parameters.sq_off.tail);
	uint32_t mask = *(uint32_t *)(submission + parameters.sq_off.ring_mask);
	uint32_t at = *tail & mask;
	memset(&entries[at], 0, sizeof(entries[at]));
	entries[at].opcode = IORING_OP_SENDMSG;
	entries[at].fd = flags & IOSQE_FIXED_FILE ? 0 : socket_fd;
	entries[at].addr = (uint64_t)(uintptr_t)header;
	entries[at].len = 1;
	entries[at].flags = (uint8_t)flags;
	((uint32_t *)(submission + parameters.sq_off.array))[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		fail("io_uring_enter");
	uint32_t *head = (uint32_t *)(completion + parameters.cq_off.head);
	uint32_t cq_mask = *(uint32_t *)(completion + parameters.cq_off.ring_mask);
	struct io_uring_cqe *done = (struct io_uring_cqe *)(completion + parameters.cq_off.cqes) + (*head & cq_mask);
	if (done->res != (int)length) {
		errno = -done->res;
		fail("sendmsg through io_uring");
	}
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
}

struct job {
	const char *way;
	int socket;
};

static void send_one(const char *way, int to)
{
	struct sockaddr *address = (struct sockaddr *)&server;
	// Two parts, like in a program that keeps header and question apart.
	struct iovec parts[2] = { { message, 12 }, { message + 12, length - 12 } };
	struct msghdr header = { .msg_name = address, .msg_namelen = server_length, .msg_iov = parts, .msg_iovlen = 2 };
	struct mmsghdr two[2] = { { .msg_hdr = header }, { .msg_hdr = header } };
	ssize_t sent = -1;
	if (!strcmp(way, "sendto") || !strcmp(way, "thread"))
		sent = sendto(to, message, length, 0, address, server_length);
	else if (!strcmp(way, "send"))
		sent = send(to, message, length, 0);
	else if (!strcmp(way, "write"))
		sent = write(to, message, length);
	else if (!strcmp(way, "writev"))
		sent = writev(to, parts, 2);
	else if (!strcmp(way, "sendmsg"))
		sent = sendmsg(to, &header, 0);
	else if (!strcmp(way, "sendmmsg"))
		sent = sendmmsg(to, two, 1, 0) == 1 ? (ssize_t)two[0].msg_len : -1;
	else if (!strcmp(way, "corked"))
		sent = sendto(to, message, 12, MSG_MORE, address, server_length) == 12
			   ? 12 + sendto(to, message + 12, length - 12, 0, address, server_length)
			   : -1;
	else if (!strncmp(way, "uring", 5)) {
		send_by_uring(to, &header,
			      (strstr(way, "async") ? IOSQE_ASYNC : 0) | (strstr(way, "fixed") ? IOSQE_FIXED_FILE : 0));
		sent = (ssize_t)length;
	} else {
		fprintf(stderr, "no such way: %s\n", way);
		exit(2);
	}
	if (sent != (ssize_t)length)
		fail(way);
}

static void *send_from_thread(void *argument)
{
	const struct job *job = argument;
	prctl(PR_SET_NAME, "another-thread");
	send_one(job->way, job->socket);
	return NULL;
}

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

int main(int count, char **arguments)
{
	if (count != 5 && count != 6) {
		fprintf(stderr, "usage: %s WAY FAMILY NAME COUNT [COMM]\n", arguments[0]);
		return 2;
	}
	const char *way = arguments[1];
	long queries = atol(arguments[4]), sent = 0;
	if (count == 6)
		prctl(PR_SET_NAME, arguments[5]);
	int to = make_socket(arguments[2]);
	make_message(arguments[3]);
	if (!strcmp(way, "send") || !strcmp(way, "write") || !strcmp(way, "writev")) {
		// If nobody listens, an ICMP error comes back and fails the next send. So bind a socket that receives.
		static struct sockaddr_storage self;
		int receiver = socket(server.ss_family, SOCK_DGRAM, 0);
		memcpy(&self, &server, server_length);
		(void)bind(receiver, (struct sockaddr *)&self, server_length);
		if (connect(to, (struct sockaddr *)&server, server_length))
			fail("connect");
	}
	signal(SIGTERM, stop);
	while (!stopped && (!queries || sent < queries)) {
		if (!strcmp(way, "thread")) {
			struct job job = { way, to };
			pthread_t thread;
			pthread_create(&thread, NULL, send_from_thread, &job);
			pthread_join(thread, NULL);
		} else {
			send_one(way, to);
		}
		sent++;
		if (!queries) // leave time of an emulated processor for others
			usleep(4000);
	}
	printf("%ld\n", sent);
	return 0;
}
