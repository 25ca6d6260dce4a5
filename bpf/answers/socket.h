/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What takes back the notes of a socket, beside answers: its end, and an error that came back to it.
 */
#ifndef DNSPROBE_ANSWERS_SOCKET_H
#define DNSPROBE_ANSWERS_SOCKET_H

#include "answers/note.h"
#include "udp/headers.h"

/* The address of a struct as a number: the verifier allows no arithmetic with a pointer. */
static __always_inline u64 number_of(const void *pointer)
{
	u64 on_stack = (u64)pointer;

	return read_u64((u64)&on_stack);
}

static __always_inline void end_socket(struct bpf_sock *ctx)
{
	if (ctx->protocol == PROTOCOL_UDP || ctx->protocol == PROTOCOL_TCP)
		take_notes_of(number_of(ctx), RESULT_CLOSED);
}

/* include/uapi/linux/errqueue.h */
#define SO_EE_ORIGIN_ICMP 2
#define SO_EE_ORIGIN_ICMP6 3

/*
 * Sets waiting->asked to what the last error of the kernel's queue for a socket is about. The queue is for programs
 * that ask for errors (IP_RECVERR of ip(7)). Its packet begins with what the ICMP message quotes behind the UDP header
 * (net/ipv4/ip_sockglue.c, ip_icmp_error()). False if there is none, or not even the id is quoted.
 */
static __always_inline bool read_last_error(struct waiting *waiting, u64 sock)
{
	if (!IS_THERE(SOCK_LAST_ERROR) || !IS_THERE(SKB_CB) || !IS_THERE(EXTENDED_ERROR_ORIGIN) ||
	    !IS_THERE(EXTENDED_ERROR_ADDRESS) || !IS_THERE(EXTENDED_ERROR_PORT))
		return false;

	u64 packet = read_u64(sock + SOCK_LAST_ERROR);
	u64 error = packet + SKB_CB;
	u64 head = read_u64(packet + SKB_HEAD);
	u64 message = read_u64(packet + SKB_DATA);
	u8 origin = read_u32(error + EXTENDED_ERROR_ORIGIN);
	u64 address = head + (u16)read_u32(packet + SKB_NETWORK_HEADER) + (u16)read_u32(error + EXTENDED_ERROR_ADDRESS);
	struct asked *asked = &waiting->asked;

	/* The queue is a ring: if it is empty, this is its head, which is part of the socket. */
	if (packet >= sock && packet - sock <= SOCK_LAST_ERROR)
		return false;
	if (message + sizeof(asked->id) > head + read_u32(packet + SKB_TAIL))
		return false;
	asked->sock = sock;
	asked->id = read_u32(message);
	asked->port = __builtin_bswap16(read_u32(error + EXTENDED_ERROR_PORT));
	if (origin == SO_EE_ORIGIN_ICMP)
		return bpf_probe_read_kernel(asked->server, 4, (void *)address) == 0;
	return origin == SO_EE_ORIGIN_ICMP6 && bpf_probe_read_kernel(asked->server, 16, (void *)address) == 0;
}

/* An error came back to a UDP socket. Without a quoted datagram, it may be about any datagram to the only server that a
 * connected socket has. The kernel reports some errors twice. */
static __always_inline void note_datagram_error(u64 sock, bool is_connected)
{
	struct waiting waiting = {};
	u64 first = 0;
	const struct settings *settings = bpf_map_lookup_elem(MAP(SETTINGS), &first);

	if (settings && read_last_error(&waiting, sock)) {
		if (!find_note_by_id(&waiting, settings) || !remove_note(&waiting.hash, &waiting.taken, false))
			return;
		end_note(&waiting.hash, &waiting.taken, RESULT_UNREACHABLE);
		report_result(&waiting.taken, RESULT_UNREACHABLE);
	} else if (is_connected && read_u32(sock + SOCK_ERR)) {
		take_notes_of(sock, RESULT_UNREACHABLE);
	}
}

/* The kernel also reports what is no error, such as the end of a send without a copy. A TCP connection ends with its
 * error. */
static __always_inline void note_error(u64 sock)
{
	u16 protocol = read_u32(sock + SOCK_PROTOCOL);
	bool is_connected = (u16)read_u32(sock + SOCK_PEER_PORT);

	if (protocol == PROTOCOL_UDP)
		note_datagram_error(sock, is_connected);
	if (protocol == PROTOCOL_TCP && is_connected && read_u32(sock + SOCK_ERR))
		take_notes_of(sock, RESULT_CLOSED);
}

#endif
