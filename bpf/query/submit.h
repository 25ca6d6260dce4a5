/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Hands events to user space, and keeps the tree and the identity of the process.
 */
#ifndef DNSPROBE_QUERY_SUBMIT_H
#define DNSPROBE_QUERY_SUBMIT_H

#include "kernel_read.h"
#include "verifier.h"
#include "scratch.h"
#include "answers/note.h"
#include "process/ancestry.h"
#include "process/identity.h"
#include "query/count.h"
#include "query/repeat.h"

/* Sets the user and group of the thread that asks. Not by bpf_get_current_uid_gid(): older kernels refuse it to
 * programs at egress (6.12 does). */
static __always_inline void set_user(struct event *event, const struct scratch *s)
{
	u64 thread = IS_SENT_ON(s) ? s->leader : bpf_get_current_task();
	u64 credentials = read_u64(thread + TASK_CRED);

	event->uid = read_u32(credentials + CRED_UID);
	event->gid = read_u32(credentials + CRED_GID);
}

/* Fills in the event, except for its user and its chain, which its caller has set. Returns its size in octets, or 0 if
 * the chain is too long. */
static __always_inline u64 complete_event(struct scratch *s)
{
	const struct destination *to = &s->to;
	struct event *event = &s->event;
	u64 sock = to->sock ?: read_u64(to->skb + SKB_SK);

	event->name_hash = s->question.hash;
	event->net_ns = IS_THERE(NET_INUM) ? read_u32(read_u64(sock + SOCK_NET) + NET_INUM) : 0;
	event->qtype = s->question.qtype;
	event->qclass = s->question.qclass;
	event->port = to->port;
	event->family = to->family;
	event->length = s->question.length;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	__builtin_memcpy(event->server, to->server, sizeof(event->server));
	__builtin_memcpy(event->reversed, s->key.reversed, NAME_SIZE);

	u64 processes = event->chain.depth + event->chain.lineage_depth;

	if (processes >= CHAIN_ROOM)
		return 0;
	/* Newer compilers compare one register and use a copy in another, whose bound the verifier does not know. */
	KEEP_BELOW_64(processes);
	return __builtin_offsetof(struct event, chain.process) + processes * sizeof(struct process);
}

/* Completes the event, which has its user and its chain, and submits it. */
static __always_inline void submit_event(struct scratch *s, const struct settings *settings)
{
	u64 size = complete_event(s);

	if (!size)
		return;
	if (s->event.kind == KIND_CANARY) {
		bpf_ringbuf_output(MAP(CANARIES), &s->event, size, 0);
		return;
	}

	/* FORGET: as in keep_and_submit(). */
	u64 room = ring_room(size);
	bool submitted = take_room(FORGET(s->share), RESOURCE_EVENTS, room);

	if (submitted && bpf_ringbuf_output(MAP(EVENTS), &s->event, size, 0)) {
		give_back(s->share, RESOURCE_EVENTS, room);
		submitted = false;
	}
	count_statistic(submitted ? STAT_EVENTS : STAT_LOST_RING_FULL);
	update_seen(s, settings, submitted);
	if (submitted)
		await_result(s);
}

/*
 * Keeps the tree of the process if s->keep_tree is set, and submits the event if s->submit is set. Both need the
 * ancestors. The walk over them is half of the program, so there must be only one copy of it: callers set the flags and
 * call this once.
 */
static __always_inline void keep_and_submit(struct scratch *s, const struct settings *settings)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each branch of
	 * handle_query(). */
	if (!FORGET(s->keep_tree) && !FORGET(s->submit))
		return;
	walk_ancestry(&s->event.chain, s->leader);
	s->event.chain.share = FORGET(s->share);
	if (FORGET(s->keep_tree))
		keep_tree(&s->process, &s->event.chain, s->share);
	if (s->event.kind != KIND_CANARY)
		keep_identity(s, &s->process, s->leader, IS_SENT_ON(s) ? s->leader : bpf_get_current_task());
	if (!FORGET(s->submit))
		return;
	set_user(&s->event, s);
	submit_event(s, settings);
}

#endif
