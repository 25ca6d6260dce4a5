/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Who started whom. The kernel gives the children of a process that ends to another parent, and forgets; here they keep
 * who forked them. A process leaves the map when it has ended and has no children there; user space sees to the rest.
 */
#ifndef DNSPROBE_PROCESS_LINEAGE_H
#define DNSPROBE_PROCESS_LINEAGE_H

#include "kernel_read.h"
#include "verifier.h"
#include "maps.h"

/* Ended ancestors that one exit takes along, at most. */
#define FORGOTTEN_AT_ONCE 8

static __always_inline void set_key(struct ancestor_key *key, u32 tgid, u64 start_ns)
{
	key->start_ticks = start_ns / TICK_NS;
	key->tgid = tgid;
	key->pad = 0;
}

/* Returns what is known of a process; NULL where that is another one, of the same pid and the same tick. */
static __always_inline struct ancestor *find_ancestor(const struct ancestor_key *key, u64 start_ns)
{
	struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), (void *)key);

	return ancestor && (!ancestor->start_ns || ancestor->start_ns == start_ns) ? ancestor : NULL;
}

static __always_inline bool add_ancestor(const struct ancestor_key *key, const struct ancestor *ancestor)
{
	if (bpf_map_update_elem(MAP(LINEAGE), (void *)key, (void *)ancestor, BPF_ANY)) {
		count_statistic(STAT_LINEAGE_FULL);
		return false;
	}
	count_statistic(STAT_LINEAGE_ADDED);
	return true;
}

/* Adds a process that has a child and is not here. At the start, who its parent is now is all that can be known; later,
 * its fork was missed, and its parent now may be another than its parent then. */
static __always_inline struct ancestor *add_unseen(const struct ancestor_key *key, u64 leader, u64 start_ns)
{
	struct settings *settings = get_settings();
	struct ancestor ancestor = { .start_ns = start_ns, .has_others = 1 };

	if (settings && settings->seeding) {
		u64 parent = read_u64(read_u64(leader + TASK_REAL_PARENT) + TASK_GROUP_LEADER);

		set_key(&ancestor.parent, read_u32(parent + TASK_TGID), read_u64(parent + TASK_START_BOOTTIME));
	} else {
		ancestor.parent_lost = 1;
	}
	bpf_probe_read_kernel(ancestor.comm, COMM_SIZE, (void *)(leader + TASK_COMM));
	return add_ancestor(key, &ancestor) ? find_ancestor(key, start_ns) : NULL;
}

/* `leader` is that of the thread group that forks: with CLONE_PARENT, the child's parent is another. */
static __always_inline int follow_fork(u64 leader, u64 child)
{
	struct ancestor_key key;
	struct ancestor added = {};
	u64 start_ns = read_u64(leader + TASK_START_BOOTTIME);

	if (read_u64(child + TASK_GROUP_LEADER) != child)
		return 0; /* a thread */
	set_key(&added.parent, read_u32(leader + TASK_TGID), start_ns);

	struct ancestor *parent = find_ancestor(&added.parent, start_ns);

	if (!parent)
		parent = add_unseen(&added.parent, leader, start_ns);
	if (parent) {
		__sync_fetch_and_add(&parent->children, 1);
		added.counted_by_parent = 1;
	}
	added.start_ns = read_u64(child + TASK_START_BOOTTIME);
	bpf_probe_read_kernel(added.comm, COMM_SIZE, (void *)(child + TASK_COMM));
	set_key(&key, read_u32(child + TASK_TGID), added.start_ns);
	if (!add_ancestor(&key, &added) && parent)
		__sync_fetch_and_add(&parent->children, -1);
	return 0;
}

static __always_inline int follow_rename(u64 task, u64 comm)
{
	struct ancestor_key key;
	u64 start_ns = read_u64(task + TASK_START_BOOTTIME);

	if (read_u64(task + TASK_GROUP_LEADER) != task)
		return 0;
	set_key(&key, read_u32(task + TASK_TGID), start_ns);

	struct ancestor *ancestor = find_ancestor(&key, start_ns);

	if (ancestor)
		bpf_probe_read_kernel_str(ancestor->comm, COMM_SIZE, (void *)comm);
	return 0;
}

