/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Where a write to a TCP socket goes.
 */
#ifndef DNSPROBE_TCP_DESTINATION_H
#define DNSPROBE_TCP_DESTINATION_H

#include "kernel_read.h"
#include "route.h"
#include "scratch.h"
#include "dns/message.h"

/* include/linux/socket.h */
#define AF_INET 2
#define AF_INET6 10
#define MSG_FASTOPEN 0x20000000
/* The second half of ::1, in network byte order. */
#define LOOPBACK6 __builtin_bswap64(1)

#define TCP_SYN_SENT 2	    /* include/net/tcp_states.h */
#define TFO_CLIENT_ENABLE 1 /* include/net/tcp.h */

/* A function is entered before the write opens its connection; the tracepoint is hit after that. */
#if defined(STREAM_FUNCTION) && defined(MSG_NAME)
#define FASTOPEN_IS_SEEN
#endif

/* Whether a write opens its connection: TCP Fast Open (RFC 7413) sends the first octets with the SYN. */
enum fastopen {
	FASTOPEN_NONE,
	FASTOPEN_SENDMSG, /* sendmsg(2) with MSG_FASTOPEN connects: the message has the address */
	FASTOPEN_CONNECT  /* connect(2) left the SYN to the first write (TCP_FASTOPEN_CONNECT of tcp(7)) */
};

/* struct sockaddr_in6 of include/uapi/linux/in6.h, and struct sockaddr_in, which ends with `four`. */
struct address {
	u16 family;
	u16 port;
	u32 four; /* the flow in struct sockaddr_in6 */
	u32 six[4];
};

#ifdef FASTOPEN_IS_SEEN
/* Reads the address of a write with MSG_FASTOPEN. False if it has none, or if the write fails at once because the
 * system does not allow it (net/ipv4/tcp.c, tcp_sendmsg_fastopen()). */
static __always_inline bool read_fastopen_address(struct address *address, u64 sock, u64 message)
{
	u64 net = read_u64(sock + SOCK_NET);

	return (read_u32(message + MSG_FLAGS) & MSG_FASTOPEN) &&
	       (read_u32(net + NET_TCP_FASTOPEN) & TFO_CLIENT_ENABLE) &&
	       READ(*address, read_u64(message + MSG_NAME)) == 0 &&
	       (address->family == AF_INET || address->family == AF_INET6);
}
#endif

/* An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2) becomes the IPv4 address that is on the wire. */
static __always_inline void set_stream_server(struct destination *to, const struct address *address)
{
	to->family = 4;
	__builtin_memset(to->server, 0, sizeof(to->server));
	if (address->family == AF_INET) {
		__builtin_memcpy(to->server, &address->four, 4);
	} else if (!address->six[0] && !address->six[1] && address->six[2] == __builtin_bswap32(0xffff)) {
		__builtin_memcpy(to->server, &address->six[3], 4);
	} else {
		to->family = 6;
		__builtin_memcpy(to->server, address->six, sizeof(address->six));
	}
}

/*
 * Returns TO_LOCAL if a socket sends to this host, otherwise 0. A connected socket keeps its route, until the kernel
 * finds that it has to look for a new one. Then it is known from the addresses: from one of its own addresses, a host
 * sends to itself. A write that connects (FASTOPEN_SENDMSG) has neither route nor source.
 */
static __always_inline u8 local_by_socket(const struct destination *to, u64 sock)
{
	u64 route = read_u64(sock + SOCK_ROUTE);
	u64 source[2] = {}, server[2];

	if (route)
		return local_by_route(route, to->family);
	__builtin_memcpy(server, to->server, sizeof(server));
	if (to->family == 4) {
		/* RFC 1122, section 3.2.1.3 (g) */
		if (to->server[0] == 127)
			return TO_LOCAL;
		bpf_probe_read_kernel(source, 4, (void *)(sock + SOCK_COMMON + SOCK_SADDR));
	} else {
		if (!server[0] && server[1] == LOOPBACK6)
			return TO_LOCAL;
		bpf_probe_read_kernel(source, 16, (void *)(sock + SOCK_COMMON + SOCK_V6_SADDR));
	}
	return source[0] == server[0] && source[1] == server[1] ? TO_LOCAL : 0;
}

/* True for a write to a port whose queries are read, or whose connections are counted. */
static __always_inline bool read_destination(struct destination *to, enum fastopen *fastopen, u64 sock, u64 message)
{
	u8 common[SOCK_COMMON_SPAN] __attribute__((aligned(8)));
	struct address address = {};

	*fastopen = FASTOPEN_NONE;
	if (bpf_probe_read_kernel(common, sizeof(common), (void *)(sock + SOCK_COMMON)))
		return false;
	address.port = *(u16 *)&common[SOCK_DPORT];
#ifdef FASTOPEN_IS_SEEN
	if (!address.port) {
		if (!read_fastopen_address(&address, sock, message))
			return false;
		*fastopen = FASTOPEN_SENDMSG;
	}
#endif
	to->port = __builtin_bswap16(address.port);
	if (!WATCHED_PORT(to->port) && !ENCRYPTED_PORT(to->port))
		return false;
	if (*fastopen != FASTOPEN_SENDMSG) {
		address.family = *(u16 *)&common[SOCK_FAMILY];
		address.four = *(u32 *)&common[SOCK_DADDR];
		if (address.family != AF_INET)
			READ(address.six, sock + SOCK_COMMON + SOCK_V6_DADDR);
	}
#ifdef FASTOPEN_IS_SEEN
	/* If connect(2) does not leave the SYN to the first write, the SYN was sent. */
	if (*fastopen == FASTOPEN_NONE && common[SOCK_STATE] == TCP_SYN_SENT && read_u32(sock + TCP_SEGS_OUT) == 0)
		*fastopen = FASTOPEN_CONNECT;
#endif
	to->skb = 0;
	to->sock = sock;
	set_stream_server(to, &address);
	to->local = local_by_socket(to, sock);
	to->transport = transport_of(to, 0, TRANSPORT_TCP);
	return true;
}

#endif
