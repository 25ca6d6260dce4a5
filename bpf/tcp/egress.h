/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hook at egress does with TCP: it reads the octets that leave. Memory that the program writes may change
 * until then, a write may fail half-way, and a write of Multipath TCP goes to a socket of its own.
 *
 * All programs return 1: 0 would drop the packet. The kernel sends one packet of a socket at a time, so nothing else
 * changes the connection during a run.
 */
#ifndef DNSPROBE_TCP_EGRESS_H
#define DNSPROBE_TCP_EGRESS_H

#include "verifier.h"
#include "scratch.h"
#include "socket_storage.h"
#include "dns/match.h"
#include "dns/name.h"
#include "query/count.h"
#include "query/handler.h"
#include "query/submit.h"
#include "tcp/connection.h"
#include "tcp/message.h"
#include "tcp/segment.h"
#include "tcp/writer.h"

/* The hook can be limited to one family. */
#ifndef SERVED_FAMILY
#define SERVED_FAMILY(family) true
#endif

/* What is known of where the messages of a connection begin. */
enum alignment {
	NEW_CONNECTION = 0,
	ALIGNED,  /* from its first octet on, or since a message was found */
	GUESSING, /* octets were not seen: a segment that begins with a whole message shows where */
	LOST,	  /* servers differ about the octets: nothing is read any more */
};

/* Messages of a packet that a run handles at most. The verifier follows each one anew: with three, it takes 949,869 of
 * the 1,000,000 steps that it has on Linux 6.1, with two 702,554. */
#define MESSAGES_IN_RUN 2
/* The runs of a packet up to this number may end at an event. The messages of later runs cause none. */
#define EVENT_RUNS 24
/* Messages of a packet that are counted as not read at most. */
#define SKIPPED_AT_MOST 256

/* include/uapi/linux/if_ether.h */
#define ETHERNET_IP4 __builtin_bswap16(0x0800)

/* Counts a packet for which no run has room. If nobody holds the lock of the socket, the current task is a stranger:
 * see find_writer(). */
static __always_inline void count_busy_segment(const struct __sk_buff *skb)
{
	u64 packet = kernel_packet(skb);
	u8 family = skb->protocol == ETHERNET_IP4 ? 4 : 6;
	bool is_asker = read_u32(read_u64(packet + SKB_SK) + SOCK_LOCK_OWNED) && is_clearly_asker(packet, family);

	count_unread(STAT_UNPARSED_BUSY, TRANSPORT_TCP | local_by_packet(skb, packet, family), 1, is_asker);
}

/* The first program. Most packets are no TCP to a DNS server. */
static __always_inline int handle_egress_stream(struct __sk_buff *skb)
{
	u16 port = server_port(skb);

	if (!port || (!WATCHED_PORT(port) && !ENCRYPTED_PORT(port)))
		return 1;
	/* The kernel clears it before the first program, unless a program of another owner runs before this one. */
	STORE_CONTEXT(skb, cb[0], 0);
	STORE_CONTEXT(skb, cb[1], 0);
	/* The rest is another program, so that most packets cost little. */
	tail_call(skb, MAP(SELF_CALLS), 0);
	count_busy_segment(skb);
	return 1;
}

static __always_inline void begin_connection(struct connection *connection, u32 first, u32 sequence)
{
	connection->first = first;
	connection->next = sequence;
	connection->alignment = first == sequence ? ALIGNED : GUESSING;
	connection->buffered = 0;
	connection->skip = 0;
	connection->is_urgent = 0;
	connection->runs = 0;
}

/*
 * Puts the connection of a segment into s->connection. The copy makes the state the same for the verifier whether it is
 * kept or not.
 *
 * Without room, it is not kept. Then a segment is read by itself: the socket says whether it is the first one, and
 * skb->cb has the octets and the runs that the packet had so far, and struct scratch.sent_on. A message that a segment
 * has in part is not read.
 */
