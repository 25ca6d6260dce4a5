/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What user space is told: only what is new.
 */
#ifndef DNSPROBE_SUBMIT_H
#define DNSPROBE_SUBMIT_H

#include "count.h"
#include "device.h"
#include "identity.h"

/* A hook that both families pass may serve one of them alone. */
#ifndef SERVED_FAMILY
#define SERVED_FAMILY(family) true
#endif

/* Hands the event over, whose chain is there already. */
static __always_inline bool submit_event(void *ring, struct scratch *s)
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
		return false;
	/* Newer compilers compare one copy of the number and use another, whose bound the verifier does not know. */
	KEEP_BELOW_64(processes);
	return bpf_ringbuf_output(ring, event,
				  __builtin_offsetof(struct event, chain.process) + processes * sizeof(struct process),
				  0) == 0;
}

/* Submits the event unless one like it was submitted less than settings->repeat_ns ago. */
static __always_inline void submit_new(struct scratch *s, const struct settings *settings,
				       const struct process_key *process, u64 leader, bool walked)
{
	u64 now = bpf_ktime_get_ns();
	struct seen_key key = {
		.start_ns = process->start_ns,
		.name_hash = s->question.hash,
		.tgid = process->tgid,
		.qtype = s->question.qtype,
		.transport = s->event.transport,
	};
	struct seen first = { .last_ns = now };
	struct seen *seen = NULL;

	s->event.repeats = 0;
	if (settings->repeat_ns) {
		seen = bpf_map_lookup_elem(MAP(SEEN), &key);
		if (seen) {
			/* Signed: another CPU may have taken its time after we took ours. */
			if ((s64)(now - seen->last_ns) < (s64)settings->repeat_ns) {
				__sync_fetch_and_add(&seen->repeats, 1);
				return;
			}
			s->event.repeats = seen->repeats;
		} else if (bpf_map_update_elem(MAP(SEEN), &key, &first, BPF_NOEXIST) == -EEXIST) {
			return; /* another thread of the process was first, a moment ago */
		}
	}
	s->event.time_ns = now;
	if (!walked)
		walk_ancestry(&s->event.chain, leader);
	keep_identity(s, process, leader);
	if (submit_event(MAP(EVENTS), s)) {
		count_statistic(STAT_EVENTS);
		if (seen) {
			seen->repeats = 0;
			seen->last_ns = now;
		}
		return;
	}
	count_statistic(STAT_LOST_RING_FULL);
	/* The next one like it gets another chance. */
	if (settings->repeat_ns && !seen)
		bpf_map_delete_elem(MAP(SEEN), &key);
}

/* True where a rule, or the canaries' name, and the port go together: nothing else that is sent to their port counts.
 */
static __always_inline bool fits_port(u32 rule, u16 port)
{
	return (rule == CANARY) == (port == CANARY_PORT);
}

/* Counts and tells a query whose question and destination are in the scratch space, and for which match_name() found
 * `rule`. */
static __always_inline void take_query(struct scratch *s, const struct settings *now, u32 rule)
{
	struct process_key process;
	bool walked = false;

	hash_name(s, now);

	u64 leader = current_process(&process);
	u32 generation = now->generation;

	s->event.transport = s->to.transport;
	s->event.generation = generation;
	s->event.kind = KIND_QUERY;
	if (rule == CANARY) {
		s->event.kind = KIND_CANARY;
		s->event.rule = rule;
		s->event.repeats = 0;
		s->event.time_ns = bpf_ktime_get_ns();
		walk_ancestry(&s->event.chain, leader);
		submit_event(MAP(CANARIES), s);
		return;
	}
	if (rule == DECIDE) {
		struct name *name = bpf_map_lookup_elem(MAP(NAMES), &s->question.hash);

		if (name && name->generation == generation)
			rule = name->verdict;
		if (rule == NO_RULE)
			return;
		if (rule == DECIDE) {
			s->event.kind = KIND_UNDECIDED;
			if (!count_pending(s, generation, name != NULL, s->to.transport, &process, leader, &walked)) {
				count_statistic(STAT_UNDECIDED_NAMES_FULL);
				return;
			}
		}
	}
	s->event.rule = rule;
	if (rule != DECIDE)
		count_query(s, rule, s->to.transport, &process, leader, &walked);
	submit_new(s, now, &process, leader, walked);
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
	take_query(s, now, rule);
	return 0;
}

#endif
