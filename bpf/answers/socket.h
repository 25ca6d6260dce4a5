/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What takes back the notes of a socket, beside answers: its end, and an error that came back to it.
 */
#ifndef DNSPROBE_ANSWERS_SOCKET_H
#define DNSPROBE_ANSWERS_SOCKET_H

#include "answers/note.h"
#include "udp/headers.h"

/* Takes back the latest notes of a socket. The others end with the timeout. */
static __always_inline void take_notes_of(u64 sock, u64 result)
{
	struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), &sock);

	if (!socket)
		return;
	for (u32 i = 0; i < SOCKET_NOTES; i++) {
		u64 hash = socket->notes[i];
		struct note note;

		if (hash)
			take_note(&hash, &note, result);
	}
	bpf_map_delete_elem(MAP(SOCKETS), &sock);
}

/* The address of a struct as a number: the verifier allows no arithmetic with a pointer. */
static __always_inline u64 number_of(const void *pointer)
{
	u64 on_stack = (u64)pointer;

	return read_u64((u64)&on_stack);
}

static __always_inline void end_socket(struct bpf_sock *ctx)
{
	if (ctx->protocol == PROTOCOL_UDP)
		take_notes_of(number_of(ctx), RESULT_CLOSED);
}

/*
 * An error came back to a socket. It does not say which datagram it is about. If the socket is connected, it is about
 * its only server.
 */
static __always_inline void note_error(u64 sock)
{
	if ((u16)read_u32(sock + SOCK_PROTOCOL) == PROTOCOL_UDP && (u16)read_u32(sock + SOCK_PEER_PORT))
		take_notes_of(sock, RESULT_UNREACHABLE);
}

#endif