static __always_inline void load_connection(struct scratch *s, struct __sk_buff *skb)
{
	const struct bpf_sock *sock = skb->sk;
	const struct connection *kept = sock ? make_storage(MAP(CONNECTIONS), sock) : NULL;
	struct connection *connection = &s->connection;
	u32 read = 0, runs = 0, sent_on = 0;

	s->is_late = 0;
	s->is_kept = kept != NULL;
	s->unaligned = kept ? STAT_UNPARSED_UNALIGNED : STAT_UNPARSED_BUSY;
	if (kept)
		*connection = *kept;
	else
		__builtin_memset(connection, 0, sizeof(*connection));
	/* FORGET: with registers and the stack, the verifier would follow the rest once for each. */
	if (FORGET(s->tcp.is_first)) {
		/* A socket can open one connection after the other. The SYN may also be sent again. */
		if (FORGET(connection->alignment) == NEW_CONNECTION || connection->first != FORGET(s->tcp.sequence))
			begin_connection(connection, FORGET(s->tcp.sequence), FORGET(s->tcp.sequence));
	} else if (FORGET(connection->alignment) == NEW_CONNECTION) {
		begin_connection(connection, first_octet(FORGET(s->tcp.sock)), FORGET(s->tcp.sequence));
		s->is_late = 1;
		/* Octets before were not seen. What follows may look like messages and be a part of one: find_place()
		 * finds a gap and counts it. */
		if (FORGET(s->is_kept) && FORGET(connection->alignment) == GUESSING && WATCHED_PORT(server_port(skb))) {
			connection->alignment = ALIGNED;
			connection->next = FORGET(s->tcp.sequence) - 1;
		}
	}
	if (FORGET(s->is_kept))
		return;
	LOAD_CONTEXT(read, skb, cb[0]);
	LOAD_CONTEXT(runs, skb, cb[1]);
	if (!runs)
		return;
	connection->alignment = ALIGNED;
	connection->next += read;
	connection->runs = runs;
	LOAD_CONTEXT(sent_on, skb, cb[2]);
	if (!sent_on) {
		struct process_key process;

		current_process(&process);
		connection->tgid = process.tgid;
		connection->start_ns = process.start_ns;
	}
}

/* Keeps the connection for the next run. */
static __always_inline void save_connection(struct scratch *s, struct __sk_buff *skb)
{
	const struct bpf_sock *sock = skb->sk;
	struct connection *kept;

	/* FORGET: with registers and the stack, the verifier would follow this once for each way to get here. */
	if (!FORGET(s->is_kept)) {
		u32 read = FORGET(s->connection.next) - FORGET(s->tcp.sequence);
		u32 runs = FORGET(s->connection.runs);
		u32 sent_on = FORGET(s->sent_on);

		STORE_CONTEXT(skb, cb[0], read);
		STORE_CONTEXT(skb, cb[1], runs);
		STORE_CONTEXT(skb, cb[2], sent_on);
		return;
	}
	kept = sock ? find_storage(MAP(CONNECTIONS), sock) : NULL;
	if (kept)
		*kept = s->connection;
}

static __always_inline void lose(struct scratch *s, struct connection *connection, u32 statistic)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	connection->alignment = LOST;
	if ((s32)(FORGET(s->tcp.end) - connection->next) > 0)
		connection->next = FORGET(s->tcp.end);
	s->unread = statistic;
}

/*
 * Notes an urgent octet (MSG_OOB of send(2)). A server does not find it among the others, unless it asks for that
 * (SO_OOBINLINE). But if a second urgent octet comes before the server has read the first one, the first one becomes an
 * ordinary octet: net/ipv4/tcp_input.c, tcp_check_urg(). Nobody but the server knows. False if that may be so.
 */
static __always_inline bool note_urgent(struct scratch *s, struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	if (!FORGET(s->tcp.is_urgent) || (connection->is_urgent && connection->urgent == FORGET(s->tcp.urgent)))
		return true;

	bool has_left = connection->is_urgent && (s32)(connection->urgent - connection->next) < 0;

	if (has_left || (s32)(FORGET(s->tcp.urgent) - connection->next) < 0)
		return false;
	connection->urgent = FORGET(s->tcp.urgent);
	connection->is_urgent = 1;
	return true;
}

/* Moves to the first octet of a segment that was not there before. False if nothing of it is to be read. */
static __always_inline bool find_place(struct scratch *s, struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	/* Sent again. */
	if ((s32)(FORGET(s->tcp.end) - connection->next) <= 0)
		return false;
	if ((s32)(FORGET(s->tcp.sequence) - connection->next) > 0) {
		if (connection->alignment == ALIGNED) {
			connection->alignment = GUESSING;
			connection->buffered = 0;
			connection->skip = 0;
			connection->next = FORGET(s->tcp.sequence);
			s->unread = STAT_UNPARSED_UNALIGNED;
			/* The next run reads the segment: a run counts either a query or what it cannot read. */
			return false;
		}
		connection->next = FORGET(s->tcp.sequence);
	}
	if (connection->alignment == LOST) {
		lose(s, connection, STAT_UNPARSED_UNALIGNED);
		return false;
	}
	return true;
}

