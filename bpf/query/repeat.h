/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Repeated queries: process, name, type, class and transport are the same. The first one causes an event; after it, one
 * in each interval does.
 */
#ifndef DNSPROBE_QUERY_REPEAT_H
#define DNSPROBE_QUERY_REPEAT_H

#include "scratch.h"

static __always_inline void set_seen_key(struct seen_key *key, const struct scratch *s)
{
	key->start_ns = s->process.start_ns;
	key->name_hash = s->question.hash;
	key->tgid = s->process.tgid;
	key->qtype = s->question.qtype;
	key->qclass = s->question.qclass;
	key->transport = s->event.transport;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
}

/* True unless the same query caused an event less than settings->repeat_ns ago. Sets s->event.repeats. */
static __always_inline bool is_event_due(struct scratch *s, const struct seen_key *key, const struct settings *settings)
{
	struct seen first = { .last_ns = s->event.time_ns };
	struct seen *seen;

	s->seen_added = 0;
	s->event.repeats = 0;
	if (!settings->repeat_ns)
		return true;
	seen = bpf_map_lookup_elem(MAP(SEEN), (void *)key);
	if (!seen) {
		s->seen_added = 1;
		/* Fails if another thread of the process was first, a moment ago. */
		return bpf_map_update_elem(MAP(SEEN), (void *)key, &first, BPF_NOEXIST) != -EEXIST;
	}
	/* Signed: another CPU may have read its clock after this one. */
	if ((s64)(first.last_ns - seen->last_ns) < (s64)settings->repeat_ns) {
		__sync_fetch_and_add(&seen->repeats, 1);
		return false;
	}
	s->event.repeats = seen->repeats;
	return true;
}

/* Notes whether the event was submitted. If it was not, the next repeated query causes an event. */
static __always_inline void update_seen(struct scratch *s, const struct settings *settings, bool submitted)
{
	struct seen_key key;
	struct seen *seen;

	if (!settings->repeat_ns)
		return;
	set_seen_key(&key, s);
	if (s->seen_added) {
		if (!submitted)
			bpf_map_delete_elem(MAP(SEEN), &key);
		return;
	}
	if (!submitted)
		return;
	seen = bpf_map_lookup_elem(MAP(SEEN), &key);
	if (seen) {
		seen->repeats = 0;
		seen->last_ns = s->event.time_ns;
	}
}

#endif
