/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Answers over TCP: from the segments that come in to messages (RFC 1035, section 4.2.2). The hook sees them before the
 * kernel puts them in order, and again what is sent again. Of each message, the header and the question are enough.
 *
 * Nothing keeps two CPUs from handling segments of a socket at once. Then the place of one of them gets lost, and the
 * next segment seems to be ahead or old. That costs results, but no result is wrong: an answer fits its note, or none.
 */
#ifndef DNSPROBE_ANSWERS_STREAM_H
#define DNSPROBE_ANSWERS_STREAM_H

#include "answers/ingress.h"
#include "answers/note.h"
#include "tcp/egress.h"

/* Messages of a segment that a run handles at most. */
#define ANSWERS_IN_RUN 4

/*
 * False if the kernel is going to drop a segment that it does not expect: one that opens the connection, after it is
 * open, or one behind the window (net/ipv4/tcp_input.c, tcp_sequence()). Anyone who knows the ports can send such
 * segments, but has to guess the window.
 */
static __always_inline bool is_expected(const struct segment *segment)
{
	u64 sock = segment->sock;

	if (segment->is_first)
		return (u8)read_u32(sock + TCP_STATE) == TCP_SYN_SENT;
	return (s32)(segment->sequence - read_u32(sock + TCP_RCV_WUP) - read_u32(sock + TCP_RCV_WND)) <= 0;
}

/* Puts the state of the connection of a segment into s->arriving. Without room, each segment is read by itself, and
 * skb->cb has how far the runs before have come. */
static __always_inline void load_answer_stream(struct scratch *s, struct __sk_buff *skb)
{
	const struct bpf_sock *sock = skb->sk;
	const struct answer_stream *kept = sock ? make_storage(MAP(ANSWER_STREAMS), sock) : NULL;
	u32 is_known, next;

	s->is_kept = kept != NULL;
	if (kept) {
		s->arriving = *kept;
		return;
	}
	LOAD_CONTEXT(is_known, skb, cb[0]);
	LOAD_CONTEXT(next, skb, cb[1]);
	__builtin_memset(&s->arriving, 0, sizeof(s->arriving));
	s->arriving.is_known = is_known;
	s->arriving.next = next;
}

static __always_inline void save_answer_stream(struct scratch *s, struct __sk_buff *skb)
{
	const struct bpf_sock *sock = skb->sk;
	struct answer_stream *kept;
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	u32 next = FORGET(s->arriving.next);
	u32 one = 1;

	if (!FORGET(s->is_kept)) {
		STORE_CONTEXT(skb, cb[0], one);
		STORE_CONTEXT(skb, cb[1], next);
		return;
	}
	kept = sock ? find_storage(MAP(ANSWER_STREAMS), sock) : NULL;
	if (kept)
		*kept = s->arriving;
}

/* Stops following a connection up to the octet `next`, where a message may begin. */
static __always_inline void lose_answers(struct scratch *s, u32 next)
{
	s->arriving.next = next;
	s->arriving.buffered = 0;
	s->arriving.is_ahead = 0;
	s->arriving.is_guess = 1;
	s->is_lost = 1;
}

/* Keeps the first octets of a message whose question is not whole. */
static __always_inline void keep_pieces(struct scratch *s, struct __sk_buff *skb)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	const struct bpf_sock *sock = skb->sk;
	struct begun *pieces = sock && FORGET(s->is_kept) ? make_storage(MAP(PIECES), sock) : NULL;

	if (!pieces) {
		lose_answers(s, FORGET(s->tcp.end));
		return;
	}
	s->arriving.buffered = FORGET(s->size);
	bpf_probe_read_kernel(pieces->octets, STREAM_SIZE, s->packet + STREAM_FRONT);
}

/* Puts the first octets of the next message into s->packet: those that were kept, and s->part octets of the segment. */
static __always_inline bool copy_answer(struct scratch *s, struct __sk_buff *skb, u32 at)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	u64 behind_first = FORGET(s->part) - 1;
	u64 to = FORGET(s->arriving.buffered);

	if (to) {
		const struct bpf_sock *sock = skb->sk;
		const struct begun *pieces = sock ? find_storage(MAP(PIECES), sock) : NULL;

		if (!pieces)
			return false;
		bpf_probe_read_kernel(s->packet + STREAM_FRONT, STREAM_SIZE, pieces->octets);
		to = FORGET(s->arriving.buffered);
	}
	/* See copy_datagram() for the mask and the size. */
	KEEP_BELOW_512(behind_first);
	KEEP_BELOW_512(to);
	return bpf_skb_load_bytes(skb, at, s->packet + STREAM_FRONT + to, behind_first + 1) == 0;
}