/* Makes a place for the octets of a message that has begun, NULL if there is no room. Few clients send a message in
 * parts. */
static __always_inline struct begun *make_begun(const struct scratch *s, struct __sk_buff *skb)
{
	const struct bpf_sock *sock = skb->sk;

	/* FORGET: with a register, the verifier would follow each way to get here once more. */
	return sock && FORGET(s->is_kept) ? make_storage(MAP(BEGUN), sock) : NULL;
}

/* Keeps the octets of a message that has begun. Without room, it counts as not read. */
static __always_inline void keep_begun(struct scratch *s, struct connection *connection, struct __sk_buff *skb, u32 end)
{
	struct begun *begun = make_begun(s, skb);

	if (!begun) {
		connection->alignment = GUESSING;
		connection->buffered = 0;
		connection->next = end;
		s->unread = STAT_UNPARSED_BUSY;
		return;
	}
	/* FORGET: with registers, the verifier would follow this for each way out of read_message(). */
	connection->buffered = FORGET(s->size);
	connection->next += FORGET(s->part);
	bpf_probe_read_kernel(begun->octets, STREAM_SIZE, s->packet + STREAM_FRONT);
}

/* Puts the octets of the next message into s->packet, s->part of them from the offset `at` of the packet. */
static __always_inline bool copy_message(struct scratch *s, const struct connection *connection, struct __sk_buff *skb,
					 u32 at)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	u64 behind_first = FORGET(s->part) - 1;
	u64 to = FORGET(connection->buffered);

	if (to) {
		const struct bpf_sock *sock = skb->sk;
		const struct begun *begun = sock ? find_storage(MAP(BEGUN), sock) : NULL;

		if (!begun)
			return false;
		bpf_probe_read_kernel(s->packet + STREAM_FRONT, STREAM_SIZE, begun->octets);
		/* Again: with a register, the verifier would follow what comes behind once more. */
		to = FORGET(connection->buffered);
	}
	/* See copy_datagram() for the mask and the size. */
	KEEP_BELOW_512(behind_first);
	KEEP_BELOW_512(to);
	return bpf_skb_load_bytes(skb, at, s->packet + STREAM_FRONT + to, behind_first + 1) == 0;
}

/* Moves over what belongs to no message that is to be read: an urgent octet, or the rest of the message before. False
 * if the next octet belongs to a message. Sets s->left and s->part. */
static __always_inline bool skip_octets(struct scratch *s, struct connection *connection, u32 end)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	u32 next = FORGET(connection->next);
	u32 left = end - next;
	u32 skip = FORGET(connection->skip);
	u32 room = STREAM_SIZE - FORGET(connection->buffered);

	if (FORGET(connection->is_urgent)) {
		u32 before = FORGET(connection->urgent) - next;

		if (!before) {
			connection->next = next + 1;
			return true;
		}
		if (before < left)
			left = before;
	}
	s->left = left;
	if (skip) {
		if (skip > left)
			skip = left;
		connection->skip -= skip;
		connection->next = next + skip;
		return true;
	}
	s->part = left < room ? left : room;
	return false;
}

/* Moves behind the octets of a message that were read: s->part of them are in the segment, and the message is as far as
 * s->progress says. */
static __always_inline void advance_in_segment(struct scratch *s, struct connection *connection, struct __sk_buff *skb,
					       u32 end)
{
	/* FORGET, here and below: with registers, the verifier would follow this for each way out of read_message(). */
	u32 rest = LENGTH_SIZE + FORGET(s->length) - FORGET(connection->buffered);
	u32 left = FORGET(s->left);

	if (FORGET(connection->alignment) == GUESSING) {
		if (FORGET(s->progress) != MESSAGE_READ || rest > left) {
			s->progress = MESSAGE_INCOMPLETE;
			s->unread = FORGET(s->unaligned);
			connection->next = end;
			return;
		}
		connection->alignment = ALIGNED;
	}
	if (FORGET(s->progress) == MESSAGE_INCOMPLETE) {
		keep_begun(s, connection, skb, end);
		return;
	}
	connection->buffered = 0;
	if (left > rest)
		left = rest;
	connection->next += left;
	connection->skip = rest - left;
}

