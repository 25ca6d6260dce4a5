/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Exact counters. The entry of a live process is never deleted, so no increment through a pointer to it is lost.
 */
#ifndef DNSPROBE_QUERY_COUNT_H
#define DNSPROBE_QUERY_COUNT_H

#include "verifier.h"
#include "scratch.h"
#include "process/current.h"
#include "process/share.h"
#include "query/server.h"

/* True if the current task sends on the packet of another one. FORGET: with a register, the verifier would follow all
 * that comes behind once for each outcome of find_sender(). */
#define IS_SENT_ON(s) FORGET((s)->sent_on)
/* True if the asker is the one that a TCP connection has noted: it may have ended. */
#define IS_NOTED(s) (FORGET((s)->sent_on) == NOTED)

/* Finds out whether the current task asks, at a hook in front of the firewall. If it is a thread of the kernel, it is
 * not known who does. */
static __always_inline void exclude_kernel_thread(struct scratch *s)
{
	s->sent_on = is_kernel_thread();
	if (!s->sent_on)
		return;
	s->leader = 0;
	__builtin_memset(&s->process, 0, sizeof(s->process));
}

/* Sets the share of the process that asks, and the type under which its query is counted. */
static __always_inline void set_share(struct scratch *s, u64 thread)
{
	u64 index = WHOLE_WORD(s->question.qtype / 64);
	u64 *known = bpf_map_lookup_elem(MAP(QTYPES), &index);

	if (!IS_NOTED(s))
		s->share = thread ? find_share(thread) : SHARE_OF_NOBODY;
	s->counted_qtype = known && *known >> s->question.qtype % 64 & 1 ? s->question.qtype : OTHER_QTYPE;
}

#ifdef ANSWERS
/* Makes the counter of `key`. It is too large for the stack, so it is all zero first. User space leaves a counter
 * without queries alone. False if there is one, or if the map is full. */
static __always_inline bool make_counter(u64 share, void *map, const void *key, u64 number)
{
	const void *none = get_zeros();
	COUNTER *count;

	if (!none || bpf_map_update_elem(map, (void *)key, (void *)none, BPF_NOEXIST))
		return false;
	count = bpf_map_lookup_elem(map, (void *)key);
	if (!count)
		return true;
	count->share = share;
	__sync_fetch_and_add(&count->queries, number);
	return true;
}
#else
static __always_inline bool make_counter(u64 share, void *map, const void *key, u64 number)
{
	COUNTER first = { .queries = number, .share = share };

	return bpf_map_update_elem(map, (void *)key, &first, BPF_NOEXIST) == 0;
}
#endif

/* Adds `number` to the counter of `key`. False if the map or the share has no room for a new key. `added`: the key is
 * new. */
static __always_inline bool add_to_count(u64 share, void *map, u32 resource, const void *key, u64 number, bool *added)
{
	COUNTER *count = bpf_map_lookup_elem(map, (void *)key);

	*added = false;
	if (!count) {
		if (take_room(share, resource, 1)) {
			if (make_counter(share, map, key, number)) {
				count_statistic(STAT_COUNTERS_ADDED);
				*added = true;
				return true;
			}
			give_back(share, resource, 1);
		}
		/* Another CPU was first, or there is no room. */
		count = bpf_map_lookup_elem(map, (void *)key);
		if (!count)
			return false;
	}
	__sync_fetch_and_add(&count->queries, number);
	return true;
}

/* Keeps the tree of a process with a new counter. Its events may get lost, but each counter needs a tree. */
static __always_inline void keep_tree(const struct process_key *process, const struct chain *chain, u64 share)
{
	if (take_room(share, RESOURCE_PROCESSES, 1)) {
		long failed = bpf_map_update_elem(MAP(PROCESSES), (void *)process, (void *)chain, BPF_NOEXIST);

		if (!failed)
			return;
		give_back(share, RESOURCE_PROCESSES, 1);
		/* Another thread of the process was first. */
		if (failed == -EEXIST)
			return;
	}
	count_statistic(STAT_UNATTRIBUTED_PROCESSES_FULL);
}

static __always_inline bool is_tree_kept(const struct process_key *process)
{
	return bpf_map_lookup_elem(MAP(PROCESSES), (void *)process) != NULL;
}

