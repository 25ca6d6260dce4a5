/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What user space is told: only what is new.
 */
#ifndef DNSPROBE_SUBMIT_H
#define DNSPROBE_SUBMIT_H

#include "query/count.h"
#include "udp/device.h"
#include "process/identity.h"

/* A hook that both families pass may serve one of them alone. */
#ifndef SERVED_FAMILY
#define SERVED_FAMILY(family) true
#endif

/* Completes the event, whose chain is there already; returns its size, or 0 where that is not to be trusted. */
static __always_inline u64 complete_event(struct scratch *s)
{
	const struct destination *to = &s->to;
	struct event *event = &s->event;
	u64 uid_gid = bpf_get_current_uid_gid();
	u64 sock = to->sock ?: read_u64(to->skb + SKB_SK);

	event->name_hash = s->question.hash;
	event->uid = uid_gid;
	event->gid = uid_gid >> 32;
	event->net_ns = IS_THERE(NET_INUM) ? read_u32(read_u64(sock + SOCK_NET) + NET_INUM) : 0;
	event->pad = 0;
	event->qtype = s->question.qtype;
	event->port = to->port;
	event->family = to->family;
	event->length = s->question.length;
	__builtin_memcpy(event->server, to->server, sizeof(event->server));
	__builtin_memcpy(event->reversed, s->key.reversed, NAME_SIZE);

	u64 processes = event->chain.depth + event->chain.lineage_depth;

	if (processes >= CHAIN_ROOM)
		return 0;
	/* Newer compilers compare one copy of the number and use another, whose bound the verifier does not know. */
	KEEP_BELOW_64(processes);
	return __builtin_offsetof(struct event, chain.process) + processes * sizeof(struct process);
}

/* True unless an event like it was submitted less than settings->repeat_ns ago. */
static __always_inline bool is_new(struct scratch *s, const struct seen_key *key, const struct settings *settings)
{
	struct seen first = { .last_ns = s->event.time_ns };
	struct seen *seen;

	s->fresh = 0;
	s->event.repeats = 0;
	if (!settings->repeat_ns)
		return true;
	seen = bpf_map_lookup_elem(MAP(SEEN), (void *)key);
	if (!seen) {
		s->fresh = 1;
		/* Or another thread of the process was first, a moment ago. */
		return bpf_map_update_elem(MAP(SEEN), (void *)key, &first, BPF_NOEXIST) != -EEXIST;
	}
	/* Signed: another CPU may have taken its time after we took ours. */
	if ((s64)(first.last_ns - seen->last_ns) < (s64)settings->repeat_ns) {
		__sync_fetch_and_add(&seen->repeats, 1);
		return false;
	}
	s->event.repeats = seen->repeats;
	return true;
}

static __always_inline void set_seen_key(struct seen_key *key, const struct scratch *s)
{
	key->start_ns = s->process.start_ns;
	key->name_hash = s->question.hash;
	key->tgid = s->process.tgid;
	key->qtype = s->question.qtype;
	key->transport = s->event.transport;
	key->pad = 0;
}

/* Remembers that an event was submitted, or that it could not be: the next one like it gets another chance. */
static __always_inline void remember(struct scratch *s, const struct settings *settings, bool submitted)
{
	struct seen_key key;
	struct seen *seen;

	if (!settings->repeat_ns)
		return;
	set_seen_key(&key, s);
	if (s->fresh) {
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

/*
 * Does what take_query() and its like found to be done, with the ancestors that all of it takes: at one place, as
 * walking them is half of the program.
 */
static __always_inline void settle(struct scratch *s, const struct settings *settings)
{
	if (!FORGET(s->counted) && !FORGET(s->tell))
		return;
	walk_ancestry(&s->event.chain, s->leader);
	if (FORGET(s->counted))
		keep_process(s);
	if (s->event.kind != KIND_CANARY)
		keep_identity(s, &s->process, s->leader);
	if (!FORGET(s->tell))
		return;

	u64 size = complete_event(s);

	if (!size)
		return;
	if (s->event.kind == KIND_CANARY) {
		bpf_ringbuf_output(MAP(CANARIES), &s->event, size, 0);
		return;
	}

	bool submitted = bpf_ringbuf_output(MAP(EVENTS), &s->event, size, 0) == 0;

	count_statistic(submitted ? STAT_EVENTS : STAT_LOST_RING_FULL);
	remember(s, settings, submitted);
}

/* True where a rule, or the canaries' name, and the port go together: nothing else that is sent to their port counts.
 */
static __always_inline bool fits_port(u32 rule, u16 port)
{
	return (rule == CANARY) == (port == CANARY_PORT);
}

/*
 * Counts a query whose question and destination are in the scratch space, and for which match_name() found `rule`; says
 * what settle() has to do.
 */
static __always_inline void take_query(struct scratch *s, const struct settings *now, u32 rule)
{
	struct seen_key key;

	hash_name(s, now);
	s->leader = current_process(&s->process);
	s->event.transport = s->to.transport;
	s->event.generation = now->generation;
	s->event.kind = rule == CANARY ? KIND_CANARY : KIND_QUERY;
	s->event.rule = rule;
	s->event.repeats = 0;
	s->event.time_ns = bpf_ktime_get_ns();
	s->tell = 1;
	if (rule == CANARY)
		return;
	s->tell = 0;
	if (rule == DECIDE) {
		struct name *name = bpf_map_lookup_elem(MAP(NAMES), &s->question.hash);

		if (name && name->generation == now->generation)
			rule = name->verdict;
		if (rule == NO_RULE)
			return;
		s->event.rule = rule;
		if (rule == DECIDE) {
			s->event.kind = KIND_UNDECIDED;
			if (!count_pending(s, now->generation, name != NULL, s->to.transport)) {
				count_statistic(STAT_UNDECIDED_NAMES_FULL);
				return;
			}
		}
	}
	if (rule != DECIDE)
		count_query(s, rule, s->to.transport);
	set_seen_key(&key, s);
	s->tell = is_new(s, &key, now);
}

/* One packet at one of the hooks, from reject to submit. */
static __always_inline int handle_packet(u64 skb, u16 known_port, u32 hook_kind)
{
	struct packet packet;

	if (!read_packet(&packet, skb, known_port) || !SERVED_FAMILY(packet.to.family))
		return 0;

	struct scratch *s = scratch(hook_kind);
	struct settings *now = settings();

	if (!s || !now)
		return 0;

	u32 problem = read_question(s, &packet);

	if (problem != PARSED) {
		if (packet.to.port != CANARY_PORT && is_first_sight(s, &packet, hook_kind))
			count_statistic(problem);
		return 0;
	}
	reverse_name(s);

	u32 rule = match_name(s);

	if (rule == NO_RULE && !s->question.segmented && !packet.several)
		return 0;
	if (!fits_port(rule, packet.to.port) || !is_first_sight(s, &packet, hook_kind))
		return 0;
	if (s->question.segmented)
		count_statistic(STAT_UNPARSED_SEGMENTED);
	if (packet.several)
		count_statistic(STAT_UNPARSED_QUESTIONS);
	if (rule == NO_RULE)
		return 0;
	s->to = packet.to;
	s->counted = 0;
	take_query(s, now, rule);
	settle(s, now);
	return 0;
}

#endif
