/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hooks for TCP do with a write.
 */
#ifndef DNSPROBE_TCP_HANDLER_H
#define DNSPROBE_TCP_HANDLER_H

#include "kernel_read.h"
#include "verifier.h"
#include "scratch.h"
#include "dns/match.h"
#include "dns/name.h"
#include "process/ancestry.h"
#include "query/count.h"
#include "query/handler.h"
#include "query/submit.h"
#include "tcp/connection.h"
#include "tcp/destination.h"
#include "tcp/iov.h"
#include "tcp/reassembly.h"

/* Reads the next message of a write. If it is a query that a rule matches, counts it. */
static __always_inline void handle_message(struct scratch *s, const struct settings *settings, struct stream *stream,
					   const struct write *write, bool continued)
{
	s->unread = 0;
	s->has_gap = 0;
	read_next_message(s, stream, write, continued);
	/* FORGET, here and below: with a register, the verifier would follow this code for each way out of
	 * read_next_message(). */
	if (FORGET(s->progress) == MESSAGE_READ && FORGET(s->unread)) {
		/* Octets before this message were not seen. The message itself can be read. */
		if (s->to.port != CANARY_PORT) {
			count_unread(FORGET(s->unread), counted_transport(&s->to), 1, !IS_SENT_ON(s));
			s->event.kind = KIND_UNREAD;
			s->has_gap = 1;
		}
		s->unread = 0;
	}
	if (FORGET(s->progress) == MESSAGE_MALFORMED)
		s->unread = STAT_UNPARSED_MALFORMED;
	if (FORGET(s->progress) == MESSAGE_NO_QUERY)
		s->unread = s->message;
	if (FORGET(s->unread)) {
		if (s->to.port == CANARY_PORT)
			return;
		count_statistic(FORGET(s->unread));
		describe_unread(s, FORGET(s->unread));
		s->rule = UNREAD;
	} else {
		if (FORGET(s->progress) != MESSAGE_READ)
			return;
		reverse_name(s);

		u32 rule = match_name(s);

		if (rule == NO_RULE || !rule_fits_port(rule, s->to.port))
			return;
		s->rule = rule;
	}
	identify_query(s, settings);
	handle_odd_query(s, settings, FORGET(s->rule));
}

/* Sees to it that the process has a tree, for what handle_message() has counted in front of a message that no rule
 * matches. */
static __always_inline void want_tree(struct scratch *s)
{
	if (IS_SENT_ON(s))
		return;
	s->leader = current_process(&s->process);
	s->share = find_share(bpf_get_current_task());
	if (!is_tree_kept(&s->process))
		s->keep_tree = 1;
}

/* Counts a connection whose queries cannot be read, when its first octets are written. */
static __always_inline void count_encrypted_connection(struct scratch *s, struct stream *stream, u32 sequence)
{
	if (!stream->aligned || stream->first != sequence)
		return;
	/* The same octets may be written again. */
	stream->aligned = 0;
	if (!IS_SENT_ON(s))
		s->leader = current_process(&s->process);
	s->question.qtype = 0;
	s->event.kind = KIND_QUERY;
	set_share(s, bpf_get_current_task());
	s->counted_qtype = 0;
	number_server(s);
	count_query(s, ENCRYPTED, TRANSPORT_DOT | s->to.local);
}

/*
 * Handles one write to a TCP socket. Each message in it takes a run: the program calls itself, as the program at
 * `self` of MAP(SELF_CALLS).
 */
static __always_inline int handle_write(void *ctx, u64 sock, u64 message, u32 hook_kind, u32 self)
{
	struct destination to;
	enum fastopen fastopen;

	if (!read_destination(&to, &fastopen, sock, message))
		return 0;

	struct scratch *s = get_scratch(hook_kind);
	struct settings *settings = get_settings();

	if (!s || !settings)
		return 0;

	struct write write = { .sequence = read_u32(sock + TCP_WRITE_SEQ) };

	/* The SYN, which is not sent yet, takes a number. */
	if (fastopen == FASTOPEN_CONNECT)
		write.sequence++;

	bool continued = s->more;
	struct stream *stream = find_stream(s, sock, write.sequence, fastopen, continued);

	s->more = 0;
	if (!stream)
		return 0;
	/* An earlier run has counted that this write cannot be read: that of the first of two programs at a tracepoint,
	 * or that of an earlier attempt to write, if the socket took nothing then. */
	if (!stream->aligned && stream->lost_at == write.sequence)
		return 0;
	s->to = to;
	exclude_kernel_thread(s);
	s->keep_tree = 0;
	s->submit = 0;
	if (WATCHED_PORT(to.port)) {
		read_write(&write, message);
		if (!write.size)
			return 0;
		handle_message(s, settings, stream, &write, continued);
		/* FORGET: as in handle_message(). */
		if (FORGET(s->has_gap))
			want_tree(s);
	} else {
		count_encrypted_connection(s, stream, write.sequence);
	}
	keep_and_submit(s, settings);
	/* As in handle_message(): with a register, the verifier would follow each way out of read_next_message(). */
	if (!FORGET(s->more))
		return 0;
	/* The next message. A loop around all of this would be too large for the verifier. */
	tail_call(ctx, MAP(SELF_CALLS), self);
	/* The call fails if the write has more messages than the kernel follows calls (MAX_TAIL_CALL_CNT). */
	s->more = 0;
	lose_alignment(s, stream, write.sequence, STAT_UNPARSED_PIPELINED);
	if (to.port != CANARY_PORT)
		count_unread(STAT_UNPARSED_PIPELINED, counted_transport(&to), 1, !is_kernel_thread());
	return 0;
}

#endif
