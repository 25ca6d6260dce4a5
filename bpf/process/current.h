/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The process that sends.
 */
#ifndef DNSPROBE_PROCESS_CURRENT_H
#define DNSPROBE_PROCESS_CURRENT_H

#include "kernel_read.h"

#ifdef HAS_TASK_BTF
/* The helper bpf_get_current_task_btf(), since Linux 5.11. The kernel knows the type of its result, so that members are
 * loaded without a call. */
static u64 (*current_task)(void) = (void *)BPF_FUNC_get_current_task_btf;
#define TASK_U64(task, member) (*(u64 *)((task) + (member)))
#define TASK_U32(task, member) (*(u32 *)((task) + (member)))
#else
#define current_task() bpf_get_current_task()
#define TASK_U64(task, member) read_u64((task) + (member))
#define TASK_U32(task, member) read_u32((task) + (member))
#endif

/* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

/* True if the current task is a thread of the kernel: it sends for another, which is not known. Before Linux 5.12, the
 * workers of io_uring(7) are such threads: kernel commit 3bfe6106693b ("io-wq: fork worker threads from original
 * task"). */
static __always_inline bool is_kernel_thread(void)
{
	return TASK_U32(current_task(), TASK_FLAGS) & PF_KTHREAD;
}

/* Returns the task of the leader of the thread group. The process is the group: dig sends from a thread called
 * isc-net-0000. */
static __always_inline u64 current_process(struct process_key *key)
{
	u64 leader = TASK_U64(current_task(), TASK_GROUP_LEADER);

	key->start_ns = TASK_U64(leader, TASK_START_BOOTTIME);
	key->tgid = TASK_U32(leader, TASK_TGID);
	key->exec = 0;
	return leader;
}

#endif
