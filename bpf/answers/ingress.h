/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hook at ingress does with a packet: cgroup_skb at the root of cgroup2. The kernel runs it once for each
 * packet that it delivers to a socket, in sk_filter_trim_cap(): after NAT was undone, before the socket's buffer is
 * full, and whether a program reads the packet or not.
 *
 * Its programs return 1 on every path: 0 would drop the packet.
 */
#ifndef DNSPROBE_ANSWERS_INGRESS_H
#define DNSPROBE_ANSWERS_INGRESS_H

#include "answers/note.h"
#include "answers/rcode.h"
#include "udp/egress.h"

static __always_inline void count_unmatched(u32 reason)
{
	add_to_slot(MAP(UNMATCHED), reason, 1);
}

/* Counts an answer to a query whose note was taken back. False if none is remembered. */
static __always_inline bool count_remembered(u64 hash)
{
	u64 index = hash & (TAKEN_NOTES - 1); /* as in add_to_slot() */
	u64 *slot = bpf_map_lookup_elem(MAP(TAKEN_NOTES), &index);

	if (!slot || (*slot ^ hash) & ~(u64)(TAKEN_NOTES - 1))
		return false;
	count_unmatched(*slot & 1 ? UNMATCHED_DUPLICATE : UNMATCHED_LATE);
	return true;
}

/* True if a socket waits for an answer, as far as its latest notes tell. */
static __always_inline bool has_waiting(const u64 *sock)
{
	struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), (void *)sock);

	if (!socket)
		return false;
	for (u32 i = 0; i < SOCKET_NOTES; i++) {
		if (bpf_map_lookup_elem(MAP(NOTES), &socket->notes[i]))
			return true;
	}
	return false;
}

/* Counts an answer to a name that a rule may match. If the socket waits for another id, question or server, it was most
 * likely sent by somebody who wants to be taken for the server. */
static __always_inline void count_unsolicited(const u64 *name_hash, const u64 *sock)
{
	const struct name *name = bpf_map_lookup_elem(MAP(NAMES), (void *)name_hash);

	if (!name || name->verdict != NO_RULE)
		count_unmatched(has_waiting(sock) ? UNMATCHED_FORGED : UNMATCHED_UNSOLICITED);
}

/* What the first program finds out about a packet. */
enum arrival {
	PASSED,	   /* it is no answer, or handled */
	IN_PARTS,  /* the second program handles it: it cannot be read in place, or fits no note */
	IN_STREAM, /* the third program reads it */
};

/* Finds out whether the third program reads a packet whose TCP header is at the offset `header`. */
static __always_inline enum arrival find_stream_answer(const struct __sk_buff *skb, u32 header)
{
	u8 *data = (void *)(long)skb->data;
	const u16 *source = (void *)(data + header);

	if ((u8 *)(source + 1) > (u8 *)(long)skb->data_end)
		return IN_STREAM;
	return WATCHED_PORT(__builtin_bswap16(*source)) ? IN_STREAM : PASSED;
}

/* Handles a packet whose UDP header is at the offset `header`; `source` is the offset of its address. */
static __always_inline enum arrival handle_answer(struct __sk_buff *skb, u32 header, u8 family, u32 source)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct udp *udp = (void *)(data + header);
	const struct dns *dns = (void *)(udp + 1);
	struct place place = { .name = header + UDP_HEADER + DNS_HEADER };
	struct settings *settings;
	struct asked asked = {};
	struct sums sums = {};
	struct note note;
	u32 type_class, without_question;

	if ((u8 *)dns > data_end)
		return IN_PARTS;
	asked.port = __builtin_bswap16(udp->source);
	if (!WATCHED_PORT(asked.port))
		return PASSED;
	settings = get_settings();
	if (!settings)
		return PASSED;
	if ((u8 *)(dns + 1) > data_end || skb->gso_segs > 1)
		return IN_PARTS;
	if (!(dns->flags & 0x80))
		return PASSED;
	/* It may go on behind the linear part. */
	if (dns->questions != __builtin_bswap16(1) || !hash_question(&place, &sums, &type_class, skb, settings))
		return IN_PARTS;
	asked.sock = read_u64(kernel_packet(skb) + SKB_SK);
	__builtin_memcpy(asked.server, data + source, family == 4 ? 4 : 16);
	asked.id = dns->id;

	u64 hash = hash_note(sums, settings, type_class, &asked, &without_question);

	/* The second program finds out why it fits no note, or reports the answer: there is no room on the stack for
	 * either. */
	if (!remove_note(&hash, &note, true))
		return IN_PARTS;
	/* Behind the name are type and class. */
	end_note(&hash, &note, result_of(skb, dns, place.name + place.length + 4, WHOLE_PACKET, type_class));
	return PASSED;
}

