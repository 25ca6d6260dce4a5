/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Counts a query, and decides whether it causes an event. This is the same for UDP and TCP.
 */
#ifndef DNSPROBE_QUERY_HANDLER_H
#define DNSPROBE_QUERY_HANDLER_H

#include "scratch.h"
#include "dns/name.h"
#include "process/ancestry.h"
#include "query/count.h"
#include "query/repeat.h"

/*
 * Counts a query whose question and destination are in the scratch space and for which match_name() found `rule`. Sets
 * s->keep_tree and s->submit for keep_and_submit().
 */
static __always_inline void handle_query(struct scratch *s, const struct settings *settings, u32 rule)
{
	struct seen_key key;

	hash_name(s, settings);
	s->leader = current_process(&s->process);
	s->event.transport = s->to.transport;
	s->event.generation = settings->generation;
	s->event.kind = rule == CANARY ? KIND_CANARY : KIND_QUERY;
	s->event.rule = rule;
	s->event.repeats = 0;
	s->event.time_ns = bpf_ktime_get_ns();
	s->submit = 1;
	if (rule == CANARY)
		return;
	s->submit = 0;
	if (rule == DECIDE) {
		struct name *name = bpf_map_lookup_elem(MAP(NAMES), &s->question.hash);

		if (name && name->generation == settings->generation)
			rule = name->verdict;
		if (rule == NO_RULE)
			return;
		s->event.rule = rule;
		if (rule == DECIDE) {
			s->event.kind = KIND_UNDECIDED;
			if (!count_pending(s, settings->generation, name != NULL, s->to.transport)) {
				count_statistic(STAT_UNDECIDED_NAMES_FULL);
				return;
			}
		}
	}
	if (rule != DECIDE)
		count_query(s, rule, s->to.transport);
	set_seen_key(&key, s);
	s->submit = is_event_due(s, &key, settings);
}

#endif