/*
 * Takes an ended process out that has no children, and its parent if that one only waited for it, and so on. Of two
 * CPUs that come here for the same one, delete lets one go on.
 */
static __always_inline void forget_ancestor(struct ancestor_key *key)
{
	for (u32 i = 0; i < FORGOTTEN_AT_ONCE; i++) {
		struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), key);

		if (!ancestor)
			return;

		struct ancestor_key parent_key = ancestor->parent;
		bool counted = ancestor->counted_by_parent;

		if (bpf_map_delete_elem(MAP(LINEAGE), key) || !counted)
			return;

		struct ancestor *parent = bpf_map_lookup_elem(MAP(LINEAGE), &parent_key);

		if (!parent)
			return;
		__sync_fetch_and_add(&parent->children, -1);
		if (!FORGET(parent->exited) || FORGET(parent->children) || parent->has_others)
			return;
		*key = parent_key;
	}
}

static __always_inline int follow_exit(u64 task)
{
	struct ancestor_key key;
	u64 leader = read_u64(task + TASK_GROUP_LEADER);
	u64 start_ns = read_u64(leader + TASK_START_BOOTTIME);

	/* Counted down before the tracepoint (kernel/exit.c, do_exit()): other threads go on. */
	if (read_u32(read_u64(task + TASK_SIGNAL) + SIGNAL_LIVE))
		return 0;
	set_key(&key, read_u32(leader + TASK_TGID), start_ns);

	struct ancestor *ancestor = find_ancestor(&key, start_ns);

	if (!ancestor)
		return 0;
	/* An atomic addition, for its barrier: either this sees that the last child is gone, or that child sees that
	 * this has ended. (Where it is none, as on arm64, user space finds what neither saw.) */
	__sync_fetch_and_add(&ancestor->exited, 1);
	if (FORGET(ancestor->children) || ancestor->has_others) {
		count_statistic(STAT_LINEAGE_LEFT);
		return 0;
	}
	forget_ancestor(&key);
	return 0;
}

static __always_inline bool is_same_process(const struct ancestor_key *key, const struct process *process)
{
	return key->tgid == process->tgid && key->start_ticks == process->start_ns / TICK_NS;
}

/* Says how far the lineage is that of the chain of parents, and puts the rest of it behind that chain. */
static __always_inline void walk_lineage(struct chain *chain)
{
	u32 depth = FORGET(chain->depth);
	struct ancestor_key key;
	bool differs = false;

	chain->shared = depth;
	chain->lineage_depth = 0;
	chain->lineage_cut = chain->cut;
	set_key(&key, chain->process[0].tgid, chain->process[0].start_ns);
	for (u32 i = 0; i < CHAIN_SIZE; i++) {
		/* The last one: pid 1, kthreadd, or the one behind which the chain is cut off. */
		if (i + 1 >= depth)
			return;

		struct ancestor *ancestor = find_ancestor(&key, chain->process[i].start_ns);

		if (!ancestor || ancestor->parent_lost) {
			chain->shared = i + 1;
			chain->lineage_cut = 1;
			return;
		}
		key = ancestor->parent;
		if (i + 1 < CHAIN_SIZE && !is_same_process(&key, &chain->process[i + 1])) {
			chain->shared = i + 1;
			differs = true;
			break;
		}
	}
	if (!differs)
		return;

	chain->lineage_cut = 1;
	for (u32 i = 0; i < LINEAGE_SIZE; i++) {
		struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), &key);
		u64 at = depth + i;

		if (!ancestor || depth > CHAIN_SIZE)
			return;
		KEEP_BELOW_64(at);

		struct process *process = &chain->process[at];

		process->start_ns = ancestor->start_ns ?: key.start_ticks * TICK_NS;
		process->tgid = key.tgid;
		process->exited = ancestor->exited != 0;
		__builtin_memcpy(process->comm, ancestor->comm, COMM_SIZE);
		chain->lineage_depth = i + 1;
		if (ancestor->parent_lost)
			return;
		key = ancestor->parent;
		if (!key.tgid) {
			chain->lineage_cut = 0;
			return;
		}
	}
}

#endif