/* The first program. */
static __always_inline int handle_ingress(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct ip4 *ip4 = (void *)data;
	const struct ip6 *ip6 = (void *)data;
	enum arrival arrival = IN_PARTS;

	if ((u8 *)(ip4 + 1) > data_end)
		goto parts;
	if (ip4->version_length >> 4 == 4) {
		if (ip4->protocol == PROTOCOL_TCP)
			arrival = ip4->version_length == 0x45 ? find_stream_answer(skb, IP4_HEADER) : IN_STREAM;
		else if (ip4->protocol != PROTOCOL_UDP)
			return 1;
		else if (ip4->version_length == 0x45)
			arrival = handle_answer(skb, IP4_HEADER, 4, __builtin_offsetof(struct ip4, source));
	} else {
		if ((u8 *)(ip6 + 1) > data_end)
			goto parts;
		if (ip6->next_header == PROTOCOL_ICMPV6)
			return 1;
		if (ip6->next_header == PROTOCOL_TCP)
			arrival = find_stream_answer(skb, IP6_HEADER);
		else if (ip6->next_header == PROTOCOL_UDP)
			arrival = handle_answer(skb, IP6_HEADER, 6, __builtin_offsetof(struct ip6, source));
	}
	if (arrival == PASSED)
		return 1;
parts:
	/* As in handle_egress(). */
	STORE_CONTEXT(skb, cb[0], 0);
	/* The rest is in other programs, so that most packets cost little. */
	tail_call(skb, MAP(SELF_CALLS), arrival == IN_STREAM ? ODD_CALL : 0);
	count_unmatched(UNMATCHED_UNREADABLE);
	return 1;
}

/*
 * Reads where a UDP packet came from into s->to, and returns the offset of its DNS message; 0 if it is no UDP packet
 * from a watched port. The kernel's own offset spares a walk over options and extension headers.
 */
static __always_inline u32 read_ingress(struct scratch *s, struct __sk_buff *skb)
{
	u64 packet = kernel_packet(skb);
	u32 header = (u16)((u16)read_u32(packet + SKB_TRANSPORT_HEADER) - (u16)read_u32(packet + SKB_NETWORK_HEADER));
	u64 sock = read_u64(packet + SKB_SK);
	union {
		struct ip4 four;
		struct ip6 six;
	} ip;
	struct udp udp;

	/* A raw socket gets a copy of each packet. */
	if ((u16)read_u32(sock + SOCK_PROTOCOL) != PROTOCOL_UDP || is_raw(sock) || LOAD(skb, header, udp) ||
	    LOAD(skb, 0, ip.four))
		return 0;
	if (ip.four.version_length >> 4 == 4)
		set_server(&s->to, 4, ip.four.source);
	else if (LOAD(skb, 0, ip.six) == 0)
		set_server(&s->to, 6, ip.six.source);
	else
		return 0;
	s->to.port = __builtin_bswap16(udp.source);
	s->to.sock = sock;
	s->to.transport = TRANSPORT_UDP;
	return WATCHED_PORT(s->to.port) ? header + UDP_HEADER : 0;
}

/* False for answers that fit no note in any case: those of multicast, whose queries are untracked, and those to
 * canaries, which show in the proof. */