/* Reads the next message of a segment, or the part of it that the segment has. The result is in s->progress. */
static __always_inline void read_segment_message(struct scratch *s, struct connection *connection,
						 struct __sk_buff *skb)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	s->progress = MESSAGE_INCOMPLETE;
	if (skip_octets(s, connection, FORGET(s->tcp.end)))
		return;
	if (!copy_message(s, connection, skb, FORGET(s->tcp.at) + FORGET(connection->next) - FORGET(s->tcp.sequence))) {
		lose(s, connection, STAT_UNPARSED_UNREADABLE);
		return;
	}
	s->size = FORGET(connection->buffered) + FORGET(s->part);
	s->progress = read_message(s);
	advance_in_segment(s, connection, skb, FORGET(s->tcp.end));
}

/* Reads the next message of a segment. If it is a query that a rule matches, counts it. */
static __always_inline void handle_segment_message(struct scratch *s, const struct settings *settings,
						   struct connection *connection, struct __sk_buff *skb)
{
	/* The compiler would compute the addresses of many fields in advance, and keep them on the stack, which has not
	 * enough room for all of them. */
	HIDE(s);
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	read_segment_message(s, connection, skb);
	if (FORGET(s->progress) == MESSAGE_MALFORMED)
		s->unread = STAT_UNPARSED_MALFORMED;
	if (FORGET(s->progress) == MESSAGE_NO_QUERY)
		s->unread = s->message;
	if (FORGET(s->progress) != MESSAGE_READ)
		return;
	reverse_name(s);

	u32 rule = match_name(s);

	if (rule == NO_RULE || !rule_fits_port(rule, s->to.port))
		return;
	identify_query(s, settings);
	handle_query(s, settings, rule);
}

/* Counts a connection whose messages cannot be read, at its first octet. */
static __always_inline void count_encrypted_segment(struct scratch *s, struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	bool is_begin = connection->alignment == ALIGNED && FORGET(s->tcp.sequence) != FORGET(s->tcp.end);

	connection->next = FORGET(s->tcp.end);
	if (!is_begin)
		return;
	connection->alignment = LOST;
	s->question.qtype = 0;
	s->event.kind = KIND_QUERY;
	set_share(s, IS_SENT_ON(s) ? s->leader : bpf_get_current_task());
	s->counted_qtype = 0;
	number_server(s);
	count_query(s, ENCRYPTED, TRANSPORT_DOT | s->to.local);
	if (IS_SENT_ON(s) && !s->leader) {
		count_statistic(STAT_UNATTRIBUTED_SENT_ON);
		s->keep_tree = 0;
	}
}

/* As keep_and_submit(), for the process that has written, which may have ended. Its tree is noted before that. */
static __always_inline void keep_and_submit_segment(struct scratch *s, const struct settings *settings,
						    struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	u64 thread = 0;

	if (!FORGET(s->keep_tree) && !FORGET(s->submit) && !FORGET(s->note_tree))
		return;
	read_tree(s, connection);
	if (!FORGET(s->keep_tree) && !FORGET(s->submit))
		return;
	if (FORGET(s->keep_tree))
		keep_tree(&s->process, &s->event.chain, s->share);
	if (!IS_SENT_ON(s))
		thread = bpf_get_current_task();
	else if (!IS_NOTED(s) || is_writer_alive(connection))
		thread = s->leader;
	if (s->event.kind != KIND_CANARY && thread)
		keep_identity(s, &s->process, s->leader, thread);
	if (!FORGET(s->submit))
		return;
	if (IS_NOTED(s)) {
		s->event.uid = connection->uid;
		s->event.gid = connection->gid;
	} else {
		set_user(&s->event, s);
	}
	submit_event(s, settings);
}

