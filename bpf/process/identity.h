/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The identity of a process: program, arguments, cgroup, namespaces. It is read while the process sends. A fact whose
 * members this kernel does not have (NOT_THERE) is not known.
 */
#ifndef DNSPROBE_PROCESS_IDENTITY_H
#define DNSPROBE_PROCESS_IDENTITY_H

#include "kernel_read.h"
#include "verifier.h"
#include "scratch.h"
#include "process/share.h"

/* Steps of a path that are read: names, and mounts. */
#define PATH_STEPS 24
/* NAME_MAX of include/uapi/linux/limits.h, and the NUL. */
#define PATH_NAME_SIZE 256

/*
 * Appends a name to a path. False if there is no room. The helper may write up to PATH_NAME_SIZE octets behind the
 * path, over fields of struct identity that read_identity() writes later.
 */
static __always_inline bool append_name(struct path *path, u64 name)
{
	/* With a register, the verifier would track another sum of lengths after each step of the calling loop. */
	u64 at = FORGET(path->length);

	if (at >= PATH_SIZE)
		return false;
	/* The comparison above may be with a copy of `at`. */
	KEEP_BELOW_512(at);

	long size = bpf_probe_read_kernel_str(path->names + at, PATH_NAME_SIZE, (void *)name);

	if (size <= 1 || at + size > PATH_SIZE)
		return false;
	path->length = at + size;
	return true;
}

static __always_inline void read_cgroup(struct path *path, u64 task)
{
	path->length = 0;
	path->whole = 0;
	if (!IS_THERE(TASK_CGROUPS) || !IS_THERE(CSS_SET_DFL_CGRP) || !IS_THERE(CGROUP_KN) || !IS_THERE(KERNFS_NAME) ||
	    !IS_THERE(KERNFS_PARENT))
		return;

	u64 node = read_u64(read_u64(read_u64(task + TASK_CGROUPS) + CSS_SET_DFL_CGRP) + CGROUP_KN);

	for (u32 i = 0; i < PATH_STEPS; i++) {
		u64 parent = read_u64(node + KERNFS_PARENT);

		/* The root has no name. */
		if (!parent) {
			path->whole = 1;
			return;
		}
		if (!append_name(path, read_u64(node + KERNFS_NAME)))
			return;
		node = parent;
	}
}

static __always_inline u32 number_of_user_ns(u64 user_ns)
{
	return IS_THERE(USER_NS_INUM) && user_ns ? read_u32(user_ns + USER_NS_INUM) : 0;
}

/* Whoever may mount in a mount namespace decides what a path means there, and a process can run a program from another
 * one (/proc/PID/root). */
static __always_inline u32 owner_of_mount(u64 mount)
{
	if (!IS_THERE(MOUNT_MNT_NS) || !IS_THERE(MNT_NS_USER_NS))
		return 0;

	u64 mnt_ns = read_u64(mount + MOUNT_MNT_NS);

	return mnt_ns ? number_of_user_ns(read_u64(mnt_ns + MNT_NS_USER_NS)) : 0;
}

/* Goes the way of d_path() (fs/d_path.c, prepend_path()): up to the root of a mount, then on from the mount point. */
static __always_inline void read_exe(struct path *path, u64 mm, u32 *owner)
{
	*owner = 0;
	path->length = 0;
	path->whole = 0;
	if (!IS_THERE(MM_EXE_FILE) || !IS_THERE(FILE_PATH_MNT) || !IS_THERE(FILE_PATH_DENTRY) ||
	    !IS_THERE(DENTRY_NAME) || !IS_THERE(DENTRY_PARENT) || !IS_THERE(VFSMOUNT_ROOT) || !IS_THERE(MOUNT_MNT) ||
	    !IS_THERE(MOUNT_PARENT) || !IS_THERE(MOUNT_MOUNTPOINT))
		return;

	u64 file = read_u64(mm + MM_EXE_FILE);

	/* A kernel thread has no program. */
	if (!file)
		return;

	u64 dentry = read_u64(file + FILE_PATH_DENTRY);
	u64 mount = read_u64(file + FILE_PATH_MNT) - MOUNT_MNT;

	*owner = owner_of_mount(mount);

	for (u32 i = 0; i < PATH_STEPS; i++) {
		u64 above = read_u64(dentry + DENTRY_PARENT);

		if (dentry == read_u64(mount + MOUNT_MNT + VFSMOUNT_ROOT)) {
			u64 parent = read_u64(mount + MOUNT_PARENT);

			if (parent == mount) {
				path->whole = 1;
				return;
			}
			dentry = read_u64(mount + MOUNT_MOUNTPOINT);
			mount = parent;
			continue;
		}
		/* A file in no folder, such as one of memfd_create(2), is its own parent. */
		if (!append_name(path, read_u64(dentry + DENTRY_NAME)) || above == dentry)
			return;
		dentry = above;
	}
}

