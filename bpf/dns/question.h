/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The question of a DNS message: RFC 1035, sections 4.1.2 and 3.1.
 */
#ifndef DNSPROBE_DNS_QUESTION_H
#define DNSPROBE_DNS_QUESTION_H

#include "verifier.h"
#include "scratch.h"
#include "dns/message.h"

/* Labels and pointers of a compressed name that are followed at most. The labels alone are up to 128. */
#define PIECES 192
#define POINTER 0xc0

/* Copies `size` octets, 1 to 64, from the offset `from` of the message: of a packet, if there is one. Returns 0 on
 * success. */
static __always_inline long read_octets(struct scratch *s, struct __sk_buff *packet, bool in_packet, u64 from, void *to,
					u32 size)
{
	/* FORGET, here and below: with registers, the verifier would follow each round of the loop once for each way
	 * to the loop, and through the rounds before it. */
	u64 at = FORGET(s->join.message);
	u64 behind_first = size - 1;

	if (from + size > FORGET(s->join.size))
		return -1;
	/* Verifier: the helper takes no size of 0, as in copy_datagram(). */
	KEEP_BELOW_64(behind_first);
	/* A constant, so that only one of the two is compiled. */
	if (in_packet)
		return bpf_skb_load_bytes(packet, at + from, to, behind_first + 1);
	return bpf_probe_read_kernel(to, behind_first + 1, (void *)(at + from));
}

/*
 * Adds one label of a compressed name, or follows one pointer. False if there is none to add or follow.
 *
 * Both are one path through the code, by masks, since the verifier follows each path in each round of the loop.
 */
static __always_inline bool join_piece(struct scratch *s, struct __sk_buff *packet, bool in_packet)
{
	/* FORGET: as in read_octets(). */
	u64 at = FORGET(s->join.at);
	u64 to = FORGET(s->join.length);

	if (read_octets(s, packet, in_packet, at, s->join.head, 1))
		return false;

	u64 length = FORGET(s->join.head[0]);
	/* 1 or 0: below a pointer, the difference is negative. */
	u64 is_label = (length - POINTER) >> 63;

	HIDE(is_label);

	u64 size = (length & -is_label) + 2 - is_label;

	/* A pointer takes no room in the name. The longest name has 255 octets. */
	if (size > 64 || to + (size & -is_label) > 255)
		return false;
	/* The comparison above may be with a copy of `to`. */
	KEEP_BELOW_256(to);
	if (read_octets(s, packet, in_packet, at, s->join.name + to, size))
		return false;

	u64 labels = FORGET(s->join.labels);
	u64 target = (length & 63) << 8 | FORGET(s->join.name[to + 1]);
	u64 behind = FORGET(s->join.behind);

	/* There are less labels than octets. */
	KEEP_BELOW_128(labels);
	s->label_offset[labels] = to;
	s->join.labels = labels + is_label;
	s->join.length = to + (size & -is_label);
	s->join.at = ((at + size) & -is_label) | (target & (is_label - 1));
	/* Type and class follow the first pointer. */
	s->join.behind = behind | ((at + size) & (is_label - 1) & ((behind != 0) - 1ULL));
	s->join.is_whole = !length;
	return length;
}

/*
 * Reads the question at the offset `at` of the message, whose name may have compression pointers (section 4.1.4), and
 * puts the whole name into the scratch space, as that of the first question. s->join.behind is then the offset of its
 * type and class. False if the question is malformed or incomplete.
 *
 * No resolver library writes such a question. But BIND follows pointers to any octet before, and dnsmasq to any octet
 * of the message, so that the name may continue in another section, or behind all of them.
 */
static __always_inline bool join_question(struct scratch *s, struct __sk_buff *packet, bool in_packet, u32 at)
{
	u8 *tail = s->join.head;

	s->join.at = at;
	s->join.length = 0;
	s->join.labels = 0;
	s->join.behind = 0;
	s->join.is_whole = 0;
	for (u32 i = 0; i < PIECES; i++) {
		if (!join_piece(s, packet, in_packet))
			break;
	}

	/* FORGET, here and below: with registers, the verifier would follow this once for each way out of the loop. */
	u32 behind = FORGET(s->join.behind);

	if (!behind)
		behind = FORGET(s->join.at);
	s->join.behind = behind;
	if (!FORGET(s->join.is_whole) || read_octets(s, packet, in_packet, behind, tail, 4))
		return false;
	bpf_probe_read_kernel(s->packet + PACKET_FRONT + DNS_HEADER, NAME_SIZE, s->join.name);
	s->question.length = s->join.length;
	s->question.labels = s->join.labels - 1;
	s->question.qtype = tail[0] << 8 | tail[1];
	s->question.qclass = tail[2] << 8 | tail[3];
	/* As in walk_question(). */
	if (s->to.transport == TRANSPORT_MDNS)
		s->question.qclass &= 0x7fff;
	return true;
}

/* Reads the question of the message in the scratch space, which has `size` octets. False if it is malformed or
 * incomplete, or has a compression pointer: then s->question.has_pointer is true. */
static __always_inline bool walk_question(struct scratch *s, u32 size)
{
	u64 at = DNS_HEADER;

	s->question.length = 0;
	s->question.has_pointer = 0;
	for (u32 i = 0; i < 128; i++) {
		/* The comparison at the end of the loop may be with a copy of `at`. */
		KEEP_BELOW_512(at);
		u8 length = s->packet[PACKET_FRONT + at];

		if (length == 0) {
			s->question.labels = i;
			s->question.length = at + 1 - DNS_HEADER;
			break;
		}
		if (length > 63) {
			s->question.has_pointer = length >= POINTER;
			break;
		}
		s->label_offset[i] = at - DNS_HEADER;
		at += length + 1;
		if (at > DNS_HEADER + 254)
			break;
	}
	/* With a register, the verifier would follow the code below once for each number of labels. */
	u64 end = FORGET(s->question.length);

	if (end == 0 || end > 255 || DNS_HEADER + end + 4 > size)
		return false;
	end += DNS_HEADER;
	/* Without this, the verifier refuses the programs for TCP: it takes `end` to be up to 65535 (Linux 6.18). */
	KEEP_BELOW_512(end);
	s->question.qtype = (s->packet[PACKET_FRONT + end] << 8) | s->packet[PACKET_FRONT + end + 1];
	s->question.qclass = (s->packet[PACKET_FRONT + end + 2] << 8) | s->packet[PACKET_FRONT + end + 3];
	/* The top bit asks for an answer by unicast: RFC 6762, section 5.4. */
	if (s->to.transport == TRANSPORT_MDNS)
		s->question.qclass &= 0x7fff;
	return true;
}

#endif