/* The server that the asker gave: NAT does not change it in the socket. */
static __always_inline void read_server(struct destination *to, const struct __sk_buff *skb, u64 sock)
{
	to->skb = 0;
	to->sock = sock;
	to->port = server_port(skb);
	__builtin_memset(to->server, 0, sizeof(to->server));
	if (skb->protocol == ETHERNET_IP4) {
		to->family = 4;
		to->local = local_by_packet(skb, kernel_packet(skb), 4);
		bpf_probe_read_kernel(to->server, 4, (void *)(sock + SOCK_COMMON + SOCK_DADDR));
	} else {
		to->family = 6;
		to->local = local_by_packet(skb, kernel_packet(skb), 6);
		bpf_probe_read_kernel(to->server, 16, (void *)(sock + SOCK_COMMON + SOCK_V6_DADDR));
	}
	to->transport = transport_of(to, 0, TRANSPORT_TCP);
}

/*
 * True if a segment was sent before: the socket moves on behind what it sends only after that (net/ipv4/tcp_output.c,
 * tcp_event_new_data_sent()). That says nothing about a segment that a firewall has held back.
 */
static __always_inline bool was_sent_before(const struct scratch *s)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	return !FORGET(s->held_back) && (s32)(FORGET(s->tcp.end) - read_u32(FORGET(s->tcp.sock) + TCP_SND_NXT)) <= 0;
}

/* False if nothing of a segment can be read. An urgent octet and a segment that is sent again are recognized by what
 * was sent before them. */
static __always_inline bool is_readable(struct scratch *s, struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	if (!FORGET(s->is_kept) && (FORGET(s->tcp.is_urgent) || FORGET(s->held_back)))
		return false;
	return note_urgent(s, connection);
}

/* Handles the next messages of a segment. True if it has more. */
static __always_inline bool handle_segment(struct scratch *s, const struct settings *settings, struct __sk_buff *skb,
					   struct connection *connection)
{
	/* FORGET: with registers and the stack, the verifier would follow each round once for each way through the
	 * rounds before it. */
	s->keep_tree = 0;
	s->submit = 0;
	s->unread = 0;
	read_server(&s->to, skb, FORGET(s->tcp.sock));
	if (!SERVED_FAMILY(s->to.family))
		return false;
	find_writer(s, connection, skb);
	if (!FORGET(s->is_kept))
		s->note_tree = 0;
	/* It was read then, or sent before dnsprobe was there: what follows it has a gap in front. */
	if (FORGET(s->is_late) && was_sent_before(s)) {
		connection->next = FORGET(s->tcp.end) - 1;
		return false;
	}
	/* A kernel that never keeps anything fails the proof: another hook is better. */
	if (!FORGET(s->is_kept) && s->to.port == CANARY_PORT && has_storage_room(storage_room()))
		return false;
	if (!WATCHED_PORT(FORGET(s->to.port))) {
		count_encrypted_segment(s, connection);
	} else {
		if (!is_readable(s, connection) && connection->alignment != LOST)
			lose(s, connection, FORGET(s->unaligned));
		else if (find_place(s, connection)) {
			for (u32 i = 0; i < MESSAGES_IN_RUN; i++) {
				if (FORGET(connection->next) == FORGET(s->tcp.end))
					break;
				handle_segment_message(s, settings, connection, skb);
				if (FORGET(s->keep_tree) || FORGET(s->unread))
					break;
				if (FORGET(s->submit)) {
					if (FORGET(connection->runs) < EVENT_RUNS)
						break;
					count_statistic(STAT_LOST_SEGMENTED);
					update_seen(s, settings, false);
					s->submit = 0;
				}
			}
		}
	}
	if (FORGET(s->unread) && s->to.port != CANARY_PORT) {
		count_statistic(FORGET(s->unread));
		describe_unread(s, FORGET(s->unread));
		s->rule = UNREAD;
		identify_query(s, settings);
		handle_odd_query(s, settings, UNREAD);
	}
	keep_and_submit_segment(s, settings, connection);
	return WATCHED_PORT(FORGET(s->to.port)) && (s32)(FORGET(s->tcp.end) - FORGET(connection->next)) > 0;
}

