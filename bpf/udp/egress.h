/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hook at egress does with a packet: cgroup_skb at the root of cgroup2. The kernel runs it once for each
 * packet of a socket of this host, in ip_finish_output() and ip6_finish_output(), which the sender calls: after the
 * firewall, before the packet is cut into fragments and before it waits for the address of its next hop.
 *
 * Its programs return 1 on every path: 0 would drop the packet.
 */
#ifndef DNSPROBE_UDP_EGRESS_H
#define DNSPROBE_UDP_EGRESS_H

#include "verifier.h"
#include "scratch.h"
#include "query/recent.h"
#include "query/submit.h"
#include "process/asker.h"
#include "udp/datagram.h"
#include "udp/headers.h"
#include "udp/origin.h"

/* The hook can be limited to one family. */
#ifndef SERVED_FAMILY
#define SERVED_FAMILY(family) true
#endif

/* Extension headers of IPv6 that are followed, at most. */
#define EXTENSION_HEADERS 8
#define HOP_BY_HOP_HEADER 0
#define FRAGMENT_HEADER 44
#define AUTHENTICATION_HEADER 51
#define DESTINATION_HEADER 60

/* The longest packet that is handled without a second program. Verifier: offsets in a packet are below 65536. */
#define LONGEST_PLAIN 32767

/* Datagrams of one packet that a run handles at most: with 32 runs, all that a packet can have (UDP_MAX_SEGMENTS of
 * include/linux/udp.h: 128 since Linux 6.9). */
#define DATAGRAMS_IN_RUN 5
/* The number of the last run for one packet, from 0: MAX_TAIL_CALL_CNT of include/linux/bpf.h is 33, and was 32. */
#define LAST_RUN 31

/* What the first program finds out about a packet. */
enum finding {
	DONE,	 /* it is no query, or handled */
	NEW,	 /* a query that is not in the cache */
	UNKNOWN, /* the second program parses it */
};

/* The question of a packet, in place. */
struct place {
	u32 name;   /* offset of the name in the packet */
	u32 length; /* of the name in wire format, root included */
	u64 hash;   /* of the query */
};

/*
 * Hashes the question of a packet in place: nothing is copied. As is_recent() of udp/function.h; here the octets of the
 * message may end in the middle of a word. Sets `type_class`. False if that cannot be done.
 */
static __always_inline bool hash_question(struct place *place, struct sums *sums, u32 *type_class,
					  const struct __sk_buff *skb, const struct settings *settings)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	u8 *at = data + place->name;
	const u64 *key = settings->hash_key;
	u64 octets = 0, zeros = 0;

	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		if (at + 8 > data_end)
			break;
		octets = *(u64 *)at;
		zeros = zero_octets(octets);
		if (zeros)
			break;
		add_octets(sums, key, lower_case(octets));
		at += 8;
		key += 2;
	}
	if (!zeros) {
		/* The last octets of the packet are fewer than a word, so they are taken from its last word. */
		u64 last = skb->len - 8;
		u64 rest = data_end - at;

		if (last > LONGEST_PLAIN || rest - 1 > 6)
			return false;
		/* The comparison above may be with a copy of `last`. */
		KEEP_BELOW_32768(last);
		data += last;
		if (data + 8 > data_end)
			return false;
		octets = *(u64 *)data >> (64 - rest * 8);
		zeros = zero_octets(octets | ~0ULL << rest * 8);
		if (!zeros)
			return false;
	}

	u64 first = lowest_lane(zeros);

	add_octets(sums, key, lower_case(octets & (first - 1)));
	at += octets_below(first) + 1;
	if (at + 4 > data_end)
		return false;
	place->length = at - (u8 *)(long)skb->data - place->name;
	*type_class = *(u32 *)at;
	return true;
}

/* Looks up the question of a packet in the cache of outcomes. Returns UNKNOWN if it cannot be looked up, and NEW if it
 * is not there. */
