/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Lineage: which process forked which. When a process ends, the kernel gives its children another parent and forgets
 * the first one; MAP(LINEAGE) keeps it. A process is removed when it has ended and has no children in the map. User
 * space removes those that these programs miss (dnsprobe/process/lineage.py).
 */
#ifndef DNSPROBE_PROCESS_LINEAGE_H
#define DNSPROBE_PROCESS_LINEAGE_H

#include "kernel_read.h"
#include "verifier.h"
#include "maps.h"
#include "process/share.h"

/* Ended ancestors that one exit removes, at most. */
#define MAX_REMOVED 8

static __always_inline void set_ancestor_key(struct ancestor_key *key, u32 tgid, u64 start_ns)
{
	key->start_ticks = start_ns / TICK_NS;
	key->tgid = tgid;
	key->pad = 0;
}

/* Returns the entry of a process, NULL if there is none or if it is of another process with the same pid and tick. */
static __always_inline struct ancestor *find_ancestor(const struct ancestor_key *key, u64 start_ns)
{
	struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), (void *)key);

	return ancestor && (!ancestor->start_ns || ancestor->start_ns == start_ns) ? ancestor : NULL;
}

/* Replaces an entry with the same key: user space read the process from /proc first, or the exit of an earlier process
 * with the same pid was missed. The room that it takes stays with who has it. */
static __always_inline bool replace_ancestor(const struct ancestor_key *key, struct ancestor *ancestor)
{
	struct ancestor *present = bpf_map_lookup_elem(MAP(LINEAGE), (void *)key);

	if (!present)
		return false;
	ancestor->share = present->share;
	return bpf_map_update_elem(MAP(LINEAGE), (void *)key, ancestor, BPF_EXIST) == 0;
}

/* Adds the entry of a process. It takes room in the share of `task`. */
static __always_inline bool add_ancestor(const struct ancestor_key *key, struct ancestor *ancestor, u64 task)
{
	ancestor->share = find_share(task);
	if (take_room(ancestor->share, RESOURCE_LINEAGE, 1)) {
		long failed = bpf_map_update_elem(MAP(LINEAGE), (void *)key, ancestor, BPF_NOEXIST);

		if (!failed) {
			count_statistic(STAT_LINEAGE_ADDED);
			return true;
		}
		give_back(ancestor->share, RESOURCE_LINEAGE, 1);
		if (failed == -EEXIST)
			return replace_ancestor(key, ancestor);
	}
	count_statistic(STAT_LINEAGE_FULL);
	return false;
}

/*
 * Adds a process that forks and is not in the map. While user space still reads /proc at the start, the process may be
 * older than the map, and its present parent is the best that is known. Later, it is not in the map because its own
 * fork was missed, and its present parent may not be the one that forked it.
 */
static __always_inline struct ancestor *add_unseen_parent(const struct ancestor_key *key, u64 leader, u64 start_ns)
{
	struct settings *settings = get_settings();
	struct ancestor ancestor = { .start_ns = start_ns, .has_others = 1 };

	if (settings && settings->seeding) {
		u64 parent = read_u64(read_u64(leader + TASK_REAL_PARENT) + TASK_GROUP_LEADER);

		set_ancestor_key(&ancestor.parent, read_u32(parent + TASK_TGID),
				 read_u64(parent + TASK_START_BOOTTIME));
	} else {
		ancestor.parent_lost = 1;
	}
	bpf_probe_read_kernel(ancestor.comm, COMM_SIZE, (void *)(leader + TASK_COMM));
	return add_ancestor(key, &ancestor, leader) ? find_ancestor(key, start_ns) : NULL;
}

/* `leader` is the leader of the thread group that forks. With CLONE_PARENT, that is not the parent of the child. */
static __always_inline int follow_fork(u64 leader, u64 child)
{
	struct ancestor_key key;
	struct ancestor added = {};
	u64 start_ns = read_u64(leader + TASK_START_BOOTTIME);

	if (read_u64(child + TASK_GROUP_LEADER) != child)
		return 0; /* a thread */
	set_ancestor_key(&added.parent, read_u32(leader + TASK_TGID), start_ns);

	struct ancestor *parent = find_ancestor(&added.parent, start_ns);

	if (!parent)
		parent = add_unseen_parent(&added.parent, leader, start_ns);
	if (parent) {
		__sync_fetch_and_add(&parent->children, 1);
		added.counted_by_parent = 1;
	}
	added.start_ns = read_u64(child + TASK_START_BOOTTIME);
	bpf_probe_read_kernel(added.comm, COMM_SIZE, (void *)(child + TASK_COMM));
	set_ancestor_key(&key, read_u32(child + TASK_TGID), added.start_ns);
	if (!add_ancestor(&key, &added, child) && parent)
		__sync_fetch_and_add(&parent->children, -1);
	return 0;
}

static __always_inline int follow_rename(u64 task, u64 comm)
{
	struct ancestor_key key;
	u64 start_ns = read_u64(task + TASK_START_BOOTTIME);

	if (read_u64(task + TASK_GROUP_LEADER) != task)
		return 0;
	set_ancestor_key(&key, read_u32(task + TASK_TGID), start_ns);

	struct ancestor *ancestor = find_ancestor(&key, start_ns);

	if (ancestor)
		bpf_probe_read_kernel_str(ancestor->comm, COMM_SIZE, (void *)comm);
	return 0;
}

