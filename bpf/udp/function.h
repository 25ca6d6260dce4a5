/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hooks at kernel functions do with a packet. Its question is looked up in the cache of outcomes first. If
 * that fails, a second program parses it.
 */
#ifndef DNSPROBE_UDP_FUNCTION_H
#define DNSPROBE_UDP_FUNCTION_H

#include "kernel_read.h"
#include "verifier.h"
#include "scratch.h"
#include "query/recent.h"
#include "query/submit.h"
#include "udp/datagram.h"
#include "udp/packet.h"

/*
 * Returns the number of datagrams in a packet (UDP_SEGMENT of udp(7)). udp_send_skb() notes their size in the packet.
 * Before that, it is only in `cork` (struct inet_cork), 0 at hooks that do not have it.
 */
static __always_inline u32 count_datagrams(const struct packet *packet, u64 cork)
{
	u32 shared_info = 0;
	u16 segment = 0;
	u32 total = packet->length + packet->beyond;

	if (cork) {
		READ(segment, cork + CORK_GSO_SIZE);
	} else {
		/* skb_shinfo(): at skb->end, an offset from skb->head on 64-bit kernels. */
		READ(shared_info, packet->to.skb + SKB_END);
		READ(segment, packet->buffer + shared_info + SHINFO_GSO_SIZE);
	}
	return segment && segment < total ? (total + segment - 1) / segment : 1;
}

/*
 * Looks up the question in the scratch space in the cache of outcomes. True if it was found there. A packet with room
 * for a second message may have several, so it is not looked up.
 */
static __always_inline bool is_recent(struct scratch *s, const struct settings *settings, const struct packet *packet,
				      u64 cork)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	struct sums sums = {};
	u64 at = 0, octets = 0, zeros = 0, query_hash;

	if (s->present < SHORTEST_QUERY || !may_be_recent(dns, packet->to.port))
		return false;
	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		at = i * 8;
		octets = *(u64 *)&s->packet[PACKET_FRONT + DNS_HEADER + at];
		zeros = zero_octets(octets);
		if (zeros)
			break;
		add_octets(&sums, settings->hash_key + i * 2, lower_case(octets));
	}
	if (!zeros)
		return false;

	u64 first = lowest_lane(zeros);
	u64 end = DNS_HEADER + at + octets_below(first) + 1;

	add_octets(&sums, settings->hash_key + at / 4, lower_case(octets & (first - 1)));
	if (end + 4 > s->present)
		return false;
	/* The verifier does not know how many octets are below a lane. */
	KEEP_BELOW_512(end);
	if (packet->length - end >= 4 + SHORTEST_QUERY && count_datagrams(packet, cork) > 1)
		return false;

	struct asked asked;

	set_asked(&asked, &packet->to, dns->id);
	return count_recent(&query_hash, &sums, settings, *(u32 *)&s->packet[PACKET_FRONT + end], TRANSPORT_UDP, NULL,
			    packet->to.skb, packet->to.family, &asked);
}

/* Handles one packet at one of the hooks. Each step rejects what it can, the cheapest first. */
static __always_inline int handle_packet(void *ctx, u64 skb, u16 known_port, u64 cork, u32 hook_kind)
{
	struct packet packet;

	if (!read_packet(&packet, skb, known_port))
		return 0;

	struct scratch *s = get_scratch(hook_kind);
	struct settings *settings = get_settings();

	if (!s || !settings)
		return 0;

	u32 size = packet.length < READ_SIZE ? packet.length : READ_SIZE;

	s->present = size;
	/* The comparison above may be with a copy of `size`. */
	KEEP_BELOW_512(size);
	if (size && bpf_probe_read_kernel(s->packet + PACKET_FRONT, size, (void *)packet.payload))
		s->present = 0;
	if (!is_beyond_linear(packet.length, packet.beyond) && is_recent(s, settings, &packet, cork))
		return 0;
	packet.to.local = local_by_route(ROUTE_AT_FUNCTION(skb), packet.to.family);
	s->to = packet.to;
	s->beyond = packet.beyond;
	s->payload = packet.payload;
	s->linear = packet.length;
	s->datagrams = count_datagrams(&packet, cork);
	begin_questions(s);
	/* The rest is another program, so that each of them is small for the verifier. */
	tail_call(ctx, MAP(SELF_CALLS), 0);
	count_unread(STAT_UNPARSED_BUSY, counted_transport(&packet.to), 1, !is_kernel_thread());
	return 0;
}

/* Parses the packet that handle_packet() has left in the scratch space. Each question of its message takes a run. */
static __always_inline int handle_packet_slowly(void *ctx, u32 hook_kind)
{
	struct scratch *s = get_scratch(hook_kind);
	struct settings *settings = get_settings();

	if (!s || !settings)
		return 0;

	bool is_first = !s->question_at;
	u32 unread = s->datagrams - 1;

	if (unread || is_beyond_linear(s->present, s->beyond)) {
		if (settings->parts_only) {
			if (s->to.port != CANARY_PORT)
				count_statistic(STAT_PARTS_LEFT);
			return 0;
		}
		if (unread && is_first)
			count_unread(STAT_UNPARSED_SEGMENTED, counted_transport(&s->to), unread, !is_kernel_thread());
	}

	exclude_kernel_thread(s);
	s->join.message = s->payload;
	s->join.size = s->linear;
	if (!is_first) {
		s->keep_tree = 0;
		s->submit = 0;
		prepare_next_question(s);
	} else {
		handle_datagram(s, settings);
	}
	/* FORGET, here and below: with a register, the verifier would follow this once for each way through it. */
	if (FORGET(s->unread))
		handle_odd_message(s, settings, NULL, false);
	keep_and_submit(s, settings);
	remember_query(s, settings);
	/* FORGET: as above. */
	if (!FORGET(s->question_at))
		return 0;
	/* The next question. */
	tail_call(ctx, MAP(SELF_CALLS), 0);
	count_unread(STAT_UNPARSED_QUESTIONS, counted_transport(&s->to), 1, !is_kernel_thread());
	return 0;
}

#endif
