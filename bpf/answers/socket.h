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

/*
 * An error came back to a socket. It does not say which datagram it is about. If the socket is connected, it is about
 * its only server. The kernel also reports what is no error, such as the end of a send without a copy. A TCP connection
 * ends with its error.
 */
static __always_inline void note_error(u64 sock)
{
	u16 protocol = read_u32(sock + SOCK_PROTOCOL);

	if (!read_u32(sock + SOCK_ERR) || !(u16)read_u32(sock + SOCK_PEER_PORT))
		return;
	if (protocol == PROTOCOL_UDP)
		take_notes_of(sock, RESULT_UNREACHABLE);
	if (protocol == PROTOCOL_TCP)
		take_notes_of(sock, RESULT_CLOSED);
}

#endif