/* Returns the inode number of a namespace: `member` is its offset in struct nsproxy, `inum` that of its number. */
static __always_inline u32 namespace(u64 task, u32 member, u32 inum)
{
	if (!IS_THERE(TASK_NSPROXY) || !IS_THERE(member) || !IS_THERE(inum))
		return 0;
	return read_u32(read_u64(read_u64(task + TASK_NSPROXY) + member) + inum);
}

/* sizeof(struct upid) of include/linux/pid.h: a number and a pointer */
#define UPID_SIZE 16

/* The pid namespace of the process itself. The one in nsproxy is for its children (include/linux/nsproxy.h). */
static __always_inline u32 pid_namespace(u64 task)
{
	if (!IS_THERE(TASK_THREAD_PID) || !IS_THERE(PID_LEVEL) || !IS_THERE(PID_NUMBERS) || !IS_THERE(UPID_NS) ||
	    !IS_THERE(PID_NS_INUM))
		return 0;

	u64 pid = read_u64(task + TASK_THREAD_PID);
	u64 own = pid + PID_NUMBERS + read_u32(pid + PID_LEVEL) * UPID_SIZE;

	return read_u32(read_u64(own + UPID_NS) + PID_NS_INUM);
}

static __always_inline void read_cmdline(struct identity *identity, u64 mm, u64 thread)
{
	identity->cmdline_length = 0;
	/* Only the memory of the current task can be read. */
	if (thread != bpf_get_current_task() || !IS_THERE(MM_ARG_START) || !IS_THERE(MM_ARG_END))
		return;

	u64 start = read_u64(mm + MM_ARG_START);
	u64 size = read_u64(mm + MM_ARG_END) - start;

	if (size > CMDLINE_SIZE)
		size = CMDLINE_SIZE;
	/* read_user() fails if the page is not in memory: then user space reads the command line. */
	if (size > 0 && read_user(identity->cmdline, size, (void *)start) == 0)
		identity->cmdline_length = size;
}

static __always_inline void read_identity(struct identity *identity, u64 task, u64 thread)
{
	/* `thread`: a leader that ended before its threads has no mm and no nsproxy any more (do_exit(),
	 * kernel/exit.c). */
	u64 mm = IS_THERE(TASK_MM) ? read_u64(thread + TASK_MM) : 0;

	identity->loginuid_plus_one = IS_THERE(TASK_LOGINUID) ? read_u32(task + TASK_LOGINUID) + 1 : 0;
	identity->pid_ns = pid_namespace(task);
	identity->user_ns = IS_THERE(TASK_REAL_CRED) && IS_THERE(CRED_USER_NS)
				? number_of_user_ns(read_u64(read_u64(thread + TASK_REAL_CRED) + CRED_USER_NS))
				: 0;
	identity->mnt_ns = namespace(thread, NSPROXY_MNT_NS, MNT_NS_INUM);
	/* In this order, since append_name() may write behind a path. */
	read_cgroup(&identity->cgroup, task);
	read_exe(&identity->exe, mm, &identity->exe_user_ns);
	read_cmdline(identity, mm, thread);
}

/* Keeps the identity of a process, once for each program that it runs. `thread` is the task of its thread that sends.
 */
static __always_inline void keep_identity(struct scratch *s, const struct process_key *process, u64 leader, u64 thread)
{
	struct process_key key = *process;

	key.exec = s->event.chain.exec;
	if (bpf_map_lookup_elem(MAP(IDENTITIES), &key))
		return;
	if (take_room(s->share, RESOURCE_IDENTITIES, 1)) {
		read_identity(&s->identity, leader, thread);
		s->identity.share = s->share;

		long failed = bpf_map_update_elem(MAP(IDENTITIES), &key, &s->identity, BPF_NOEXIST);

		if (!failed)
			return;
		give_back(s->share, RESOURCE_IDENTITIES, 1);
		/* Another thread of the process was first. */
		if (failed == -EEXIST)
			return;
	}
	count_statistic(STAT_IDENTITIES_FULL);
}

#endif
