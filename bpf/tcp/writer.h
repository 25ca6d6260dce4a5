/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Which process has written what leaves a TCP socket. It often leaves in the context of a stranger: when the
 * acknowledgement of earlier octets makes room for it, or a timer sends it.
 */
#ifndef DNSPROBE_TCP_WRITER_H
#define DNSPROBE_TCP_WRITER_H

#include "kernel_read.h"
#include "scratch.h"
#include "process/ancestry.h"
#include "process/asker.h"
#include "process/current.h"
#include "process/share.h"
#include "query/count.h"
#include "tcp/segment.h"

/* Notes the current task as the one that writes. */
static __always_inline void note_writer(struct scratch *s, struct connection *connection)
{
	u64 credentials = read_u64(bpf_get_current_task() + TASK_CRED);

	s->leader = current_process(&s->process);
	s->note_tree = connection->leader != s->leader || connection->start_ns != s->process.start_ns;
	connection->leader = s->leader;
	connection->start_ns = s->process.start_ns;
	connection->tgid = s->process.tgid;
	connection->uid = read_u32(credentials + CRED_UID);
	connection->gid = read_u32(credentials + CRED_GID);
}

/*
 * True if the current task has the socket of Multipath TCP that a packet is sent for. The program has one socket for
 * all its connections, which are sockets of the kernel: include/net/tcp.h, struct tcp_sock, `is_mptcp`.
 */
static __always_inline bool has_multipath_socket(u64 sock)
{
	struct open_files open;
	u64 file;

	if (!KNOWS_OPEN_FILES || !IS_THERE(TCP_IS_MPTCP) || !IS_THERE(ICSK_ULP_DATA) || !IS_THERE(SUBFLOW_CONN) ||
	    !(u8)read_u32(sock + TCP_IS_MPTCP))
		return false;
	file = file_of(read_u64(read_u64(sock + ICSK_ULP_DATA) + SUBFLOW_CONN));
	if (!file)
		return false;
	read_open_files(&open, TASK_U64(current_task(), TASK_FILES));
	return has_file(&open, file);
}

/*
 * Finds out who has written. A task that writes, connects or closes holds the lock of the socket (sk_lock.owned) until
 * it has sent what can be sent. What leaves while nobody holds it was written before, by the process that is noted. A
 * firewall in user space may send a packet on while another task holds the lock; is_asker() recognizes it.
 *
 * A firewall sends a packet on after the call that wrote it, so no writer is noted. Or one is, from a packet that was
 * not held back, but another process that shares the socket may have written since. So find_asker() decides anew, and
 * its result has to be the process that is noted, if there is one.
 */
static __always_inline void find_writer(struct scratch *s, struct connection *connection, struct __sk_buff *skb)
{
	/* FORGET: with a register, the verifier would follow each way out of is_asker() once more. */
	s->note_tree = 0;
	s->held_back = 0;
	s->sent_on = NOTED;
	if (read_u32(s->tcp.sock + SOCK_LOCK_OWNED) && is_asker(kernel_packet(skb), s->to.family))
		s->sent_on = 0;
	if (FORGET(s->sent_on) && read_u32(s->tcp.sock + SOCK_LOCK_OWNED) && has_multipath_socket(s->tcp.sock))
		s->sent_on = 0;
	if (!FORGET(s->sent_on)) {
		note_writer(s, connection);
		return;
	}
	s->held_back = is_firewall(kernel_packet(skb), s->to.family);
	if (!connection->leader || FORGET(s->held_back)) {
		s->sent_on = SENT_ON;
		s->leader = find_asker(skb, kernel_packet(skb), &s->process);
		if (connection->leader && FORGET(s->leader) != connection->leader)
			s->leader = 0;
		if (!FORGET(s->leader))
			__builtin_memset(&s->process, 0, sizeof(s->process));
		return;
	}
	s->share = connection->share;
	s->leader = connection->leader;
	s->process.start_ns = connection->start_ns;
	s->process.tgid = connection->tgid;
	s->process.exec = 0;
}

/* True if the noted process is still there: its memory may belong to another task by now. */
static __always_inline bool is_writer_alive(const struct connection *connection)
{
	return read_u32(connection->leader + TASK_TGID) == connection->tgid &&
	       read_u64(connection->leader + TASK_START_BOOTTIME) == connection->start_ns;
}

/*
 * Reads the tree of the process that has written into s->event.chain. If it has ended, and so many others have written
 * that its tree was pushed out, only its name is known.
 */
static __always_inline void read_tree(struct scratch *s, struct connection *connection)
{
	if (IS_NOTED(s)) {
		const struct chain *noted = bpf_map_lookup_elem(MAP(WRITERS), &s->process);
		struct chain *chain = &s->event.chain;

		if (noted) {
			bpf_probe_read_kernel(chain, sizeof(*chain), noted);
			return;
		}
		if (!is_writer_alive(connection)) {
			chain->depth = 1;
			chain->cut = 1;
			chain->exec = connection->exec;
			chain->shared = 1;
			chain->lineage_depth = 0;
			chain->lineage_cut = 1;
			chain->share = connection->share;
			chain->process[0].start_ns = connection->start_ns;
			chain->process[0].tgid = connection->tgid;
			chain->process[0].exited = 0;
			__builtin_memcpy(chain->process[0].comm, connection->comm, COMM_SIZE);
			return;
		}
	}
	walk_ancestry(&s->event.chain, s->leader);
	s->event.chain.share =
	    IS_NOTED(s) ? connection->share : find_share(IS_SENT_ON(s) ? s->leader : bpf_get_current_task());
	if (IS_SENT_ON(s))
		return;
	/* What leaves later is sent by another task. */
	connection->share = s->event.chain.share;
	connection->exec = s->event.chain.exec;
	bpf_probe_read_kernel(connection->comm, COMM_SIZE, s->event.chain.process[0].comm);
	bpf_map_update_elem(MAP(WRITERS), &s->process, &s->event.chain, BPF_ANY);
}

#endif