static __always_inline bool should_fit(u16 port)
{
	return port != CANARY_PORT && port != PORT_MDNS && port != PORT_LLMNR;
}

/* Counts an answer that fits no note, whose question is in the scratch space. Most are to names that no rule matches.
 */
static __always_inline void handle_unmatched(struct scratch *s)
{
	if (count_remembered(s->waiting.hash) || !should_fit(s->to.port))
		return;
	reverse_name(s);
	if (match_name(s) != NO_RULE)
		count_unsolicited(&s->question.hash, &s->waiting.asked.sock);
}

/*
 * Hands the answer in the scratch space to user space, if its query had an event. Its note is in s->waiting.taken, its
 * result in s->ended. The packet has s->in_packet octets of it; 0: it began in an earlier one, and only what is in the
 * scratch space is at hand.
 */
static __always_inline void report_answer(struct scratch *s, struct __sk_buff *skb)
{
	/* FORGET, here and below: with registers, the verifier would follow this once for each way to get here. */
	const struct note *note = &s->waiting.taken;
	struct ended *ended = &s->ended;
	u32 in_packet = FORGET(s->in_packet);
	u64 behind_first = (u64)(in_packet ?: FORGET(s->present)) - 1;
	u64 room;
	long failed;

	if (!FORGET(note->query_id))
		return;
	if (behind_first >= ANSWER_SIZE)
		behind_first = ANSWER_SIZE - 1;
	/* Verifier: the comparison may be of another register. */
	KEEP_BELOW_1024(behind_first);
	if (in_packet)
		failed = bpf_skb_load_bytes(skb, FORGET(s->join.message), ended->message, behind_first + 1);
	else
		failed = bpf_probe_read_kernel(ended->message, behind_first + 1, s->packet + PACKET_FRONT);
	ended->time_ns = bpf_ktime_get_ns();
	ended->query_id = note->query_id;
	ended->share = note->share;
	ended->size = failed ? 0 : behind_first + 1;
	ended->kind = KIND_ENDED;
	room = ring_room(__builtin_offsetof(struct ended, message) + behind_first + 1);
	if (take_room(note->share, RESOURCE_EVENTS, room)) {
		if (!bpf_ringbuf_output(MAP(EVENTS), ended,
					__builtin_offsetof(struct ended, message) + behind_first + 1, 0))
			return;
		give_back(note->share, RESOURCE_EVENTS, room);
	}
	count_statistic(STAT_LOST_RESULTS);
}

/* Sets waiting->hash to the key of the note that an answer in the scratch space has to fit. False if it has no question
 * that can be read. */
static __always_inline bool hash_answer(struct scratch *s, const struct settings *settings)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	struct waiting *waiting = &s->waiting;
	/* FORGET, here and below: as in read_question(). */
	u32 size = FORGET(s->present);

	if (size < DNS_HEADER || size > READ_SIZE)
		return false;
	set_asked(&waiting->asked, &s->to, dns->id);
	s->records = s->join.message + DNS_HEADER;
	s->question.qtype = 0;
	/* Some servers and firewalls send errors without a question. */
	if (!dns->questions)
		return FORGET(s->may_be_bare) && dns->more_flags & 15 && find_note_by_id(waiting, settings);
	if (size < SHORTEST_QUERY || dns->questions != __builtin_bswap16(1) || !walk_question(s, size))
		return false;
	hash_name(s, settings);

	u32 type_class = __builtin_bswap16(FORGET(s->question.qtype)) | __builtin_bswap16(FORGET(s->question.qclass))
									    << 16;

	waiting->hash = hash_note(s->question.sums, settings, type_class, &waiting->asked, &waiting->without_question);
	s->records += s->question.length + 4;
	return true;
}

/* Handles the message of which s->present octets are in the scratch space, which is an answer. It is at the offset
 * s->join.message of the packet, and has s->join.size octets. Sets s->is_matched if it fits a note. False if its
 * question is not there. */
