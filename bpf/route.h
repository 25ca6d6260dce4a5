/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Whether a server is on this host: whether the route to it is one of the table "local" of its network namespace.
 */
#ifndef DNSPROBE_ROUTE_H
#define DNSPROBE_ROUTE_H

#include "abi.h"
#include "kernel_read.h"

/* include/linux/skbuff.h: the lowest bit of the address of the route is a flag (SKB_DST_NOREF). */
#define ROUTE_MASK (~1ULL)

/* The address of the route of a packet at a kernel function: a packet has it before the first hook. Only fentry says to
 * the kernel what the packet is. */
#ifdef ATTACH_FENTRY
#define ROUTE_AT_FUNCTION(packet) (*(u64 *)((packet) + SKB_ROUTE) & ROUTE_MASK)
#else
#define ROUTE_AT_FUNCTION(packet) (read_u64((packet) + SKB_ROUTE) & ROUTE_MASK)
#endif

/* The bit that TO_LOCAL is. */
#define TO_LOCAL_BIT 7

/*
 * Returns TO_LOCAL if a route (struct dst_entry) leads to this host, otherwise 0. Without a route, or if its flags are
 * not known, it is 0. There are no branches: the verifier would follow each.
 *
 * IPv4: RTCF_LOCAL of include/uapi/linux/in_route.h, which routes to groups and broadcast addresses have as well
 * (RTCF_MULTICAST, RTCF_BROADCAST). IPv6: RTF_LOCAL of include/uapi/linux/ipv6_route.h, or RTF_ANYCAST. IPsec puts
 * another struct (struct xfrm_dst) in front of a route; it begins with a copy that has these flags.
 */
static __always_inline u8 local_by_route(u64 route, u8 family)
{
	u32 flags = 0;

	if (family == 4) {
		if (IS_THERE(ROUTE4_FLAGS))
			flags = read_u32(route + ROUTE4_FLAGS);
		return (flags >> 31 & ~(flags >> 29 | flags >> 28) & 1) << TO_LOCAL_BIT;
	}
	if (IS_THERE(ROUTE6_FLAGS))
		flags = read_u32(route + ROUTE6_FLAGS);
	return ((flags >> 31 | flags >> 20) & 1) << TO_LOCAL_BIT;
}

#endif
