/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Counts a query, and decides whether it causes an event. This is the same for UDP and TCP.
 */
#ifndef DNSPROBE_QUERY_HANDLER_H
#define DNSPROBE_QUERY_HANDLER_H

#include "scratch.h"
#include "answers/note.h"
#include "dns/name.h"
#include "process/ancestry.h"
#include "query/count.h"
#include "query/recent.h"
#include "query/repeat.h"

/* Notes which process asks what: the process and the hashes by which the query is looked up. */
static __always_inline void identify_query(struct scratch *s, const struct settings *settings)
{
	u32 type_class = __builtin_bswap16(s->question.qtype) | __builtin_bswap16(s->question.qclass) << 16;

	hash_name(s, settings);
	if (!IS_SENT_ON(s))
		s->leader = current_process(&s->process);
	s->question.query_hash = hash_query(s->question.sums, settings, type_class, s->to.transport, &s->process);
}

/* Describes a message that is not read as a query, for handle_query() with the rule UNREAD. `reason` is the statistic
 * that counts it. Such messages are all the same query, by their process, reason and transport. */
static __always_inline void describe_unread(struct scratch *s, u32 reason)
{
	s->question.length = 0;
	s->question.labels = 0;
	s->question.qtype = reason;
	s->question.qclass = 0;
	s->repeatable = 0;
}

/* Sets the fields of the event that only the time, the rule and the transport decide. */
static __always_inline void begin_event(struct scratch *s, const struct settings *settings, u32 rule)
{
	s->event.transport = s->to.transport;
	s->event.generation = settings->generation;
	s->event.kind = rule == CANARY ? KIND_CANARY : KIND_QUERY;
	s->event.rule = rule;
	s->event.repeats = 0;
	forget_query_id(s);
	s->event.time_ns = bpf_ktime_get_ns();
}

/*
 * Counts a message whose question and destination are in the scratch space, which identify_query() has read and for
 * which match_name() found `rule`. Sets s->keep_tree and s->submit for keep_and_submit(), and s->outcome. If it is not
 * known who asks, the query is counted for the process with tgid 0, which does not exist, and causes no event.
 */
static __always_inline void handle_query(struct scratch *s, const struct settings *settings, u32 rule)
{
	begin_event(s, settings, rule);
	s->outcome = DECIDE;
	s->quiet_ns = 0;

	set_share(s, IS_SENT_ON(s) ? s->leader : bpf_get_current_task());
	s->submit = !IS_SENT_ON(s) || s->leader;
	/* Canaries are noted, but not counted. */
	if (rule == CANARY && TRACKS_ANSWERS)
		goto note;
	if (rule == CANARY)
		return;
	s->submit = 0;

	const struct name *name = NULL;

	if (rule == DECIDE) {
		name = bpf_map_lookup_elem(MAP(NAMES), &s->question.hash);
		if (name && name->generation == settings->generation)
			rule = name->verdict;
		if (rule == NO_RULE) {
			s->outcome = NO_RULE;
			return;
		}
		s->event.rule = rule;
	}
	number_server(s);
	if (rule == DECIDE) {
		s->event.kind = KIND_UNDECIDED;
		if (!count_pending(s, settings->generation, name != NULL, counted_transport(&s->to))) {
			count_statistic(STAT_UNDECIDED_NAMES_FULL);
			return;
		}
	}
	if (rule != DECIDE && count_query(s, rule, counted_transport(&s->to)))
		s->outcome = rule;
	else if (TRACKS_ANSWERS && rule != DECIDE)
		goto counted;
note:
	note_query(s, settings);
	/* FORGET: as in handle_odd_query(). */
	if (TRACKS_ANSWERS && FORGET(s->event.rule) == CANARY)
		return;
counted:
	/* Read again: there is no room on the stack of egress_slow to keep it. */
	if (IS_SENT_ON(s) && !FORGET(s->leader)) {
		count_statistic(STAT_UNATTRIBUTED_SENT_ON);
		s->keep_tree = 0;
		s->outcome = DECIDE;
		return;
	}
	s->submit = is_event_due(s, settings);
}

/* As handle_query(), for a message that is not read as a query if `rule` is UNREAD, otherwise for a query. */
static __always_inline void handle_odd_query(struct scratch *s, const struct settings *settings, u32 rule)
{
	handle_query(s, settings, rule);
	/* FORGET: with a register, the verifier would follow handle_query() once for each. */
	if (FORGET(s->rule) != UNREAD)
		return;
	s->event.kind = KIND_UNREAD;
	/* Over TCP, dnsmasq answers a response. No server does so over UDP, and each answer of multicast DNS is one. */
	if (s->question.qtype == STAT_OTHER_RESPONSE && s->to.transport != TRANSPORT_TCP)
		s->submit = 0;
}

/* Remembers the outcome of a query for the next one that is the same. Called after keep_and_submit(). */
static __always_inline void remember_query(struct scratch *s, const struct settings *settings)
{
	/* FORGET: with registers, the verifier would follow this once for each branch of handle_query(). */
	u32 rule = FORGET(s->outcome);

	if (!FORGET(s->repeatable) || rule == DECIDE || (rule != NO_RULE && !s->quiet_ns))
		return;
	/* count_recent() counts under the type in the question. */
	if (rule != NO_RULE && s->counted_qtype != s->question.qtype)
		return;
	take_repeats(s->question.query_hash);
	remember_outcome(s->question.query_hash, rule, s->quiet_ns, settings->generation);
}

#endif
