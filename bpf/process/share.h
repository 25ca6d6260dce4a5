/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Fair shares: what one user takes of the maps and of the ring of events leaves room for others.
 */
#ifndef DNSPROBE_PROCESS_SHARE_H
#define DNSPROBE_PROCESS_SHARE_H

#include "kernel_read.h"
#include "maps.h"

/* BPF_RINGBUF_HDR_SZ of include/uapi/linux/bpf.h */
#define RING_HEADER 8

/* include/linux/user_namespace.h, create_user_ns(): a user namespace is at most that deep. */
#define USER_NS_LEVELS 33

/* Returns the user who is responsible for a process. In a user namespace, that is the user who has made the outermost
 * one: inside, a process can take the ids of other users (/etc/subuid). */
static __always_inline u32 responsible_user(u64 credentials)
{
	u32 user = read_u32(credentials + CRED_UID);

	if (!IS_THERE(CRED_USER_NS) || !IS_THERE(USER_NS_LEVEL) || !IS_THERE(USER_NS_PARENT) ||
	    !IS_THERE(USER_NS_OWNER))
		return user;

	u64 namespace = read_u64(credentials + CRED_USER_NS);
	u32 level = read_u32(namespace + USER_NS_LEVEL);

	/* The initial one has level 0. */
	for (u32 i = 0; i < USER_NS_LEVELS; i++) {
		if (level <= 1)
			break;
		namespace = read_u64(namespace + USER_NS_PARENT);
		level = read_u32(namespace + USER_NS_LEVEL);
	}
	return level ? read_u32(namespace + USER_NS_OWNER) : user;
}

/* Returns the share of a task: that of its user or, for root, of its control group. */
static __always_inline u64 share_of(u64 task)
{
	/* Not `cred`, which the kernel replaces while it works for another (override_creds()). */
	u32 user = responsible_user(read_u64(task + (IS_THERE(TASK_REAL_CRED) ? TASK_REAL_CRED : TASK_CRED)));

	if (user || !IS_THERE(TASK_CGROUPS) || !IS_THERE(CSS_SET_DFL_CGRP) || !IS_THERE(CGROUP_KN) ||
	    !IS_THERE(KERNFS_ID))
		return SHARE_OF_USER | user;

	u64 node = read_u64(read_u64(read_u64(task + TASK_CGROUPS) + CSS_SET_DFL_CGRP) + CGROUP_KN);

	return SHARE_OF_CGROUP | (read_u64(node + KERNFS_ID) & (SHARE_OF_CGROUP - 1));
}

/* Returns the share of a task, which has an entry in MAP(SHARES). */
static __always_inline u64 find_share(u64 task)
{
	u64 share = share_of(task);
	const void *none;

	if (bpf_map_lookup_elem(MAP(SHARES), &share))
		return share;
	none = get_zeros();
	if (none)
		bpf_map_update_elem(MAP(SHARES), &share, (void *)none, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(SHARES), &share) ? share : SHARE_OF_OTHERS;
}

/*
 * Takes room for an entry of a map or for an event. False if the share has had its part: it may have only as much as is
 * left for others. So one user gets at most half of the room, two get a third each, and there is always room for the
 * next one: A. K. Choudhury and E. L. Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
 * IEEE/ACM Transactions on Networking 6 (1998).
 */
static __always_inline bool take_room(u64 share, u32 resource, u64 units)
{
	/* Verifier: an index that was on the stack has no bounds any more. */
	u64 key = WHOLE_WORD(resource);
	u64 *room = bpf_map_lookup_elem(MAP(ROOM), &key);
	u64 *taken = bpf_map_lookup_elem(MAP(TAKEN), &key);
	struct share *own = bpf_map_lookup_elem(MAP(SHARES), &share);
	struct returned *returned = bpf_map_lookup_elem(MAP(RETURNED), &share);

	/* User space has just removed the share, because it used nothing. */
	if (!room || !taken || !own)
		return true;

	u64 used = own->used[resource] - (returned ? returned->units[resource] : 0);

	if ((s64)(used + units) > (s64)(*room - *taken)) {
		__sync_fetch_and_add(&own->refused[resource], 1);
		return false;
	}
	__sync_fetch_and_add(&own->used[resource], units);
	__sync_fetch_and_add(taken, units);
	return true;
}

/* Gives back what take_room() took. */
static __always_inline void give_back(u64 share, u32 resource, u64 units)
{
	u64 key = WHOLE_WORD(resource); /* as in take_room() */
	u64 *taken = bpf_map_lookup_elem(MAP(TAKEN), &key);
	struct share *own = bpf_map_lookup_elem(MAP(SHARES), &share);

	if (!taken || !own)
		return;
	__sync_fetch_and_add(&own->used[resource], -units);
	__sync_fetch_and_add(taken, -units);
}

/* Returns how many octets of the ring a record takes: kernel/bpf/ringbuf.c, __bpf_ringbuf_reserve(). */
static __always_inline u64 ring_room(u64 size)
{
	return (size + RING_HEADER + 7) & ~7ULL;
}

#endif
