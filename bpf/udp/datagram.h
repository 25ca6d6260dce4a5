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

/* Counts the query in the scratch space, if a rule matches, and remembers the outcome. If its question is not read,
 * s->unread is the reason. */
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
	reverse_name(s);

	u32 rule = match_name(s);

	if (!rule_fits_port(rule, s->to.port))
		return;
	/* A rule may match a question that is not read. So such packets are counted even if no rule matches the first
	 * question. */
	if (dns->questions != __builtin_bswap16(1))
		count_statistic(STAT_UNPARSED_QUESTIONS);
	identify_query(s, settings);
	s->repeatable = s->question.plain && may_be_recent(dns, s->to.port);
	s->outcome = NO_RULE;
	if (rule != NO_RULE)
		handle_query(s, settings, rule);
}

/* Handles a message that read_question() could not read: its question has a pointer, or it is counted as unread. In a
 * packet of several, only one of them is handled in a run, so that the verifier follows this once. */
static __always_inline void handle_odd_message(struct scratch *s, const struct settings *settings,
					       struct __sk_buff *packet, bool in_packet)
{
	s->rule = UNREAD;
	/* FORGET, here and below: with registers, the verifier would follow this once for each way through
	 * read_question(). */
	if (FORGET(s->question.has_pointer) && join_question(s, packet, in_packet)) {
		reverse_name(s);
		s->rule = match_name(s);
	} else if (s->to.port != CANARY_PORT) {
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
