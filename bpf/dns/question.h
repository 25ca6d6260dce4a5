/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The question of a DNS message: RFC 1035, sections 4.1.2 and 3.1.
 */
#ifndef DNSPROBE_QUERY_H
#define DNSPROBE_QUERY_H

#include "udp/packet.h"

/*
 * What a loop finds out goes through the scratch space, and is read from there again. In a register the verifier would
 * know it after each of the loop's exits (so many labels, so many octets), and would go through all that follows once
 * for each; what is in a map it forgets.
 */
#define FORGET(value)                                                                                                  \
	({                                                                                                             \
		typeof(value) *where_ = &(value);                                                                      \
		*(volatile typeof(value) *)where_;                                                                     \
	})

/* Without this the compiler proves the mask needless and drops it, and the verifier cannot follow the proof. */
#define KEEP_BELOW_512(value) asm volatile("%0 &= 511" : "+r"(value))
#define KEEP_BELOW_64(value) asm volatile("%0 &= 63" : "+r"(value))
#define KEEP_BELOW_128(value) asm volatile("%0 &= 127" : "+r"(value))

/* RFC 4343, section 3: only A to Z have a case. Eight octets at once: bit 7 of each lane of `upper` says that it is
 * one. */
static __always_inline u64 lower_case(u64 octets)
{
	const u64 ones = 0x0101010101010101ULL;
	u64 low = octets & (0x7f * ones);
	u64 from_a = low + (0x80 - 'A') * ones;
	u64 above_z = low + (0x80 - 'Z' - 1) * ones;
	u64 upper = (from_a ^ above_z) & ~octets & (0x80 * ones);

	return octets | (upper >> 2);
}

#define ROTATE(value, by) (((value) << (by)) | ((value) >> (64 - (by))))

struct sip {
	u64 v0, v1, v2, v3;
};

static __always_inline void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v1 = ROTATE(s->v1, 13) ^ s->v0;
	s->v0 = ROTATE(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ROTATE(s->v3, 16) ^ s->v2;
	s->v0 += s->v3;
	s->v3 = ROTATE(s->v3, 21) ^ s->v0;
	s->v2 += s->v1;
	s->v1 = ROTATE(s->v1, 17) ^ s->v2;
	s->v2 = ROTATE(s->v2, 32);
}

/* That the question was read, where otherwise the statistic stands that counts why not. */
#define PARSED STATISTICS

/* Walks the labels of a message of which `size` octets are here; returns where its name ends, or 0 if it does not. */
static __always_inline u64 walk_question(struct scratch *s, u32 size)
{
	u64 at = DNS_HEADER;

	s->question.segmented = false;
	s->question.length = 0;
	for (u32 i = 0; i < 128; i++) {
		KEEP_BELOW_512(at);
		u8 length = s->packet[PACKET_FRONT + at];

		if (length == 0) {
			s->question.labels = i;
			s->question.length = at + 1 - DNS_HEADER;
			break;
		}
		/* Above 63 are compression pointers (section 4.1.4); a question has nothing to point back to. */
		if (length > 63)
			break;
		s->label_offset[i] = at - DNS_HEADER;
		at += length + 1;
		if (at > DNS_HEADER + 254)
			break;
	}
	u64 end = FORGET(s->question.length);

	if (end == 0 || end > 255 || DNS_HEADER + end + 4 > size)
		return 0;
	end += DNS_HEADER;
	KEEP_BELOW_512(end);
	s->question.qtype = (s->packet[PACKET_FRONT + end] << 8) | s->packet[PACKET_FRONT + end + 1];
	return end;
}

/* Copies the message and reads its question; returns PARSED, or the statistic of what is wrong with it. */
static __always_inline u32 read_question(struct scratch *s, const struct packet *packet)
{
	u32 size = packet->length;

	if (size > DNS_HEADER + QUESTION_SIZE)
		size = DNS_HEADER + QUESTION_SIZE;
	if (size < SHORTEST_QUERY)
		goto unparsed;
	KEEP_BELOW_512(size);
	if (bpf_probe_read_kernel(s->packet + PACKET_FRONT, size, (void *)packet->payload))
		goto unparsed;

	u64 end = walk_question(s, size);

	if (!end)
		goto unparsed;
	/* A second message behind the first one is at least as long as the shortest. */
	if (packet->length - end >= 4 + SHORTEST_QUERY) {
		u32 shared_info = 0;
		u16 segment = 0;

		/* skb_shinfo(): at skb->end, an offset from skb->head on 64-bit kernels. */
		READ(shared_info, packet->to.skb + SKB_END);
		READ(segment, packet->buffer + shared_info + SHINFO_GSO_SIZE);
		s->question.segmented = segment && segment < packet->length + packet->beyond;
	}
	return PARSED;

unparsed:
	return packet->beyond ? STAT_UNPARSED_NONLINEAR : STAT_UNPARSED_MALFORMED;
}

/*
 * The name backwards and in lower case, as the key of the prefix trie. The octets that say how long a label is stay
 * where they are, now behind their label: they are the boundaries.
 */
static __always_inline void reverse_name(struct scratch *s)
{
	u32 length = FORGET(s->question.length);

	if (length > 255)
		return;

	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		u32 done = i * 8;

		if (done >= length)
			break;

		u64 from = PACKET_FRONT + DNS_HEADER + length - done - 8;

		KEEP_BELOW_512(from);
		u64 octets = lower_case(__builtin_bswap64(*(u64 *)&s->packet[from]));

		/* What stands before the name is not part of it. */
		if (length - done < 8)
			octets &= (1ULL << (length - done) * 8) - 1;
		*(u64 *)&s->key.reversed[done] = octets;
	}
	s->key.bits = length * 8;
}

/*
 * SipHash-1-3 of the reversed name: names come from strangers, who must not be able to make two that look alike to us.
 * (The octets are taken in the order of the host, so the number is not that of other implementations.)
 */
static __always_inline void hash_name(struct scratch *s, const struct settings *settings)
{
	u32 length = FORGET(s->question.length);
	struct sip sip = {
		.v0 = settings->name_key[0] ^ 0x736f6d6570736575ULL,
		.v1 = settings->name_key[1] ^ 0x646f72616e646f6dULL,
		.v2 = settings->name_key[0] ^ 0x6c7967656e657261ULL,
		.v3 = settings->name_key[1] ^ 0x7465646279746573ULL,
	};

	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		if (i * 8 >= length)
			break;

		u64 octets = *(const u64 *)&s->key.reversed[i * 8];

		sip.v3 ^= octets;
		sip_round(&sip);
		sip.v0 ^= octets;
	}
	sip.v3 ^= (u64)length << 56;
	sip_round(&sip);
	sip.v0 ^= (u64)length << 56;
	sip.v2 ^= 0xff;
	sip_round(&sip);
	sip_round(&sip);
	sip_round(&sip);
	s->question.hash = sip.v0 ^ sip.v1 ^ sip.v2 ^ sip.v3;
}

#endif