static __always_inline enum finding look_up_question(struct place *place, const struct __sk_buff *skb,
						     const struct settings *settings, u64 packet, u8 family,
						     const struct asked *asked)
{
	struct sums sums = {};
	u32 type_class;

	if (!hash_question(place, &sums, &type_class, skb, settings))
		return UNKNOWN;
	return count_recent(&place->hash, &sums, settings, type_class, TRANSPORT_UDP, skb, packet, family, asked) ? DONE
														  : NEW;
}

/* True if the labels of a name end where its first octet that is 0 is. */
static __always_inline bool has_labels(const struct __sk_buff *skb, const struct place *place)
{
	u8 *data_end = (void *)(long)skb->data_end;
	u64 at = 0;

	for (u32 i = 0; i < 128; i++) {
		if (at >= place->length - 1)
			break;
		/* The comparison above may be with a copy of `at`. */
		KEEP_BELOW_512(at);

		u8 *label = (u8 *)(long)skb->data + place->name + at;

		if (label + 1 > data_end || *label > 63)
			return false;
		at += *label + 1;
	}
	return at == place->length - 1;
}

/*
 * True if no rule matches a name. False if one may match, or if the name cannot be read in place. As reverse_name() and
 * match_name(), on the stack: this is what becomes of most names that are new.
 */
static __always_inline bool matches_no_rule(const struct __sk_buff *skb, const struct place *place)
{
	u8 *data_end = (void *)(long)skb->data_end;
	u32 zero = 0;
	void *rules = bpf_map_lookup_elem(MAP(RULES), &zero);
	/* Verifier: words on the stack must be aligned. */
	struct {
		u32 pad;
		u32 bits;
		u64 reversed[NAME_SIZE / 8];
	} key = { .bits = place->length * 8 };

	if (!rules || place->length > 255 || !has_labels(skb, place))
		return false;
	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		u64 from = place->length - i * 8;

		if (i * 8 >= place->length)
			break;
		/* The comparison above bounds it, but in another register. */
		KEEP_BELOW_512(from);

		u8 *word = (u8 *)(long)skb->data + place->name - 8 + from;

		if (word + 8 > data_end)
			return false;

		u64 octets = lower_case(__builtin_bswap64(*(u64 *)word));

		/* Octets in front of the name are not part of it. */
		if (from < 8)
			octets &= (1ULL << from * 8) - 1;
		key.reversed[i] = octets;
	}
	return !bpf_map_lookup_elem(rules, &key.bits);
}

/* Remembers that no rule matches a name. False if one may match. */
static __always_inline bool is_without_rule(const struct __sk_buff *skb, const struct settings *settings,
					    const struct place *place)
{
	if (!matches_no_rule(skb, place))
		return false;
	take_repeats(place->hash);
	remember_outcome(place->hash, NO_RULE, 0, settings->generation);
	return true;
}

/* Handles a packet whose UDP header is at the offset `header`, which the caller has found to be in the linear part.
 * `destination` is the offset of the destination in the IP header. */
