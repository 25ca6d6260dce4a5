/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The maps. User space creates them, so that they outlive a program and have the sizes that the configuration asks for.
 */
#ifndef DNSPROBE_MAPS_H
#define DNSPROBE_MAPS_H

#include <linux/types.h>

#include "abi.h"

#define ENOENT 2 /* include/uapi/asm-generic/errno-base.h */
#define EEXIST 17

/*
 * The descriptors of the maps and the port of the canaries differ at each start. The compiled program has marks in
 * their place: for a map its number MAP_*, for the port CANARY_MARK. dnsprobe/kernel/program.py replaces the marks when
 * it loads the program.
 */
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_##name))
#define CANARY_PORT bpf_pseudo_fd(CANARY_MARK, 0)

/* The values of MAP(COUNTS) and MAP(PENDING). */
#ifdef ANSWERS
#define COUNTER struct tracked_count
#else
#define COUNTER struct count
#endif

/*
 * A key of 32 bits on the stack. The verifier knows for each 64 bits of the stack whether they are read later, and only
 * a store of all 64 tells it that their old content is not. Otherwise, it takes states that differ in such a content
 * for different ones, and follows each.
 */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define WHOLE_WORD(key) ((u64)(u32)(key))
#else
#define WHOLE_WORD(key) ((u64)(key) << 32)
#endif

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(MAP(SETTINGS), &zero);
}

/* Returns ZEROS_SIZE octets that are 0: a new entry of a map may be too large for the stack. */
static __always_inline const void *get_zeros(void)
{
	u64 first = 0;

	return bpf_map_lookup_elem(MAP(ZEROS), &first);
}

/* Adds to a number of an array. The array has a slot for each CPU, but a program may be interrupted by another one
 * there. */
static __always_inline void add_to_slot(void *map, u32 which, u64 number)
{
	u64 key = WHOLE_WORD(which);
	u64 *value = bpf_map_lookup_elem(map, &key);

	if (value)
		__sync_fetch_and_add(value, number);
}

static __always_inline void add_statistic(u32 which, u64 number)
{
	add_to_slot(MAP(STATISTICS), which, number);
}

static __always_inline void count_statistic(u32 which)
{
	add_statistic(which, 1);
}

#endif