/*
 * Removes an ended process that has no children, then its parent if that has ended and has no other children, and so
 * on. If two CPUs remove the same process, only one of them succeeds and goes on.
 */
static __always_inline void remove_ended(struct ancestor_key *key)
{
	for (u32 i = 0; i < MAX_REMOVED; i++) {
		struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), key);

		if (!ancestor)
			return;

		struct ancestor_key parent_key = ancestor->parent;
		bool counted = ancestor->counted_by_parent;
		u64 share = ancestor->share;

		if (bpf_map_delete_elem(MAP(LINEAGE), key))
			return;
		give_back(share, RESOURCE_LINEAGE, 1);
		if (!counted)
			return;

		struct ancestor *parent = bpf_map_lookup_elem(MAP(LINEAGE), &parent_key);

		if (!parent)
			return;
		__sync_fetch_and_add(&parent->children, -1);
		/* Both are read after the addition: other CPUs change them. */
		if (!READ_ONCE(parent->exited) || READ_ONCE(parent->children) || parent->has_others)
			return;
		*key = parent_key;
	}
}

/*
 * Removes the ended ancestors of an ended process that are beyond what an event shows. Without this, a process that
 * forks and ends, again and again, leaves a chain that grows as long as its last child lives. An ancestor with other
 * descendants is not removed: they may show it.
 */
static __always_inline void cut_lineage(struct ancestor_key *key)
{
	for (u32 i = 0; i < LINEAGE_SIZE; i++) {
		struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), key);

		if (!ancestor || !ancestor->counted_by_parent)
			return;
		*key = ancestor->parent;
		ancestor = bpf_map_lookup_elem(MAP(LINEAGE), key);
		/* Both are read once: other CPUs change them. */
		if (!ancestor || !READ_ONCE(ancestor->exited) || READ_ONCE(ancestor->children) != 1 ||
		    ancestor->has_others)
			return;
	}
	remove_ended(key);
}

static __always_inline int follow_exit(u64 task)
{
	struct ancestor_key key;
	u64 leader = read_u64(task + TASK_GROUP_LEADER);
	u64 start_ns = read_u64(leader + TASK_START_BOOTTIME);

	/* The kernel decrements the number of live threads before the tracepoint (kernel/exit.c, do_exit()). If it is
	 * not 0, other threads go on. */
	if (read_u32(read_u64(task + TASK_SIGNAL) + SIGNAL_LIVE))
		return 0;
	set_ancestor_key(&key, read_u32(leader + TASK_TGID), start_ns);

	struct ancestor *ancestor = find_ancestor(&key, start_ns);

	if (!ancestor)
		return 0;
	/* An atomic addition, because it is a memory barrier: either this CPU sees that the last child has ended, or
	 * the CPU of that child sees that this process has ended. (On arm64 it is no barrier. If neither CPU sees it,
	 * user space removes the process.) */
	__sync_fetch_and_add(&ancestor->exited, 1);
	/* Read after the addition: other CPUs change it. */
	if (READ_ONCE(ancestor->children) || ancestor->has_others) {
		count_statistic(STAT_LINEAGE_LEFT);
		cut_lineage(&key);
		return 0;
	}
	remove_ended(&key);
	return 0;
}

static __always_inline bool is_same_process(const struct ancestor_key *key, const struct process *process)
{
	return key->tgid == process->tgid && key->start_ticks == process->start_ns / TICK_NS;
}

/* Appends the lineage, from the process of `key` on, to the `depth` processes of the chain of parents. */
static __always_inline void append_lineage(struct chain *chain, struct ancestor_key *key, u32 depth)
{
	chain->lineage_cut = 1;
	for (u32 i = 0; i < LINEAGE_SIZE; i++) {
		struct ancestor *ancestor = bpf_map_lookup_elem(MAP(LINEAGE), key);
		u64 at = depth + i;

		if (!ancestor || depth > CHAIN_SIZE)
			return;
		/* The comparison above bounds `depth`, but a register with a copy may be used here. */
		KEEP_BELOW_64(at);

		struct process *process = &chain->process[at];

		process->start_ns = ancestor->start_ns ?: key->start_ticks * TICK_NS;
		process->tgid = key->tgid;
		process->exited = ancestor->exited != 0;
		__builtin_memcpy(process->comm, ancestor->comm, COMM_SIZE);
		chain->lineage_depth = i + 1;
		if (ancestor->parent_lost)
			return;
		*key = ancestor->parent;
		if (!key->tgid) {
			chain->lineage_cut = 0;
			return;
		}
	}
}

/* Notes how many processes the lineage and the chain of parents have in common, and appends the rest of the lineage. */
static __always_inline void walk_lineage(struct chain *chain)
{
	/* With the register of walk_ancestry(), the verifier would follow this code once for each number of parents:
	 * 780,000 instructions of a program instead of 110,000 (Linux 6.18, LLVM 14). */
	u32 depth = FORGET(chain->depth);
	struct ancestor_key key;
	bool differs = false;

	chain->shared = depth;
	chain->lineage_depth = 0;
	chain->lineage_cut = chain->cut;
	set_ancestor_key(&key, chain->process[0].tgid, chain->process[0].start_ns);
	for (u32 i = 0; i < CHAIN_SIZE; i++) {
		/* This is the last process: pid 1, kthreadd, or the one at which the chain is cut off. */
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
	if (differs)
		append_lineage(chain, &key, depth);
}

#endif