/* Handles the next message of a segment, or the part of it that the segment has. */
static __always_inline void handle_stream_answer(struct scratch *s, const struct settings *settings,
						 struct __sk_buff *skb)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	u32 next = FORGET(s->arriving.next);
	u32 left = FORGET(s->tcp.end) - next;
	u32 room = STREAM_SIZE - FORGET(s->arriving.buffered);

	s->part = left < room ? left : room;
	if (!copy_answer(s, skb, FORGET(s->tcp.at) + next - FORGET(s->tcp.sequence))) {
		lose_answers(s, FORGET(s->tcp.end));
		return;
	}

	u32 size = FORGET(s->arriving.buffered) + FORGET(s->part);
	u32 length = s->packet[STREAM_FRONT] << 8 | s->packet[STREAM_FRONT + 1];
	u32 present = size < LENGTH_SIZE ? 0 : size - LENGTH_SIZE;

	s->size = size;
	s->length = length;
	/* It may have begun in an earlier segment. */
	s->join.message =
	    (u32)(FORGET(s->tcp.at) + next - FORGET(s->tcp.sequence) - FORGET(s->arriving.buffered) + LENGTH_SIZE);
	s->join.size = length;
	s->present = present < length || size < LENGTH_SIZE ? present : length;
	left = FORGET(s->arriving.buffered) || left < LENGTH_SIZE ? 0 : left - LENGTH_SIZE;
	s->in_packet = left < length ? left : length;
	/* The rest of the message may be in later segments: they begin behind the place of the next one. */
	s->progress = MESSAGE_READ;
	s->is_matched = 0;
	/* An id is too little to prove that a message begins there. */
	s->may_be_bare = !FORGET(s->arriving.is_guess) && !FORGET(s->is_out_of_turn);
	if (may_be_answer(s) && !handle_question(s, settings, skb)) {
		if (FORGET(s->size) < STREAM_SIZE &&
		    (FORGET(s->size) < LENGTH_SIZE || FORGET(s->present) < FORGET(s->length)))
			s->progress = MESSAGE_INCOMPLETE;
		else if (FORGET(s->may_be_bare) && s->to.port != CANARY_PORT)
			count_unmatched(UNMATCHED_UNREADABLE);
	}
	/* Only an answer that fits a note proves that a message begins there. The length of others may be anything. */
	if (FORGET(s->arriving.is_guess) && !FORGET(s->is_matched)) {
		s->arriving.next = FORGET(s->tcp.end);
		s->is_lost = 1;
		return;
	}
	s->arriving.is_guess = 0;
	if (FORGET(s->progress) == MESSAGE_INCOMPLETE) {
		s->arriving.next += FORGET(s->part);
		keep_pieces(s, skb);
		return;
	}
	s->arriving.next += LENGTH_SIZE + FORGET(s->length) - FORGET(s->arriving.buffered);
	s->arriving.buffered = 0;
}

/* Moves behind the segments that came before their turn, once those in front of them are there. */
static __always_inline void join_ahead(struct scratch *s)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	if (!FORGET(s->arriving.is_ahead) || (s32)(FORGET(s->arriving.next) - FORGET(s->arriving.ahead_from)) < 0)
		return;
	/* Otherwise, a message does not begin where they do, and they were not read right. */
	if (FORGET(s->arriving.next) != FORGET(s->arriving.ahead_from) || FORGET(s->arriving.buffered)) {
		lose_answers(s, FORGET(s->tcp.end));
		return;
	}
	s->arriving.next = FORGET(s->arriving.ahead_next);
	s->arriving.is_ahead = 0;
}

/*
 * Finds the place of a segment. False if nothing of it is to be read. A segment that comes before its turn is read, as
 * if a message began there. Meanwhile, s->missing_at keeps the place of what is missing.
 */
