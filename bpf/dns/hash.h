/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * A keyed hash of names and queries. Strangers choose the names, and must not be able to make two with the same hash.
 *
 * It is Multilinear-HM (D. Lemire and O. Kaser, "Strongly universal string hashing is fast", The Computer Journal 57,
 * 2014): a sum of products of two 32-bit words of the text, each added to a random 64-bit word of the key. The upper 32
 * bits of the sum are the hash: two texts have the same one with a probability of 2^-32, whatever they are. Two sums
 * with different parts of the key make it 2^-64. A product costs a tenth of a round of a general hash.
 */
#ifndef DNSPROBE_DNS_HASH_H
#define DNSPROBE_DNS_HASH_H

#include "abi.h"

/* Where the keys of hash_query() begin. Those before are for the name: two for each eight octets, and two more. */
#define QUERY_KEYS 66

#define EACH_OCTET(value) ((value) * 0x0101010101010101ULL)

struct sums {
	u64 first;
	u64 second;
};

/* Adds eight octets. `key` has four words: the second sum uses the words of the next eight octets. */
static __always_inline void add_octets(struct sums *sums, const u64 *key, u64 octets)
{
	u64 low = octets & 0xffffffff;
	u64 high = octets >> 32;

	sums->first += (key[0] + low) * (key[1] + high);
	sums->second += (key[2] + low) * (key[3] + high);
}

static __always_inline u64 hash_of(const struct sums *sums)
{
	return (sums->first >> 32 << 32) | sums->second >> 32;
}

/* A query as its answer will come back: to this socket, from this server. */
struct asked {
	u64 sock; /* address of struct sock, as a number */
	u64 server[2];
#ifdef BY_SERVER
	/* The same fields as struct server, from `server` on: look_up_server(). */
	u16 port; /* host byte order */
	u16 family;
	u16 id; /* network byte order */
#else
	u16 id;	  /* network byte order */
	u16 port; /* host byte order */
#endif
};

/* Returns the key of the note for a query: the hash of its name (in `sums`), type and class, id, socket and server.
 * Sets `without_question` to a hash of the others: of what even a response without a question has. */
static __always_inline u64 hash_note(struct sums sums, const struct settings *settings, u32 type_class,
				     const struct asked *asked, u32 *without_question)
{
	const u64 *key = settings->hash_key + QUERY_KEYS;
	struct sums others = {};

	add_octets(&others, key, asked->sock);
	add_octets(&others, key + 2, asked->id | (u64)asked->port << 32);
	add_octets(&others, key + 4, asked->server[0]);
	add_octets(&others, key + 6, asked->server[1]);
	*without_question = others.first >> 32;
	add_octets(&sums, key + 8, type_class);
	sums.first += others.first;
	sums.second += others.second;
	return hash_of(&sums);
}

/* Returns the hash of a query: of its name (in `sums`), type and class (four octets), transport and process. */
static __always_inline u64 hash_query(struct sums sums, const struct settings *settings, u32 type_class, u8 transport,
				      const struct process_key *process)
{
	const u64 *key = settings->hash_key + QUERY_KEYS;

	add_octets(&sums, key, process->start_ns);
	/* A tgid has at most 22 bits: PID_MAX_LIMIT of include/linux/threads.h. */
	add_octets(&sums, key + 2, type_class | (u64)(process->tgid << 8 | transport) << 32);
	return hash_of(&sums);
}

/* RFC 4343, section 3: only A to Z have a case. Eight octets at once: bit 7 of a lane of `upper` is set where the lane
 * holds one of them. */
static __always_inline u64 lower_case(u64 octets)
{
	u64 low = octets & EACH_OCTET(0x7f);
	u64 from_a = low + EACH_OCTET(0x80 - 'A');
	u64 above_z = low + EACH_OCTET(0x80 - 'Z' - 1);
	u64 upper = (from_a ^ above_z) & ~octets & EACH_OCTET(0x80);

	return octets | (upper >> 2);
}

/* Returns 0 if none of eight octets is 0. Otherwise the lowest bit that is set is bit 7 of the first octet that is 0.
 */
static __always_inline u64 zero_octets(u64 octets)
{
	return (octets - EACH_OCTET(1)) & ~octets & EACH_OCTET(0x80);
}

/* Returns the lowest bit of the first octet that zero_octets() has found. */
static __always_inline u64 lowest_lane(u64 zeros)
{
	return (zeros & -zeros) >> 7;
}

/* Returns the number of octets below the lane of lowest_lane(). */
static __always_inline u64 octets_below(u64 lane)
{
	return EACH_OCTET((lane - 1) & EACH_OCTET(1)) >> 56;
}

#endif