/* Counts a query for a rule. `transport` is that of counted_transport(), here and below. The caller has called
 * number_server(). False if there is no room: then it is counted in the overflow counter of the rule. */
static __always_inline bool count_query(struct scratch *s, u32 rule, u8 transport)
{
	/* Not on the stack: see WHOLE_WORD. */
	struct count_key *key = &s->count_key;
	bool added;

	__builtin_memset(key, 0, sizeof(*key));
	key->start_ns = s->process.start_ns;
	key->tgid = s->process.tgid;
	key->rule = rule;
	key->qtype = s->counted_qtype;
	key->transport = transport;
	key->server = SERVER_OF(s);
	if (!add_to_count(s->share, MAP(COUNTS), RESOURCE_COUNTERS, key, 1, &added)) {
		u64 index = WHOLE_WORD(rule);
		u64 *overflow = bpf_map_lookup_elem(MAP(OVERFLOW), &index);

		count_statistic(STAT_UNATTRIBUTED_COUNTERS_FULL);
		if (overflow)
			__sync_fetch_and_add(overflow, 1);
		return false;
	}
	s->keep_tree = added && !is_tree_kept(&s->process);
	return true;
}

/* Counts messages that are not read, without an event, and without the server. `process` has the tgid 0 if it is not
 * known who asks. */
static __always_inline void count_unread_of(const struct process_key *process, u64 share, u32 reason, u8 transport,
					    u64 number)
{
	struct count_key key = {
		.start_ns = process->start_ns,
		.tgid = process->tgid,
		.rule = UNREAD,
		.qtype = reason,
		.transport = transport,
	};
	u32 rule = UNREAD;
	bool added;

	add_statistic(reason, number);
	if (add_to_count(share, MAP(COUNTS), RESOURCE_COUNTERS, &key, number, &added))
		return;

	u64 *overflow = bpf_map_lookup_elem(MAP(OVERFLOW), &rule);

	count_statistic(STAT_UNATTRIBUTED_COUNTERS_FULL);
	if (overflow)
		__sync_fetch_and_add(overflow, number);
}

/*
 * As count_unread_of(), where there is no scratch space. `is_asker`: the current task is the one that asks, otherwise
 * it is not known. If the process has no tree yet, user space looks for it in /proc.
 */
static __always_inline void count_unread(u32 reason, u8 transport, u64 number, bool is_asker)
{
	struct process_key process = {};
	u64 share = SHARE_OF_NOBODY;

	if (is_asker) {
		current_process(&process);
		share = find_share(bpf_get_current_task());
	}
	count_unread_of(&process, share, reason, transport, number);
}

/* Counts a query whose rule user space has to decide, and keeps its name, unless it is `known`. False if there is no
 * room. */
static __always_inline bool count_pending(struct scratch *s, u32 generation, bool known, u8 transport)
{
	/* Not on the stack: see WHOLE_WORD. */
	struct pending_key *key = &s->pending_key;
	u64 hash = s->question.hash;
	bool added;

	if (!known) {
		if (!take_room(s->share, RESOURCE_NAMES, 1))
			return false;
		s->name.verdict = DECIDE;
		s->name.generation = generation;
		s->name.length = s->question.length;
		__builtin_memcpy(s->name.reversed, s->key.reversed, NAME_SIZE);
		s->name.share = s->share;
		if (bpf_map_update_elem(MAP(NAMES), &hash, &s->name, BPF_NOEXIST) == 0)
			count_statistic(STAT_NAMES_ADDED);
		else
			give_back(s->share, RESOURCE_NAMES, 1);
		/* If another CPU was first, the name is there as well. */
		if (!bpf_map_lookup_elem(MAP(NAMES), &hash))
			return false;
	}
	__builtin_memset(key, 0, sizeof(*key));
	key->start_ns = s->process.start_ns;
	key->name_hash = hash;
	key->tgid = s->process.tgid;
	key->generation = generation;
	key->qtype = s->counted_qtype;
	key->transport = transport;
	key->server = SERVER_OF(s);
	if (!add_to_count(s->share, MAP(PENDING), RESOURCE_PENDING, key, 1, &added))
		return false;
	s->keep_tree = added && !is_tree_kept(&s->process);
	return true;
}

#endif
