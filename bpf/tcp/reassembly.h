/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Finds the messages in the writes of a program. A write can have several messages, or only a part of one (RFC 7766,
 * section 8).
 *
 * The sequence number of the socket shows where in the stream a write belongs. If the socket takes only a part of a
 * write, the program writes the rest again. The rest was read before, so it is skipped. If the socket takes nothing,
 * the next write has the same sequence number, and its first octets show whether it is the same write. Only a write
 * that opens its connection has no sequence number yet.
 */
#ifndef DNSPROBE_TCP_REASSEMBLY_H
#define DNSPROBE_TCP_REASSEMBLY_H

#include "verifier.h"
#include "scratch.h"
#include "tcp/connection.h"
#include "tcp/iov.h"
#include "tcp/message.h"

/* True if the copied octets of a write are those that the last write began with. */
static __always_inline bool has_same_head(const struct stream *stream, const u64 *head, u32 copied)
{
	u32 size = copied < stream->head_size ? copied : stream->head_size;
	u64 differing = 0;

	for (u32 i = 0; i < STREAM_HEAD; i++) {
		u32 before = i * 8;
		u64 mask = size >= before + 8 ? ~0ULL : size > before ? (1ULL << (size - before) * 8) - 1 : 0;

		differing |= (head[i] ^ stream->head[i]) & mask;
	}
	return !differing;
}

/*
 * Begins a message at the start of a write, whose first octets are in s->packet. False if it is the last write again,
 * which is possible only with `same_place`: both have the same sequence number.
 */
static __always_inline bool begin_message(struct scratch *s, struct stream *stream, u32 sequence, bool same_place)
{
	/* With a register, the verifier would track other bounds for each way in which the caller computes the size. */
	u32 copied = FORGET(s->size);
	u64 head[STREAM_HEAD];

	bpf_probe_read_kernel(head, sizeof(head), s->packet + STREAM_FRONT);
	if (same_place && has_same_head(stream, head, copied))
		return false;
	__builtin_memcpy(stream->head, head, sizeof(head));
	stream->head_size = copied;
	stream->last = sequence;
	stream->start = sequence;
	stream->buffered = 0;
	return true;
}

/* Checks that a write continues the stream. If it is not known where a message begins, tries the start of the write. */
static __always_inline void check_alignment(struct scratch *s, struct stream *stream, u32 sequence)
{
	/* Octets were sent that no hook saw. */
	if (stream->aligned && (s32)(stream->start + stream->buffered - sequence) < 0)
		lose_alignment(s, stream, sequence, STAT_UNPARSED_UNALIGNED);
	/* reset_stream(): a connection that was not known. What it sends may look like messages and be a part of one.
	 */
	if (!stream->aligned && stream->lost_at == ~sequence)
		s->unread = STAT_UNPARSED_UNALIGNED;
	if (!stream->aligned) {
		stream->start = sequence;
		stream->buffered = 0;
	}
}

/* Reads the message, of which s->size octets are in s->packet, and moves the start of the next message behind it. */
static __always_inline void advance(struct scratch *s, struct stream *stream, const struct write *write)
{
	u32 length;

	s->progress = read_message(s);
	/* FORGET, here and below: with registers, the verifier would follow this for each way out of read_message(). */
	length = LENGTH_SIZE + FORGET(s->length);
	if (!FORGET(stream->aligned) && (FORGET(s->progress) != MESSAGE_READ || length > write->size)) {
		s->progress = MESSAGE_INCOMPLETE;
		lose_alignment(s, stream, write->sequence, STAT_UNPARSED_UNALIGNED);
		return;
	}
	stream->aligned = 1;
	if (FORGET(s->progress) == MESSAGE_INCOMPLETE) {
		stream->buffered = s->size;
		bpf_probe_read_kernel(stream->octets, STREAM_SIZE, s->packet + STREAM_FRONT);
		return;
	}
	stream->start += length;
	stream->buffered = 0;
	s->more = stream->start - write->sequence < write->size;
}

/*
 * Reads the next message of a write. `continued`: an earlier run has read a part of this write. The result is in
 * s->progress and s->more.
 */
static __always_inline void read_next_message(struct scratch *s, struct stream *stream, const struct write *write,
					      bool continued)
{
	s->progress = MESSAGE_INCOMPLETE;
	s->more = 0;
	check_alignment(s, stream, write->sequence);

	/* FORGET, here and below: with registers, the verifier would follow this for each way out of check_alignment().
	 */
	u32 start = FORGET(stream->start);
	u32 buffered = FORGET(stream->buffered);
	/* If true, the socket took nothing of the last write: this is the same write, or another in its place. */
	bool same_place = !continued && FORGET(stream->aligned) && stream->last == write->sequence;

	if (same_place) {
		start = write->sequence;
		buffered = 0;
	}

	u32 skip = start + buffered - write->sequence;

	/* All of it was read before: the socket took a part of an earlier write, and the program writes the rest again.
	 */
	if (skip >= write->size || buffered >= STREAM_SIZE)
		return;
	s->size = write->size - skip < STREAM_SIZE - buffered ? write->size - skip : STREAM_SIZE - buffered;
	bpf_probe_read_kernel(s->packet + STREAM_FRONT, STREAM_SIZE, stream->octets);
	if (!copy_from_write(s, write, skip, buffered)) {
		lose_alignment(s, stream, write->sequence, STAT_UNPARSED_UNREADABLE);
		return;
	}
	if (!continued && !skip && !buffered && !begin_message(s, stream, write->sequence, same_place)) {
		s->more = FORGET(stream->start) + FORGET(stream->buffered) - write->sequence < write->size;
		return;
	}
	s->size += buffered;
	advance(s, stream, write);
}

#endif
