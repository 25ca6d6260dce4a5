/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The question of a DNS message: RFC 1035, sections 4.1.2 and 3.1.
 */
#ifndef DNSPROBE_DNS_QUESTION_H
#define DNSPROBE_DNS_QUESTION_H

#include "verifier.h"
#include "scratch.h"
#include "dns/message.h"

/* A whole message: in a packet, or in memory. */
struct octets {
	struct __sk_buff *packet; /* at egress, otherwise NULL */
	u64 at;			  /* where the message begins: an offset in the packet, or an address */
	u32 size;
};

/* Labels and pointers of a compressed name that are followed at most. The labels alone are up to 128. */
#define PIECES 192
#define POINTER 0xc0

/* Copies `size` octets, 1 to 64, from the offset `from` of a message. Returns 0 on success. */
static __always_inline long read_octets(const struct scratch *s, const struct octets *message, u64 from, void *to,
					u32 size)
{
	u64 behind_first = size - 1;

	/* FORGET: of a number on the stack, the verifier would learn another bound in each round of the loop. */
	if (from + size > FORGET(s->join.size))
		return -1;
	/* Verifier: a part of the scratch space may be added only a bounded offset. */
	KEEP_BELOW_32768(from);
	/* Verifier: as in copy_datagram(). */
	KEEP_BELOW_64(behind_first);
	if (message->packet)
		return bpf_skb_load_bytes(message->packet, message->at + from, to, behind_first + 1);
	return bpf_probe_read_kernel(to, behind_first + 1, (void *)(message->at + from));
}

/* Adds one label of a compressed name, or follows one pointer. False if there is none to add or follow. */
static __always_inline bool join_piece(struct scratch *s, const struct octets *message)
{
	/* FORGET, here and below: with registers, the verifier would follow each round of the loop once for each way
	 * through the rounds before it. */
	u64 at = FORGET(s->join.at);
	u64 to = FORGET(s->join.length);
	u64 labels = FORGET(s->join.labels);
	u64 octet = 0, low_octet = 0;
	u8 length;

	if (read_octets(s, message, at, &octet, 1))
		return false;
	length = *(u8 *)&octet;
	if (length >= POINTER) {
		if (read_octets(s, message, at + 1, &low_octet, 1))
			return false;
		/* Type and class follow the first pointer. */
		if (!FORGET(s->join.behind))
			s->join.behind = at + 2;
		s->join.at = (length - POINTER) << 8 | *(u8 *)&low_octet;
		return true;
	}
	if (length > 63 || to + length + 1 > 255)
		return false;
	/* The comparison above may be with a copy of `to`. There are less labels than octets. */
	KEEP_BELOW_256(to);
	KEEP_BELOW_128(labels);
	if (read_octets(s, message, at, s->join.name + to, length + 1))
		return false;
	s->label_offset[labels] = to;
	s->join.at = at + length + 1;
	s->join.length = to + length + 1;
	if (length)
		s->join.labels = labels + 1;
	else
		s->join.is_whole = 1;
	return length;
}

/*
 * Reads a question whose name has compression pointers (section 4.1.4), and replaces the name in the scratch space by
 * the whole name. False if the question is malformed or incomplete.
 *
 * No resolver library writes such a question. But BIND follows pointers to any octet before, and dnsmasq to any octet
 * of the message, so that the name may continue in another section, or behind all of them.
 */
static __always_inline bool join_question(struct scratch *s, const struct octets *message)
{
	u8 tail[4];

	__builtin_memset(&s->join, 0, __builtin_offsetof(struct join, name));
	s->join.at = DNS_HEADER;
	s->join.size = message->size;
	for (u32 i = 0; i < PIECES; i++) {
		if (!join_piece(s, message))
			break;
	}

	/* FORGET, here and below: with registers, the verifier would follow this once for each way out of the loop. */
	u32 behind = FORGET(s->join.behind);

	if (!FORGET(s->join.is_whole) || !behind || read_octets(s, message, behind, tail, sizeof(tail)))
		return false;
	bpf_probe_read_kernel(s->packet + PACKET_FRONT + DNS_HEADER, NAME_SIZE, s->join.name);
	s->question.length = s->join.length;
	s->question.labels = s->join.labels;
	s->question.qtype = tail[0] << 8 | tail[1];
	s->question.qclass = tail[2] << 8 | tail[3];
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
	return true;
}

/*
 * Reads the question of a message, of which the first `size` octets are in the scratch space. False if it is malformed
 * or incomplete.
 */
static __always_inline bool read_name(struct scratch *s, u32 size, const struct octets *message, u8 transport)
{
	/* FORGET, here and below: with registers, the verifier would follow what comes behind once for each way out of
	 * both. */
	s->question.is_read = walk_question(s, size);
	if (FORGET(s->question.has_pointer))
		s->question.is_read = join_question(s, message);
	/* The top bit asks for an answer by unicast: RFC 6762, section 5.4. */
	if (transport == TRANSPORT_MDNS)
		s->question.qclass &= 0x7fff;
	return FORGET(s->question.is_read);
}

#endif