static __always_inline enum finding look_up_packet(const struct __sk_buff *skb, u32 header, u8 family, u32 destination)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct udp *udp = (void *)(data + header);
	const struct dns *dns = (void *)(udp + 1);
	struct settings *settings;
	u64 packet = kernel_packet(skb);
	u64 address[2] = {};
	u16 port;

	if ((u8 *)dns > data_end)
		return UNKNOWN;
	port = udp->destination;

	bool is_readable = (u8 *)(dns + 1) <= data_end && skb->gso_segs <= 1;

	/* NAT may have replaced a watched port by any other. */
	if (!WATCHED_PORT(__builtin_bswap16(port)) && (u8 *)(dns + 1) <= data_end && !looks_like_query(dns))
		return DONE;
	settings = get_settings();
	if (!settings)
		return DONE;
	/* Most packets are no parts, and left to the hook at a function. */
	if (settings->parts_only && is_readable &&
	    !is_beyond_linear(data_end - (u8 *)dns, skb->len - (data_end - data)))
		return DONE;
	if (TRACKS_ANSWERS || TELLS_SERVERS || has_connection(packet))
		__builtin_memcpy(address, data + destination, family == 4 ? 4 : 16);
	if (has_connection(packet)) {
		undo_nat(packet, family, address, &port);
	} else if (is_connected_elsewhere(skb, port) ||
		   ((TRACKS_ANSWERS || TELLS_SERVERS) && has_other_peer(skb, family, address))) {
		return UNKNOWN;
	}
	port = __builtin_bswap16(port);
	if (!WATCHED_PORT(port))
		return DONE;
	/* Answers and servers together do not fit on the stack of this program. */
	if (!is_readable || settings->parts_only || (TRACKS_ANSWERS && (TELLS_SERVERS || may_be_raw(skb))))
		return UNKNOWN;
	if (!may_be_recent(dns, port) || udp->length != __builtin_bswap16(skb->len - header))
		return UNKNOWN;

	struct place place = { .name = header + UDP_HEADER + DNS_HEADER };
	struct asked asked = {
		.sock = TRACKS_ANSWERS ? read_u64(packet + SKB_SK) : 0,
		.server = { address[0], address[1] },
		.id = dns->id,
		.port = port,
	};

	set_family(&asked, family);

	enum finding finding = look_up_question(&place, skb, settings, packet, family, &asked);

	if (finding == NEW)
		return is_without_rule(skb, settings, &place) ? DONE : UNKNOWN;
	return finding;
}

#define ETHERTYPE_IP4 __builtin_bswap16(0x0800)

/* Counts datagrams of a packet that are not read. */
static __always_inline void count_unread_packet(const struct __sk_buff *skb, u32 reason, u64 number)
{
	u64 packet = kernel_packet(skb);
	u8 family = skb->protocol == ETHERTYPE_IP4 ? 4 : 6;

	count_unread(reason, TRANSPORT_UDP | local_by_packet(skb, packet, family), number,
		     is_clearly_asker(packet, family));
}

/* The first program. Most packets are UDP or TCP in plain IP headers. */
static __always_inline int handle_egress(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct ip4 *ip4 = (void *)data;
	const struct ip6 *ip6 = (void *)data;
	enum finding finding = UNKNOWN;

	if ((u8 *)(ip4 + 1) > data_end)
		goto parse;
	if (ip4->version_length >> 4 == 4) {
		if (ip4->protocol != PROTOCOL_UDP || !SERVED_FAMILY(4))
			return 1;
		if (ip4->version_length == 0x45)
			finding = look_up_packet(skb, IP4_HEADER, 4, __builtin_offsetof(struct ip4, destination));
	} else {
		if ((u8 *)(ip6 + 1) > data_end)
			goto parse;
		if (ip6->next_header == PROTOCOL_TCP || ip6->next_header == PROTOCOL_ICMPV6 || !SERVED_FAMILY(6))
			return 1;
		if (ip6->next_header == PROTOCOL_UDP)
			finding = look_up_packet(skb, IP6_HEADER, 6, __builtin_offsetof(struct ip6, destination));
	}
	if (finding != UNKNOWN)
		return 1;
parse:
	/* The kernel clears it before the first program, unless a program of another owner runs before this one. */
	STORE_CONTEXT(skb, cb[0], 0);
	STORE_CONTEXT(skb, cb[1], 0);
	STORE_CONTEXT(skb, cb[2], 0);
	/* The rest is another program, so that each of them is small for the verifier. */
	tail_call(skb, MAP(SELF_CALLS), 0);
	count_unread_packet(skb, STAT_UNPARSED_BUSY, 1);
	return 1;
}

/* Reads a part of the packet, linear or not. */
#define LOAD(skb, offset, destination) bpf_skb_load_bytes(skb, offset, &(destination), sizeof(destination))