/* Moves over the next message without reading it. False if that is not possible, or if there is none. */
static __always_inline bool skip_message(const struct scratch *s, struct connection *connection, struct __sk_buff *skb,
					 const struct segment *segment)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	u32 next = FORGET(connection->next);
	u32 left = segment->end - next;
	u32 at = segment->at + next - segment->sequence;
	u8 length[LENGTH_SIZE];

	/* An urgent octet may be among those of the length. */
	if (!left || FORGET(connection->is_urgent))
		return false;
	if (left < LENGTH_SIZE) {
		struct begun *begun = make_begun(s, skb);

		if (!begun || bpf_skb_load_bytes(skb, at, begun->octets, 1))
			return false;
		connection->buffered = 1;
		connection->next = segment->end;
		return false;
	}
	if (bpf_skb_load_bytes(skb, at, length, LENGTH_SIZE))
		return false;

	u32 size = LENGTH_SIZE + (length[0] << 8 | length[1]);
	u32 part = size < left ? size : left;

	connection->next = next + part;
	connection->skip = size - part;
	return true;
}

/* Counts messages of a segment that are not read for the process that has written them, which may have ended. */
static __always_inline void count_skipped(const struct __sk_buff *skb, const struct process_key *writer, u32 reason,
					  u64 number)
{
	const struct chain *tree = bpf_map_lookup_elem(MAP(WRITERS), (void *)writer);
	u64 share = tree ? tree->share : SHARE_OF_NOBODY;

	u8 family = skb->protocol == ETHERNET_IP4 ? 4 : 6;

	count_unread_of(writer, share, reason, TRANSPORT_TCP | local_by_packet(skb, kernel_packet(skb), family),
			number);
	if (tree && !is_tree_kept(writer))
		keep_tree(writer, tree, share);
}

/* Counts the messages of a segment that are more than the runs can read. */
static __always_inline void skip_messages(struct scratch *s, struct connection *connection, struct __sk_buff *skb,
					  const struct segment *segment, const struct process_key *writer)
{
	/* FORGET: with registers and the stack, the verifier would follow each way to get here once more. */
	u32 skipped = 0;

	for (u32 i = 0; i < SKIPPED_AT_MOST; i++) {
		if (!skip_message(s, connection, skb, segment))
			break;
		skipped++;
	}
	count_skipped(skb, writer, STAT_UNPARSED_PIPELINED, skipped);
	/* A part of a message is left, or too many. */
	if (FORGET(connection->next) == segment->end)
		return;
	connection->alignment = LOST;
	connection->next = segment->end;
	count_skipped(skb, writer, STAT_UNPARSED_UNALIGNED, 1);
}

/* Takes a scratch space from the pool. NULL if none is free. */
static __always_inline struct scratch *take_scratch(u32 *index)
{
	return map_pop(MAP(FREE_SCRATCH), index) ? NULL : bpf_map_lookup_elem(MAP(SCRATCH_POOL), index);
}

/* Counts what is left of a packet after the last run. */
static __always_inline void handle_rest(struct __sk_buff *skb, const struct segment *segment,
					const struct process_key *writer)
{
	u32 index = 0;
	struct scratch *s = take_scratch(&index);

	if (!s) {
		count_skipped(skb, writer, STAT_UNPARSED_BUSY, 1);
		return;
	}
	s->tcp = *segment;
	load_connection(s, skb);
	s->connection.runs = 0;
	skip_messages(s, &s->connection, skb, segment, writer);
	save_connection(s, skb);
	map_push(MAP(FREE_SCRATCH), &index, 0);
}

/* The second program. */
static __always_inline int handle_egress_stream_slowly(struct __sk_buff *skb)
{
	struct settings *settings = get_settings();
	struct process_key writer = {};
	struct segment segment;
	struct scratch *s;
	bool has_more;
	u32 index = 0;

	if (!settings || !read_segment(&segment, skb))
		return 1;
	s = take_scratch(&index);
	if (!s) {
		if (segment.sequence != segment.end)
			count_busy_segment(skb);
		return 1;
	}
	s->tcp = segment;
	load_connection(s, skb);
	has_more = handle_segment(s, settings, skb, &s->connection);
	s->connection.runs = has_more ? s->connection.runs + 1 : 0;
	save_connection(s, skb);
	/* Another run may take the scratch space. */
	bpf_probe_read_kernel(&writer, sizeof(writer), &s->process);
	map_push(MAP(FREE_SCRATCH), &index, 0);
	if (!has_more)
		return 1;
	/* The next messages. A loop around all of this would be too large for the verifier. */
	tail_call(skb, MAP(SELF_CALLS), 0);
	handle_rest(skb, &segment, &writer);
	return 1;
}

#endif
