/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The name of a question in the forms in which rules and queries are looked up: reversed and hashed, both in lower
 * case.
 */
#ifndef DNSPROBE_DNS_NAME_H
#define DNSPROBE_DNS_NAME_H

#include "dns/hash.h"
#include "dns/question.h"

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

/*
 * Hashes the name of the message in the scratch space. The result is that of hash_recent(), which takes the first octet
 * that is 0 for the end of the name. A label may have such an octet, too: question.plain is false for these names.
 */
static __always_inline void hash_name(struct scratch *s, const struct settings *settings)
{
	/* As in reverse_name(): the verifier would follow the sums for each value of the register. */
	u32 length = FORGET(s->question.length);
	struct sums sums = {};
	u64 zeros = 0;

	for (u32 i = 0; i < NAME_SIZE / 8; i++) {
		u32 done = i * 8;

		if (done >= length)
			break;

		u64 octets = *(u64 *)&s->packet[PACKET_FRONT + DNS_HEADER + done];

		if (length - done <= 8) {
			/* The root is the last octet. Those behind it are not part of the name. */
			u64 mask = (1ULL << (length - done - 1) * 8) - 1;

			octets &= mask;
			zeros |= zero_octets(octets | ~mask);
		} else {
			zeros |= zero_octets(octets);
		}
		add_octets(&sums, settings->hash_key + i * 2, lower_case(octets));
	}
	s->question.sums = sums;
	s->question.hash = hash_of(&sums);
	s->question.plain = zeros == 0;
}

#endif