/* Returns the offset of the UDP header behind an IPv6 header and its extension headers, 0 if there is none. A routing
 * header may have the address of the receiver. */
static __always_inline u32 find_udp_over_ip6(struct destination *to, struct __sk_buff *skb, u8 next)
{
	u32 at = IP6_HEADER;

	for (u32 i = 0; i < EXTENSION_HEADERS; i++) {
		u8 header[4]; /* next header, length; in a fragment header, the offset of the fragment */

		if (next == PROTOCOL_UDP)
			return at;
		if (next != HOP_BY_HOP_HEADER && next != ROUTING_HEADER && next != FRAGMENT_HEADER &&
		    next != AUTHENTICATION_HEADER && next != DESTINATION_HEADER)
			return 0;
		if (LOAD(skb, at, header))
			return 0;
		if (next == ROUTING_HEADER) {
			struct routing_header routing;

			if (LOAD(skb, at, routing) == 0 && has_receiver(&routing))
				set_server(to, 6, routing.address);
		}
		if (next == FRAGMENT_HEADER) {
			/* Only the first fragment has a UDP header. The lower three bits are flags. */
			if (header[2] || header[3] >> 3)
				return 0;
			at += 8;
		} else {
			/* RFC 4302, section 2.2, counts in words of four octets, without the first two. */
			at += next == AUTHENTICATION_HEADER ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
		}
		next = header[0];
	}
	return 0;
}

/* Reads the destination from the IP header, and returns the offset of the UDP header, 0 if there is none. */
static __always_inline u32 read_ip_header(struct destination *to, struct __sk_buff *skb)
{
	union {
		struct ip4 four;
		struct ip6 six;
	} ip;

	if (LOAD(skb, 0, ip.four))
		return 0;
	if (ip.four.version_length >> 4 == 4) {
		if (ip.four.protocol != PROTOCOL_UDP || (ip.four.fragment & FRAGMENT_OFFSET))
			return 0;
		set_server(to, 4, ip.four.destination);
		return (ip.four.version_length & 15) * 4;
	}
	if (ip.four.version_length >> 4 != 6 || LOAD(skb, 0, ip.six))
		return 0;
	set_server(to, 6, ip.six.destination);
	return find_udp_over_ip6(to, skb, ip.six.next_header);
}

/*
 * Reads where the sender wants the packet to go, and returns the offset of its DNS message; 0 if it is no UDP packet to
 * a watched port.
 */
static __always_inline u32 read_egress(struct destination *to, struct __sk_buff *skb)
{
	struct udp udp;
	u64 packet = kernel_packet(skb);
	u64 address[2];
	u32 header = read_ip_header(to, skb);

	if (!header || !SERVED_FAMILY(to->family) || LOAD(skb, header, udp))
		return 0;
	__builtin_memcpy(address, to->server, sizeof(address));
	if (has_connection(packet))
		undo_nat(packet, to->family, address, &udp.destination);
	else
		undo_translation(skb, packet, to->family, address, &udp.destination);
	__builtin_memcpy(to->server, address, sizeof(address));
	to->port = __builtin_bswap16(udp.destination);
	if (!WATCHED_PORT(to->port))
		return 0;
	/* The program gets the address of struct sk_buff. */
	to->skb = (u64)skb;
	to->sock = 0;
	to->local = local_by_packet(skb, packet, to->family);
	to->transport = transport_of(to, __builtin_bswap16(udp.source), TRANSPORT_UDP);
	return header + UDP_HEADER;
}

/* Copies the first octets of a datagram, which has `length` octets at the offset `at` of the packet. */
static __always_inline void copy_datagram(struct scratch *s, struct __sk_buff *skb, u32 at, u32 length)
{
	u64 behind_first = (length < READ_SIZE ? length : READ_SIZE) - 1;

	s->present = 0;
	s->beyond = 0;
	if (!length)
		return;
	/* The comparison above may be with a copy of the size. The helper takes no size of 0, and Linux 5.10 does not
	 * learn from a comparison that a number is not 0. So the mask is for one octet less. */
	KEEP_BELOW_512(behind_first);
	if (bpf_skb_load_bytes(skb, at, s->packet + PACKET_FRONT, behind_first + 1) == 0)
		s->present = behind_first + 1;
}

