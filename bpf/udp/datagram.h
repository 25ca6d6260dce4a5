/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What all hooks for UDP do with a datagram whose first octets are in the scratch space.
 */
#ifndef DNSPROBE_UDP_DATAGRAM_H
#define DNSPROBE_UDP_DATAGRAM_H

#include "scratch.h"
#include "dns/match.h"
#include "dns/name.h"
#include "query/handler.h"
#include "query/submit.h"

/* The octets of a message that are read: up to the end of the longest question. */
#define READ_SIZE (DNS_HEADER + QUESTION_SIZE)

/*
 * True if the question may not be whole in the linear part of its packet, which has `present` octets of the message.
 * `beyond` octets of the packet are behind that part. The hook at a function cannot read them, the hook at egress can.
 * Both ask this about the same packet, so they agree about which of them handles it.
 */
static __always_inline bool is_beyond_linear(u32 present, u32 beyond)
{
	return beyond && present < READ_SIZE;
}

/*
 * True if the outcome of such a message may be in the cache: a standard query for one name, over plain UDP. The caller
 * sees to it that the DNS header is readable.
 */
static __always_inline bool may_be_recent(const struct dns *dns, u16 port)
{
	return (dns->flags & 0xf8) == 0 && dns->questions == __builtin_bswap16(1) && port != CANARY_PORT &&
	       port != PORT_MDNS && port != PORT_LLMNR;
}

/* The result if the question was read. Any other result is the statistic that counts the reason. */
#define PARSED 0

/* Reads the question of the message in the scratch space. Returns PARSED or a statistic. */
static __always_inline u32 read_question(struct scratch *s)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	/* With a register, the verifier would follow this for each way in which the caller computes the size. */
	u32 size = FORGET(s->present);

	s->question.has_pointer = 0;
	if (size >= DNS_HEADER) {
		u32 kind = classify(dns, s->to.transport);

		if (kind != STANDARD_QUERY)
			return kind;
	}
	if (size >= SHORTEST_QUERY && size <= READ_SIZE && walk_question(s, size))
		return PARSED;
	return s->beyond ? STAT_UNPARSED_NONLINEAR : STAT_UNPARSED_MALFORMED;
}

/* Begins a message, whose questions are to be read. */
static __always_inline void begin_questions(struct scratch *s)
{
	s->questions = 0;
	s->question_at = 0;
}

/* Notes where the next question of a message is, if it has another one: `end` is where the one that was read ends. Only
 * over multicast DNS, a query has several (classify()). */
static __always_inline void note_next_question(struct scratch *s, u32 end)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	u32 questions = s->questions + 1;

	s->questions = questions;
	s->question_at = questions < __builtin_bswap16(dns->questions) ? end : 0;
}

/* Prepares handle_odd_message() for the question at s->question_at, which is not the first one of its message. */
static __always_inline void prepare_next_question(struct scratch *s)
{
	s->unread = STAT_UNPARSED_QUESTIONS;
	s->question.has_pointer = s->questions < QUESTIONS_AT_MOST;
	s->repeatable = 0;
}

/* Counts the query in the scratch space, if a rule matches, and remembers the outcome. If its question is not read,
 * s->unread is the reason. If it has further questions, s->question_at is where the next one is. */
static __always_inline void handle_datagram(struct scratch *s, const struct settings *settings)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	u32 problem = read_question(s);

	s->keep_tree = 0;
	s->submit = 0;
	s->repeatable = 0;
	s->unread = problem;
	if (problem != PARSED)
		return;
	/* Not before: at the beginning of the function, this makes LLVM 19 write code with which the verifier reaches
	 * its limit. */
	s->questions = 0;
	/* FORGET: with a register, the verifier would follow this once for each length. */
	note_next_question(s, DNS_HEADER + FORGET(s->question.length) + 4);
	reverse_name(s);

	u32 rule = match_name(s);

	if (!rule_fits_port(rule, s->to.port))
		return;
	identify_query(s, settings);
	s->repeatable = s->question.plain && may_be_recent(dns, s->to.port);
	s->outcome = NO_RULE;
	if (rule != NO_RULE)
		handle_query(s, settings, rule);
}

/* Handles a message that read_question() could not read: its question has a pointer, or it is counted as unread. Or
 * handles a question that is not the first one of its message. In a packet of several messages, only one of them is
 * handled in a run, so that the verifier follows this once. */
static __always_inline void handle_odd_message(struct scratch *s, const struct settings *settings,
					       struct __sk_buff *packet, bool in_packet)
{
	s->rule = UNREAD;
	/* FORGET, here and below: with registers, the verifier would follow this once for each way through
	 * read_question(). */
	if (FORGET(s->question.has_pointer) &&
	    join_question(s, packet, in_packet, FORGET(s->question_at) ?: DNS_HEADER)) {
		note_next_question(s, FORGET(s->join.behind) + 4);
		reverse_name(s);
		s->rule = match_name(s);
	} else if (s->to.port != CANARY_PORT) {
		/* It is not known where the next question is. */
		s->question_at = 0;
		count_statistic(FORGET(s->unread));
		describe_unread(s, FORGET(s->unread));
	}
	u32 rule = FORGET(s->rule);

	if (rule == NO_RULE || !rule_fits_port(rule, s->to.port))
		return;
	identify_query(s, settings);
	handle_odd_query(s, settings, rule);
}

#endif
