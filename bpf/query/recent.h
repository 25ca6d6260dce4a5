/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The cache of outcomes. Most queries of a process are the same as one before: same name, type, class and transport.
 * Their outcome is found here in one look-up, before anything is parsed: no rule, or a rule whose counter is
 * incremented. A slot is not used after a change of the rules, or when an event is due.
 */
#ifndef DNSPROBE_QUERY_RECENT_H
#define DNSPROBE_QUERY_RECENT_H

#include "kernel_read.h"
#include "maps.h"
#include "verifier.h"
#include "answers/note.h"
#include "dns/hash.h"
#include "process/asker.h"
#include "process/current.h"
#include "query/server.h"

/* Makes generations differ in all bits of struct cached.check: 2^64 divided by the golden ratio. */
#define GENERATION_STEP 0x9e3779b97f4a7c15ULL

/* No kernel has fewer jiffies in a second (CONFIG_HZ). With more, a slot is valid for less time than it could be. */
#define NS_PER_JIFFY 10000000ULL

/* struct cached.value: 24 bits have room for each rule. The jiffies above them are enough for 17 years. */
#define RULE_BITS 24
#define RULE_OF(value) ((u32)(value) & ((1U << RULE_BITS) - 1))

/* True once the time in a value is over. The difference is signed, and has as many bits as the time. */
static __always_inline bool is_over(u64 value)
{
	return (s64)((bpf_jiffies64() << RULE_BITS) - (value - RULE_OF(value))) >= 0;
}

static __always_inline u64 checked(u64 hash, u64 value, u32 generation)
{
	return hash ^ value ^ generation * GENERATION_STEP;
}

static __always_inline struct cached *find_slot(u64 hash)
{
	u64 index = hash & (OUTCOMES - 1); /* as in add_to_slot() */

	return bpf_map_lookup_elem(MAP(OUTCOMES), &index);
}

/*
 * Counts a query if its outcome is in the cache. False if it is not: then the query has to be parsed. `sums` are those
 * of the name, `packet` is the address of the packet (struct sk_buff). `ctx` is the context of a program behind the
 * firewall, in front of it NULL. Sets `query_hash` to the hash of the query. `asked` is where its answer will come
 * from.
 */
static __always_inline bool count_recent(u64 *query_hash, const struct sums *sums, const struct settings *settings,
					 u32 type_class, u8 transport, const struct __sk_buff *ctx, u64 packet,
					 u8 family, const struct asked *asked)
{
	struct process_key process;

	current_process(&process);

	u64 hash = hash_query(*sums, settings, type_class, transport, &process);
	struct cached *slot = find_slot(hash);

	*query_hash = hash;
	if (!slot)
		return false;

	/* Other CPUs change it. */
	u64 value = READ_ONCE(slot->value);

	if (slot->check != checked(hash, value, settings->generation))
		return false;
	if (RULE_OF(value) == NO_RULE)
		return true;
	if (is_over(value))
		return false;
	/* The process may be remembered for its own query. */
	if (ctx && !is_clearly_asker(packet, family))
		return false;

	u32 server;

	if (!look_up_server(asked, &server))
		return false;

	u8 local = ctx ? local_by_packet(ctx, packet, family) : local_by_route(ROUTE_AT_FUNCTION(packet), family);

	struct count_key key = {
		.start_ns = process.start_ns,
		.tgid = process.tgid,
		.rule = RULE_OF(value),
		.qtype = __builtin_bswap16(type_class),
		.transport = transport | local,
		.server = server,
	};
	COUNTER *count = bpf_map_lookup_elem(MAP(COUNTS), &key);

	if (!count)
		return false;

	u32 without_question = 0;
	u64 note = TRACKS_ANSWERS ? hash_note(*sums, settings, type_class, asked, &without_question) : 0;

	if (is_waiting(note))
		return false;
	__sync_fetch_and_add(&count->queries, 1);
	__sync_fetch_and_add(&slot->repeats, 1);
	note_recent(note, count, &key, asked->sock, without_question, sees_answers(settings, family));
	return true;
}

/* Adds the repeats in the slot of a query to the entry of the query that the slot is about. */
static __always_inline void take_repeats(u64 hash)
{
	struct cached *slot = find_slot(hash);
	struct seen *seen;

	if (!slot)
		return;

	u64 repeats = slot->repeats;
	u64 owner = slot->hash;

	if (!repeats)
		return;
	__sync_fetch_and_add(&slot->repeats, -repeats);
	seen = bpf_map_lookup_elem(MAP(SEEN), &owner);
	if (seen)
		__sync_fetch_and_add(&seen->repeats, repeats);
}

/* Remembers the outcome of a query. For `quiet_ns` nanoseconds, the same query causes no event. */
static __always_inline void remember_outcome(u64 hash, u32 rule, u64 quiet_ns, u32 generation)
{
	struct cached *slot = find_slot(hash);
	u64 value = (bpf_jiffies64() + quiet_ns / NS_PER_JIFFY) << RULE_BITS | rule;

	if (!slot)
		return;
	slot->hash = hash;
	slot->value = value;
	slot->check = checked(hash, value, generation);
}

#endif