/* Finds out how a packet is cut into datagrams. False if it is not handled here. */
static __always_inline bool read_cut(struct scratch *s, const struct settings *settings, struct __sk_buff *skb)
{
	u32 linear = skb->data_end - skb->data;
	u32 message = read_egress(&s->to, skb);

	if (!message || skb->len <= message)
		return false;

	u32 total = skb->len - message;
	u32 segment = skb->gso_segs > 1 && skb->gso_size ? skb->gso_size : total;

	s->message_at = message;
	s->total = total;
	s->segment = segment;
	if (!settings->parts_only)
		return true;
	return segment < total || is_beyond_linear(linear > message ? linear - message : 0, skb->len - linear);
}

/* Reads the next datagram. */
static __always_inline void read_next(struct scratch *s, struct __sk_buff *skb)
{
	u32 at = s->at;
	u32 left = s->total - at;
	u32 segment = s->segment;

	u32 size = left < segment ? left : segment;

	s->at = at + segment;
	s->join.message = s->message_at + at;
	s->join.size = size;
	copy_datagram(s, skb, s->message_at + at, size);
}

/* Notes in the context where the next run begins, and returns how many datagrams are left, with the one that has
 * another question. A message has less than 65,536 octets. */
static __always_inline u32 end_run(struct scratch *s, struct __sk_buff *skb)
{
	/* FORGET: with registers, the verifier would follow this once for each way through the run. */
	u32 number = FORGET(s->at) / FORGET(s->segment);
	u32 runs = FORGET(s->runs) + 1;
	u32 question = FORGET(s->questions) << 16 | FORGET(s->question_at);

	STORE_CONTEXT(skb, cb[0], number);
	STORE_CONTEXT(skb, cb[1], runs);
	STORE_CONTEXT(skb, cb[2], question);
	if (FORGET(s->at) >= FORGET(s->total))
		return 0;
	return (FORGET(s->total) - FORGET(s->at) - 1) / FORGET(s->segment) + 1;
}

/* Finds out whether the current task asks, and if it does not, who does. */
static __always_inline void find_sender(struct scratch *s, struct __sk_buff *skb)
{
	u64 packet = kernel_packet(skb);

	s->sent_on = !is_asker(packet, s->to.family);
	if (!s->sent_on)
		return;
	s->leader = find_asker(skb, packet, &s->process);
	if (!s->leader)
		__builtin_memset(&s->process, 0, sizeof(s->process));
}

/*
 * Handles the next datagrams of a packet, from number skb->cb[0] on, and returns how many are left. The context is the
 * only place that a run keeps over a tail call.
 *
 * A run ends at the first datagram that is odd, has several questions or causes an event, since there must be only one
 * copy of what handles it and of what submits events. If the runs that are left could then not handle all datagrams,
 * the event is lost instead.
 */
