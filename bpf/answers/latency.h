/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * How long answers take: a histogram for each process, rule and transport.
 */
#ifndef DNSPROBE_ANSWERS_LATENCY_H
#define DNSPROBE_ANSWERS_LATENCY_H

#include "kernel_read.h"
#include "maps.h"
#include "verifier.h"

/* Sets `key` to the histogram of a query. */
static __always_inline void set_latency_key(struct latency_key *key, const struct note *note)
{
	const struct pending_key *pending = (const void *)note->counter;
	const struct count_key *count = (const void *)note->counter;

	if (note->noted == NOTED_PENDING) {
		key->start_ns = pending->start_ns;
		key->name_hash = pending->name_hash;
		key->tgid = pending->tgid;
		key->rule = DECIDE;
		key->generation = pending->generation;
		key->transport = pending->transport & ~TO_LOCAL;
		return;
	}
	key->start_ns = count->start_ns;
	key->tgid = count->tgid;
	key->rule = count->rule;
	key->transport = count->transport & ~TO_LOCAL;
}

/* Finds or makes a histogram. The map has room for each counter, but the kernel may have no memory, or refuse a change
 * if the run interrupts another one (DELETE_ATTEMPTS). Then there is one that is only by transport. */
static __always_inline struct latencies *find_latencies(const struct note *note)
{
	struct latency_key key = {};
	struct latencies *found;
	const void *none;
	u64 transport;

	set_latency_key(&key, note);
	found = bpf_map_lookup_elem(MAP(LATENCIES), &key);
	if (found)
		return found;
	none = get_zeros();
	if (none)
		bpf_map_update_elem(MAP(LATENCIES), &key, (void *)none, BPF_NOEXIST);
	found = bpf_map_lookup_elem(MAP(LATENCIES), &key);
	if (found)
		return found;
	transport = WHOLE_WORD(key.transport);
	return bpf_map_lookup_elem(MAP(LATENCY_REST), &transport);
}

/* Counts how long the answer to a query took. */
static __always_inline void count_latency(const struct note *note)
{
	u64 latency_ns = bpf_ktime_get_ns() - note->time_ns;
	u64 first = 0, bucket = 0;
	const struct latency_bounds *bounds = bpf_map_lookup_elem(MAP(LATENCY_BOUNDS), &first);
	struct latencies *latencies = find_latencies(note);

	if (!bounds || !latencies)
		return;
	/* The first bound that is not exceeded, by bisection: the last bucket has none. */
	for (u32 step = LATENCY_BUCKETS / 2; step; step /= 2) {
		u64 at = bucket + step - 1;

		/* It is below 16, but the verifier does not follow the steps. */
		KEEP_BELOW_16(at);
		if (latency_ns > bounds->ns[at])
			bucket += step;
	}
	/* Verifier: as above. */
	KEEP_BELOW_16(bucket);
	__sync_fetch_and_add(&latencies->sum_ns, latency_ns);
	__sync_fetch_and_add(&latencies->buckets[bucket], 1);
}

#endif
