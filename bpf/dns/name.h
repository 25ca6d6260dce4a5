/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The name of a question in the form in which rules and repeated queries are looked up: reversed, in lower case,
 * hashed.
 */
#ifndef DNSPROBE_DNS_NAME_H
#define DNSPROBE_DNS_NAME_H

#include "dns/question.h"

/* RFC 4343, section 3: only A to Z have a case. Eight octets at once: bit 7 of a lane of `upper` is set where the lane
 * holds one of them. */
static __always_inline u64 lower_case(u64 octets)
{
	const u64 ones = 0x0101010101010101ULL;
	u64 low = octets & (0x7f * ones);
	u64 from_a = low + (0x80 - 'A') * ones;
	u64 above_z = low + (0x80 - 'Z' - 1) * ones;
	u64 upper = (from_a ^ above_z) & ~octets & (0x80 * ones);

	return octets | (upper >> 2);
}

/*
 * Writes the name backwards and in lower case, as the key of the prefix trie. The octets with the length of a label
 * keep their value and now stand behind their label: they are the boundaries.
 */
static __always_inline void reverse_name(struct scratch *s)
{
	/* With the register of walk_question(), the verifier would follow this code for each way out of its loop. */
	u32 length = FORGET(s->question.length);

	if (length > 255)
		return;

	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		u32 done = i * 8;

		if (done >= length)
			break;

		u64 from = PACKET_FRONT + DNS_HEADER + length - done - 8;

		/* The compiler knows that `done` is less than `length`. The verifier does not relate the two registers.
		 */
		KEEP_BELOW_512(from);
		u64 octets = lower_case(__builtin_bswap64(*(u64 *)&s->packet[from]));

		/* Octets in front of the name are not part of it. */
		if (length - done < 8)
			octets &= (1ULL << (length - done) * 8) - 1;
		*(u64 *)&s->key.reversed[done] = octets;
	}
	s->key.bits = length * 8;
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

/*
 * SipHash-1-3 of the reversed name, with a random key: strangers choose the names, and must not be able to make two
 * with the same hash. (The octets are taken in the byte order of the host, so the number differs from other
 * implementations.)
 */
static __always_inline void hash_name(struct scratch *s, const struct settings *settings)
{
	/* As in reverse_name(): the verifier would follow the rounds for each value of the register. */
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
