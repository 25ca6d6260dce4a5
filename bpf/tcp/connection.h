/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The state of a TCP connection between two writes (struct stream of abi.h).
 */
#ifndef DNSPROBE_TCP_CONNECTION_H
#define DNSPROBE_TCP_CONNECTION_H

#include "kernel_read.h"
#include "scratch.h"
#include "tcp/destination.h"

/*
 * Returns the sequence number of the first octet of a connection: one more than that of its SYN. The SYN counts as
 * acknowledged, too, and both numbers grow together (net/ipv4/tcp_input.c, tcp_snd_una_update()).
 */
static __always_inline u32 first_octet(u64 sock)
{
	return read_u32(sock + TCP_SND_UNA) - read_u32(sock + TCP_BYTES_ACKED) + 1;
}

/* Adds an entry for a socket; NULL if there is no room. Its inode is not that of the socket, so the caller resets it.
 */
static __always_inline struct stream *add_stream(struct scratch *s, u64 *sock, u64 inode)
{
	s->stream.inode = ~inode;
	bpf_map_update_elem(MAP(STREAMS), sock, &s->stream, BPF_ANY);
	return bpf_map_lookup_elem(MAP(STREAMS), sock);
}

/*
 * The sequence numbers of a write that opens its connection are assumed ones. Replaces them by the real ones. If a
 * non-blocking socket took only a part of that write, the program writes the rest again. These octets were read before.
 */
static __always_inline void correct_sequence(struct stream *stream, u32 first)
{
	stream->start += first - stream->first;
	stream->lost_at += first - stream->first;
	stream->last += first - stream->first;
	stream->first = first;
	stream->opened = 0;
}

static __always_inline void reset_stream(struct stream *stream, u64 inode, u32 first, u32 sequence, bool opened)
{
	stream->inode = inode;
	stream->first = first;
	stream->start = sequence;
	stream->buffered = 0;
	stream->aligned = sequence == first;
	stream->lost_at = ~sequence;
	stream->last = ~sequence;
	stream->opened = opened;
}

/*
 * Returns the connection of a write, a new one if it is not known, NULL if there is no room. `continued`: an earlier
 * run has read a part of this write.
 */
static __always_inline struct stream *find_stream(struct scratch *s, u64 sock, u32 sequence, enum fastopen fastopen,
						  bool continued)
{
	struct stream *stream = bpf_map_lookup_elem(MAP(STREAMS), &sock);
	u64 inode = read_u64(read_u64(sock + SOCK_SOCKET) + SOCKET_INODE);

	if (!stream) {
		stream = add_stream(s, &sock, inode);
		if (!stream)
			return NULL;
	}

	/* Before the connection is open, a write is assumed to begin with the first octet of the connection. */
	u32 first = fastopen == FASTOPEN_NONE ? first_octet(sock) : sequence;
	/* An earlier socket may have had the same address. */
	bool is_other = stream->inode != inode || (fastopen == FASTOPEN_SENDMSG && !continued);

	/* If the socket is not locked, an acknowledgement may have come between the two reads of first_octet(). */
	if (fastopen == FASTOPEN_NONE && stream->first != first)
		first = first_octet(sock);
	if (!is_other && fastopen == FASTOPEN_NONE && stream->opened)
		correct_sequence(stream, first);
	if (!is_other && stream->first == first)
		return stream;
	reset_stream(stream, inode, first, sequence, fastopen == FASTOPEN_SENDMSG);
	return stream;
}

/* Stops reading a connection, from the octet `sequence` on, until a write begins with a message. */
static __always_inline void lose_alignment(struct scratch *s, struct stream *stream, u32 sequence, u32 statistic)
{
	stream->aligned = 0;
	stream->lost_at = sequence;
	s->unread = statistic;
}

#endif