static __always_inline u32 handle_datagrams(struct scratch *s, const struct settings *settings, struct __sk_buff *skb)
{
	u32 number, runs;

	if (!read_cut(s, settings, skb))
		return 0;
	LOAD_CONTEXT(number, skb, cb[0]);
	LOAD_CONTEXT(runs, skb, cb[1]);
	s->runs = runs;
	if (settings->parts_only && !runs && s->to.port != CANARY_PORT)
		count_statistic(STAT_PARTS_TAKEN);
	s->at = number * s->segment;
	s->unread = 0;
	begin_questions(s);
	find_sender(s, skb);
	for (u32 i = 0; i < DATAGRAMS_IN_RUN; i++) {
		/* FORGET, here and below: with registers, the verifier would follow each round once for each way
		 * through the rounds before it. */
		if (FORGET(s->at) >= FORGET(s->total))
			break;
		read_next(s, skb);
		handle_datagram(s, settings);
		/* The third program handles it, or its further questions. */
		if (FORGET(s->unread) || FORGET(s->question_at)) {
			s->at -= s->segment;
			break;
		}
		if (FORGET(s->submit) || FORGET(s->keep_tree)) {
			/* Negative behind the last datagram, which may be shorter than the others. */
			s32 left = FORGET(s->total) - FORGET(s->at);
			s32 room = (LAST_RUN - FORGET(s->runs)) * DATAGRAMS_IN_RUN * FORGET(s->segment);

			if (left <= 0 || left <= room || FORGET(s->keep_tree))
				break;
			count_statistic(STAT_LOST_SEGMENTED);
			update_seen(s, settings, false);
			s->submit = 0;
		}
	}
	keep_and_submit(s, settings);
	remember_query(s, settings);
	return end_run(s, skb);
}

/* Handles the datagram number skb->cb[0], which the second program could not read, or its question at the offset that
 * skb->cb[2] has in its lower half. As handle_datagrams(). */
static __always_inline u32 handle_odd_datagram(struct scratch *s, const struct settings *settings,
					       struct __sk_buff *skb)
{
	u32 number, runs, question;

	if (!read_cut(s, settings, skb))
		return 0;
	LOAD_CONTEXT(number, skb, cb[0]);
	LOAD_CONTEXT(runs, skb, cb[1]);
	LOAD_CONTEXT(question, skb, cb[2]);
	s->runs = runs;
	s->questions = question >> 16;
	s->question_at = question & 0xffff;
	s->at = number * s->segment;
	if (s->at >= s->total)
		return 0;
	find_sender(s, skb);
	read_next(s, skb);
	s->keep_tree = 0;
	s->submit = 0;
	if (s->question_at) {
		prepare_next_question(s);
	} else {
		s->questions = 0;
		s->unread = read_question(s);
	}
	/* The sender may change the memory of a send without a copy (MSG_ZEROCOPY) after the second program has read
	 * it. FORGET, here and below: as in handle_datagrams(). */
	if (FORGET(s->unread) == PARSED) {
		s->unread = STAT_UNPARSED_MALFORMED;
		s->question.has_pointer = 1;
	}
	handle_odd_message(s, settings, skb, true);
	keep_and_submit(s, settings);
	/* The next run handles the next question. */
	if (FORGET(s->question_at))
		s->at -= s->segment;
	return end_run(s, skb);
}

/* Where the third program is in MAP(SELF_CALLS): dnsprobe/kernel/loader.py. */
#define ODD_CALL 2

/* The second program and, with the constant `is_odd`, the third one. They are two so that each is small for the
 * verifier. */
static __always_inline int handle_egress_slowly(struct __sk_buff *skb, bool is_odd)
{
	struct settings *settings = get_settings();
	struct scratch *s;
	u32 index = 0;
	u32 left = 0;
	u32 next = 0;

	if (!settings || map_pop(MAP(FREE_SCRATCH), &index)) {
		count_unread_packet(skb, STAT_UNPARSED_BUSY, 1);
		return 1;
	}
	s = bpf_map_lookup_elem(MAP(SCRATCH_POOL), &index);
	if (s && is_odd)
		left = handle_odd_datagram(s, settings, skb);
	if (s && !is_odd)
		left = handle_datagrams(s, settings, skb);
	/* FORGET: as in end_run(). */
	if (s && (FORGET(s->question_at) || (!is_odd && FORGET(s->unread))))
		next = ODD_CALL;
	map_push(MAP(FREE_SCRATCH), &index, 0);
	if (!left)
		return 1;
	/* The next datagrams. A loop around all of this would be too large for the verifier. */
	tail_call(skb, MAP(SELF_CALLS), next);
	count_unread_packet(skb, STAT_UNPARSED_SEGMENTED, left);
	return 1;
}

#endif
