/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * At net_dev_queue a packet can come by more than once, and packets of others come by too.
 */
#ifndef DNSPROBE_DEVICE_H
#define DNSPROBE_DEVICE_H

#include "packet.h"

/* Kinds of hooks: each has its own scratch space. */
#define HOOK_FUNCTION 0
#define HOOK_DEVICE 1
#define HOOK_NEIGHBOUR 2

/* A packet waits for three probes of a second each (net.ipv4.neigh.*.mcast_solicit and retrans_time_ms), then it is
 * dropped. */
#define DEFERRED_NS 3500000000ULL

/*
 * True for a packet of a process of this host. False for what the host forwards, and for what comes out of a virtual
 * cable into another network namespace (the packet keeps its socket there: kernel commit 9c4c325252c5).
 */
static __always_inline bool is_local(u64 sock, u64 device)
{
	return sock && read_u64(sock + SOCK_NET) == read_u64(device + DEVICE_NET);
}

/*
 * False for the second pass through the device below a VLAN, bond or bridge: the same buffer with the same content at
 * another device. (The buffer's address alone says little: the next packet often gets it again.)
 */
static __always_inline bool is_first_device(struct scratch *s, const struct packet *packet, u64 sock, u64 device)
{
	u64 server[2];

	__builtin_memcpy(server, packet->server, sizeof(server));

	bool same = s->last_skb == packet->skb && s->last_sock == sock && s->last_ports_id == packet->ports_id &&
		    s->last_server[0] == server[0] && s->last_server[1] == server[1];

	if (same && s->first_device != device)
		return false;
	s->last_skb = packet->skb;
	s->last_sock = sock;
	s->last_ports_id = packet->ports_id;
	s->last_server[0] = server[0];
	s->last_server[1] = server[1];
	s->first_device = device;
	return true;
}

/* True for a packet that was counted when it began to wait. */
static __always_inline bool was_deferred(const struct packet *packet)
{
	u64 skb = packet->skb;
	const struct deferred *deferred = bpf_map_lookup_elem(MAP(DEFERRED), &skb);

	return deferred && deferred->ports_id == packet->ports_id &&
	       bpf_ktime_get_ns() - deferred->since_ns < DEFERRED_NS;
}

/* Notes that a packet is counted, as it comes by again when its neighbour has answered: then in anyone's context. */
static __always_inline void defer(const struct packet *packet)
{
	u64 skb = packet->skb;
	struct deferred deferred = { .ports_id = packet->ports_id, .since_ns = bpf_ktime_get_ns() };

	bpf_map_update_elem(MAP(DEFERRED), &skb, &deferred, BPF_ANY);
}

/* True where a packet is to be counted here, and nowhere else. */
static __always_inline bool is_first_sight(struct scratch *s, const struct packet *packet, u32 hook_kind)
{
	if (hook_kind == HOOK_FUNCTION)
		return true;

	u64 skb = packet->skb;
	u64 sock = read_u64(skb + SKB_SK);
	u64 device = read_u64(skb + SKB_DEV);

	if (!is_local(sock, device))
		return false;
	if (hook_kind == HOOK_NEIGHBOUR) {
		if (was_deferred(packet))
			return false;
		defer(packet);
		return true;
	}
	if (!is_first_device(s, packet, sock, device))
		return false;
	if (was_deferred(packet)) {
		bpf_map_delete_elem(MAP(DEFERRED), &skb);
		return false;
	}
	return true;
}

#endif
