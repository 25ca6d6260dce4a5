/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Which packets are counted at net_dev_queue. A packet can pass it several times, and packets that no process of this
 * host has sent pass it, too.
 */
#ifndef DNSPROBE_UDP_DEVICE_H
#define DNSPROBE_UDP_DEVICE_H

#include "udp/packet.h"

#define IFF_LOOPBACK 8 /* include/uapi/linux/if.h */

/* The kernel drops a packet whose neighbour does not answer three probes of a second each
 * (net.ipv4.neigh.*.mcast_solicit and retrans_time_ms). */
#define DEFERRED_NS 3500000000ULL

/*
 * True for a packet of a process of this host. False for a packet that the host forwards, and for one that comes out of
 * a virtual cable into another network namespace (it keeps its socket there since Linux 4.19: kernel commit
 * 9c4c325252c5, "skbuff: preserve sock reference when scrubbing the skb").
 */
static __always_inline bool is_local(u64 sock, u64 device)
{
	return sock && read_u64(sock + SOCK_NET) == read_u64(device + DEVICE_NET);
}

/*
 * False for the second pass of a packet, through the device below a VLAN, bond or bridge: the same buffer with the same
 * content at another device. (The address of the buffer alone is not enough: the next packet often gets the same.)
 */
static __always_inline bool is_first_device(struct scratch *s, const struct packet *packet, u64 sock, u64 device)
{
	u64 server[2];

	__builtin_memcpy(server, packet->to.server, sizeof(server));

	bool same = s->last_skb == packet->to.skb && s->last_sock == sock && s->last_ports_id == packet->ports_id &&
		    s->last_server[0] == server[0] && s->last_server[1] == server[1];

	if (same && s->first_device != device)
		return false;
	s->last_skb = packet->to.skb;
	s->last_sock = sock;
	s->last_ports_id = packet->ports_id;
	s->last_server[0] = server[0];
	s->last_server[1] = server[1];
	s->first_device = device;
	return true;
}

/* Notes that a packet is counted, as it will pass again: when its neighbour has answered, or at the device below. */
static __always_inline void remember_counted(const struct packet *packet, u32 hook_kind)
{
	u64 skb = packet->to.skb;
	struct deferred deferred = {
		.ports_id = packet->ports_id,
		.since_ns = bpf_ktime_get_ns(),
		.hook_kind = hook_kind,
	};

	bpf_map_update_elem(MAP(DEFERRED), &skb, &deferred, BPF_ANY);
}

/* Returns the kind of hook at which a packet was counted before, HOOK_FUNCTION if it was not. */
static __always_inline u32 counted_at(const struct packet *packet)
{
	u64 skb = packet->to.skb;
	const struct deferred *deferred = bpf_map_lookup_elem(MAP(DEFERRED), &skb);

	if (!deferred || deferred->ports_id != packet->ports_id ||
	    bpf_ktime_get_ns() - deferred->since_ns >= DEFERRED_NS)
		return HOOK_FUNCTION;
	return deferred->hook_kind;
}

/* True for exactly one of the passes of a packet. */
static __always_inline bool is_counted_here(struct scratch *s, const struct packet *packet, u32 hook_kind)
{
	if (hook_kind == HOOK_FUNCTION)
		return true;

	u64 skb = packet->to.skb;
	u64 sock = read_u64(skb + SKB_SK);
	u64 device = read_u64(skb + SKB_DEV);

	if (!is_local(sock, device))
		return false;
	/* Loopback has no neighbours and no devices below it: a packet to a local resolver passes once. */
	if (read_u32(device + DEVICE_FLAGS) & IFF_LOOPBACK)
		return true;

	u32 before = counted_at(packet);

	if (hook_kind == HOOK_NEIGHBOUR) {
		if (before != HOOK_FUNCTION)
			return false;
		remember_counted(packet, HOOK_NEIGHBOUR);
		return true;
	}
	if (!is_first_device(s, packet, sock, device))
		return false;

	/*
	 * At a device on top of others (VLAN, bond, bridge, macvlan) the packet still has its route, to that device.
	 * The device may have a queue: then the packet passes the device below later, in the context of any process,
	 * and has no route, or one to another device.
	 */
	u64 route = read_u64(skb + SKB_REFDST) & ~1ULL; /* SKB_DST_NOREF, include/linux/skbuff.h */

	if (!route) {
		if (before != HOOK_FUNCTION)
			bpf_map_delete_elem(MAP(DEFERRED), &skb);
		return before == HOOK_FUNCTION;
	}
	if (read_u64(route + DST_DEV) != device)
		return false;
	/* A note of HOOK_DEVICE is about an earlier packet: this one is at the device on top. */
	remember_counted(packet, HOOK_DEVICE);
	return before != HOOK_NEIGHBOUR;
}

#endif