static __always_inline bool handle_question(struct scratch *s, const struct settings *settings, struct __sk_buff *skb)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	struct waiting *waiting = &s->waiting;

	if (!hash_answer(s, settings))
		return false;
	if (remove_note(&waiting->hash, &waiting->taken, false)) {
		/* FORGET, here and below: as in read_question(). */
		u16 qtype = __builtin_bswap16(FORGET(s->question.qtype));
		u32 end = FORGET(s->join.message) + FORGET(s->join.size);

		s->ended.result = result_of(skb, dns, FORGET(s->records), end, qtype);
		end_note(&waiting->hash, &waiting->taken, FORGET(s->ended.result));
		report_answer(s, skb);
		s->is_matched = 1;
	} else if (dns->questions) {
		handle_unmatched(s);
	}
	return true;
}

/* False if the message of which s->present octets are in the scratch space is no answer. */
static __always_inline bool may_be_answer(const struct scratch *s)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);

	return s->present < DNS_HEADER || dns->flags & 0x80;
}

/* Handles the datagram whose first octets are in the scratch space. */
static __always_inline void handle_part(struct scratch *s, const struct settings *settings, struct __sk_buff *skb)
{
	s->in_packet = s->join.size;
	if (may_be_answer(s) && !handle_question(s, settings, skb) && should_fit(s->to.port))
		count_unmatched(UNMATCHED_UNREADABLE);
}

/* In place of a number of datagrams: the packet is no UDP from a watched port. */
#define NO_DATAGRAM 0xffffffffU

/* Handles the next datagrams of a packet, from number skb->cb[0] on, and returns how many are left. */
static __always_inline u32 handle_parts(struct scratch *s, const struct settings *settings, struct __sk_buff *skb)
{
	u32 message = read_ingress(s, skb);
	u32 number;

	if (!message)
		return NO_DATAGRAM;
	if (skb->len <= message)
		return 0;
	LOAD_CONTEXT(number, skb, cb[0]);
	s->message_at = message;
	s->may_be_bare = 1;
	s->total = skb->len - message;
	/* The kernel hands several datagrams to a socket with UDP_GRO of udp(7). */
	s->segment = skb->gso_segs > 1 && skb->gso_size ? skb->gso_size : s->total;
	s->at = number * s->segment;
	for (u32 i = 0; i < DATAGRAMS_IN_RUN; i++) {
		/* FORGET, here and below: with registers, the verifier would follow each round once for each way
		 * through the rounds before it. */
		if (FORGET(s->at) >= FORGET(s->total))
			return 0;
		read_next(s, skb);
		handle_part(s, settings, skb);
	}
	number = FORGET(s->at) / FORGET(s->segment);
	STORE_CONTEXT(skb, cb[0], number);
	if (FORGET(s->at) >= FORGET(s->total))
		return 0;
	return (FORGET(s->total) - FORGET(s->at) - 1) / FORGET(s->segment) + 1;
}

/* The second program. */
static __always_inline int handle_ingress_slowly(struct __sk_buff *skb)
{
	struct settings *settings = get_settings();
	u32 index = 0;
	u32 left = 0;
	struct scratch *s;

	if (!settings || map_pop(MAP(FREE_SCRATCH), &index)) {
		count_unmatched(UNMATCHED_UNREADABLE);
		return 1;
	}
	s = bpf_map_lookup_elem(MAP(SCRATCH_POOL), &index);
	if (s)
		left = handle_parts(s, settings, skb);
	map_push(MAP(FREE_SCRATCH), &index, 0);
	if (!left)
		return 1;
	/* The next datagrams. A packet without a UDP header may be TCP behind extension headers. */
	tail_call(skb, MAP(SELF_CALLS), left == NO_DATAGRAM ? ODD_CALL : 0);
	if (left == NO_DATAGRAM)
		return 1;
	add_to_slot(MAP(UNMATCHED), UNMATCHED_UNREADABLE, left);
	return 1;
}

#endif
