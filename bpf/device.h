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

/*
 * True where a packet leaves its sender. False for what the host forwards, for what comes out of a virtual cable into
 * another network namespace (the packet keeps its socket there: kernel commit 9c4c325252c5), and for the second pass
 * through the device below a VLAN, bond or bridge: the same buffer with the same content at another device. (The
 * buffer's address alone says little: the next packet often gets it again.)
 */
static __always_inline bool is_first_device(struct scratch *s, const struct packet *packet)
{
	u64 sock = read_u64(packet->skb + SKB_SK);
	u64 device = read_u64(packet->skb + SKB_DEV);
	u64 server[2];

	if (!sock || read_u64(sock + SOCK_NET) != read_u64(device + DEVICE_NET))
		return false;

	__builtin_memcpy(server, packet->server, sizeof(server));

	bool again = s->last_skb == packet->skb && s->last_sock == sock && s->last_ports_id == packet->ports_id &&
		     s->last_server[0] == server[0] && s->last_server[1] == server[1] && s->last_device != device;

	s->last_skb = packet->skb;
	s->last_ports_id = packet->ports_id;
	s->last_server[0] = server[0];
	s->last_server[1] = server[1];
	s->last_sock = sock;
	s->last_device = device;
	return !again;
}

#endif
