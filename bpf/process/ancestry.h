/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The process that sends, and its parents. They are read while it sends: a process that ends a millisecond later still
 * gets its whole tree.
 */
#ifndef DNSPROBE_PROCESS_ANCESTRY_H
#define DNSPROBE_PROCESS_ANCESTRY_H

#include "kernel_read.h"
#include "process/current.h"
#include "process/lineage.h"

/* Reads the chain of parents, and the lineage behind it. `leader` is the task of the process that sends. */
static __always_inline void walk_ancestry(struct chain *chain, u64 leader)
{
	u32 depth = 0;

	chain->cut = 1;
	chain->exec = read_u32(leader + TASK_SELF_EXEC_ID);
	for (u32 i = 0; i < CHAIN_SIZE; i++) {
		struct process *process = &chain->process[i];

		process->tgid = read_u32(leader + TASK_TGID);
		process->exited = 0;
		process->start_ns = read_u64(leader + TASK_START_BOOTTIME);
		bpf_probe_read_kernel(process->comm, COMM_SIZE, (void *)(leader + TASK_COMM));
		depth = i + 1;

		u64 parent = read_u64(read_u64(leader + TASK_REAL_PARENT) + TASK_GROUP_LEADER);

		/* Pid 1 and kthreadd are children of the idle task, which has pid 0 and is its own parent. */
		if (process->tgid <= 1 || !parent || !read_u32(parent + TASK_TGID)) {
			chain->cut = 0;
			break;
		}
		leader = parent;
	}
	chain->depth = depth;
	walk_lineage(chain);
}

#endif
