/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Repeated queries: process, name, type, class and transport are the same. The first one causes an event; after it, one
 * in each interval does.
 */
#ifndef DNSPROBE_QUERY_REPEAT_H
#define DNSPROBE_QUERY_REPEAT_H

#include "scratch.h"
#include "query/recent.h"

/* True unless the same query caused an event less than settings->repeat_ns ago. Sets s->event.repeats and s->quiet_ns.
 */
static __always_inline bool is_event_due(struct scratch *s, const struct settings *settings)
{
	struct seen first = { .last_ns = s->event.time_ns };
	struct seen *seen;

	s->seen_added = 0;
	s->event.repeats = 0;
	if (!settings->repeat_ns)
		return true;
	take_repeats(s->question.query_hash);
	seen = bpf_map_lookup_elem(MAP(SEEN), &s->question.query_hash);
	if (!seen) {
		s->seen_added = 1;
		/* Fails if another thread of the process was first, a moment ago. */
		return bpf_map_update_elem(MAP(SEEN), &s->question.query_hash, &first, BPF_NOEXIST) != -EEXIST;
	}

	/* Signed: another CPU may have read its clock after this one. */
	s64 left = settings->repeat_ns - (first.last_ns - seen->last_ns);

	if (left > 0) {
		__sync_fetch_and_add(&seen->repeats, 1);
		s->quiet_ns = left;
		return false;
	}
	/* Two runs that take the repeats of a slot at once take them twice, and the slot goes below zero. */
	s->event.repeats = (s64)seen->repeats > 0 ? seen->repeats : 0;
	return true;
}

/* Notes whether the event was submitted. If it was not, the next repeated query causes an event. */
static __always_inline void update_seen(struct scratch *s, const struct settings *settings, bool submitted)
{
	struct seen *seen;

	if (!settings->repeat_ns)
		return;
	if (submitted)
		s->quiet_ns = settings->repeat_ns;
	if (s->seen_added) {
		if (!submitted)
			bpf_map_delete_elem(MAP(SEEN), &s->question.query_hash);
		return;
	}
	if (!submitted)
		return;
	seen = bpf_map_lookup_elem(MAP(SEEN), &s->question.query_hash);
	if (seen) {
		seen->repeats = 0;
		seen->last_ns = s->event.time_ns;
	}
}

#endif
