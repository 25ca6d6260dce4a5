/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The maps. User space creates them, so that they outlive a program and have the sizes that the configuration asks for.
 */
#ifndef DNSPROBE_MAPS_H
#define DNSPROBE_MAPS_H

#include <linux/types.h>

#include "abi.h"

#define EEXIST 17 /* include/uapi/asm-generic/errno-base.h */

/*
 * Values that differ at each start. dnsprobe/kernel/program.py puts them in when it loads a compiled program: the
 * descriptor of a map, of which only the number MAP_* is known here, and the port of the canaries.
 */
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_##name))
#define CANARY_PORT bpf_pseudo_fd(CANARY_MARK, 0)

static __always_inline struct settings *get_settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(MAP(SETTINGS), &zero);
}

static __always_inline void count_statistic(u32 which)
{
	u64 *value = bpf_map_lookup_elem(MAP(STATISTICS), &which);

	if (value)
		*value += 1;
}

#endif