static __always_inline bool find_answer_place(struct scratch *s)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	u32 sequence = FORGET(s->tcp.sequence);

	s->is_out_of_turn = 0;
	if (FORGET(s->tcp.is_first) || !FORGET(s->arriving.is_known)) {
		__builtin_memset(&s->arriving, 0, sizeof(s->arriving));
		s->arriving.is_known = 1;
		s->arriving.is_guess = !FORGET(s->tcp.is_first);
		s->arriving.next = sequence;
	}
	if ((s32)(FORGET(s->tcp.end) - FORGET(s->arriving.next)) <= 0)
		return false;
	if ((s32)(sequence - FORGET(s->arriving.next)) <= 0)
		return true;
	if (FORGET(s->arriving.is_guess)) {
		s->arriving.next = sequence;
		return true;
	}
	if (FORGET(s->arriving.is_ahead)) {
		/* Segments are missing at two places: in front of this one, and on one side of it. */
		if ((s32)(sequence - FORGET(s->arriving.ahead_from)) < 0 ||
		    (s32)(sequence - FORGET(s->arriving.ahead_next)) > 0) {
			lose_answers(s, sequence);
			return true;
		}
		if ((s32)(FORGET(s->tcp.end) - FORGET(s->arriving.ahead_next)) <= 0)
			return false;
		sequence = FORGET(s->arriving.ahead_next);
	} else {
		s->arriving.is_ahead = 1;
		s->arriving.ahead_from = sequence;
	}
	s->is_out_of_turn = 1;
	s->missing_at = FORGET(s->arriving.next);
	s->missing_buffered = FORGET(s->arriving.buffered);
	s->arriving.next = sequence;
	s->arriving.buffered = 0;
	return true;
}

/* Goes back to what is missing after a segment that came before its turn. */
static __always_inline void return_to_missing(struct scratch *s)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	/* A message that it has in part cannot be kept: there is one place for pieces. */
	if (FORGET(s->is_lost))
		return;
	if (FORGET(s->arriving.buffered)) {
		lose_answers(s, FORGET(s->arriving.next));
		return;
	}
	s->arriving.ahead_next = FORGET(s->arriving.next);
	s->arriving.next = FORGET(s->missing_at);
	s->arriving.buffered = FORGET(s->missing_buffered);
}

/* Handles the next messages of a segment. True if it has more. */
static __always_inline bool handle_answer_segment(struct scratch *s, const struct settings *settings,
						  struct __sk_buff *skb)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	u32 runs = 0;

	s->is_lost = 0;
	read_server(&s->to, skb, FORGET(s->tcp.sock));
	if (s->to.transport != TRANSPORT_TCP || !WATCHED_PORT(FORGET(s->to.port)))
		return false;
	load_answer_stream(s, skb);
	if (!find_answer_place(s)) {
		save_answer_stream(s, skb);
		return false;
	}
	for (u32 i = 0; i < ANSWERS_IN_RUN; i++) {
		if ((s32)(FORGET(s->tcp.end) - FORGET(s->arriving.next)) <= 0)
			break;
		handle_stream_answer(s, settings, skb);
	}

	bool has_more = (s32)(FORGET(s->tcp.end) - FORGET(s->arriving.next)) > 0;

	if (FORGET(s->is_out_of_turn))
		return_to_missing(s);
	join_ahead(s);
	save_answer_stream(s, skb);
	if (FORGET(s->is_lost))
		miss_answers_of(FORGET(s->tcp.sock));
	return has_more;
}

/* The third program. */
static __always_inline int handle_ingress_stream(struct __sk_buff *skb)
{
	struct settings *settings = get_settings();
	struct segment segment;
	bool has_more = false;
	struct scratch *s;
	u32 index = 0;

	if (!settings || !read_segment(&segment, skb) || !is_expected(&segment))
		return 1;
	s = take_scratch(&index);
	if (!s) {
		miss_answers_of(segment.sock);
		return 1;
	}
	s->tcp = segment;
	has_more = handle_answer_segment(s, settings, skb);
	map_push(MAP(FREE_SCRATCH), &index, 0);
	if (!has_more)
		return 1;
	/* The next messages. A loop around all of this would be too large for the verifier. */
	tail_call(skb, MAP(SELF_CALLS), ODD_CALL);
	miss_answers_of(segment.sock);
	return 1;
}

#endif
