/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Where a packet was to go, for a hook behind the firewall: NAT may have replaced the destination that the asker gave.
 */
#ifndef DNSPROBE_UDP_ORIGIN_H
#define DNSPROBE_UDP_ORIGIN_H

#include "kernel_read.h"
#include "dns/message.h"
#include "process/asker.h"

/* include/uapi/linux/netfilter/nf_conntrack_common.h, include/linux/skbuff.h: skb->_nfct is the address of a connection
 * (struct nf_conn) with its enum ip_conntrack_info in the lowest bits. */
#define CONNECTION_MASK (~7ULL)
#define CONNECTION_INFO 7
#define CONNECTION_REPLY 3 /* IP_CT_IS_REPLY. From here on, the packet goes in the direction of replies. */

/* net/netfilter: the keys of conntrack, one for each direction (struct nf_conntrack_tuple). */
struct connection_end {
	u64 address[2]; /* IPv4 in the first four octets */
	u16 port;	/* network byte order */
	union {
		u16 family; /* of a source: AF_INET or AF_INET6 */
		struct {
			u8 protocol; /* of a destination */
			u8 direction;
		};
	};
	u32 pad;
};

#define CONNECTION_END_SIZE 20
#define CONNECTION_AF_INET 2 /* include/linux/socket.h */
#define CONNECTION_AF_INET6 10
#define CONNECTION_UDP 17

/* True if conntrack knows the connection of a packet. */
static __always_inline bool has_connection(u64 packet)
{
	return IS_THERE(SKB_NFCT) && (PACKET_U64(packet, SKB_NFCT) & CONNECTION_MASK);
}

static __always_inline bool is_end(const struct connection_end *end, const u64 *address, u16 port, u8 family)
{
	if (end->port != port)
		return false;
	return family == 4 ? (u32)end->address[0] == (u32)address[0]
			   : end->address[0] == address[0] && end->address[1] == address[1];
}

/*
 * Undoes NAT: replaces the destination of a packet, which has a connection, by the one that its sender gave. `address`
 * has the present address (IPv4 in the first four octets), `port` the present port in network byte order. Returns
 * false, and changes neither, if NAT did not replace them, or if that is not known.
 *
 * The connection has a key for each direction. That of this direction has the destination before NAT. The source of the
 * other one is where replies come from: the present destination. This comparison also proves that the members are where
 * dnsprobe looks for them, so that a wrong layout cannot give a wrong address. The bit IPS_DST_NAT would say less: IPVS
 * does not set it.
 */
static __always_inline bool undo_nat(u64 packet, u8 family, u64 *address, u16 *port)
{
	struct connection_end end;
	u64 info = PACKET_U64(packet, SKB_NFCT);
	u64 keys = (info & CONNECTION_MASK) + CONNECTION_KEYS;
	u8 direction = (info & CONNECTION_INFO) >= CONNECTION_REPLY;
	u64 there = keys + direction * KEY_SIZE + KEY_TUPLE;
	u64 back = keys + !direction * KEY_SIZE + KEY_TUPLE;

	if (bpf_probe_read_kernel(&end, CONNECTION_END_SIZE, (void *)(there + TUPLE_DESTINATION)) ||
	    end.protocol != CONNECTION_UDP || end.direction != direction || is_end(&end, address, *port, family))
		return false;

	struct connection_end present;

	if (bpf_probe_read_kernel(&present, CONNECTION_END_SIZE, (void *)(back + TUPLE_SOURCE)) ||
	    present.family != (family == 4 ? CONNECTION_AF_INET : CONNECTION_AF_INET6) ||
	    !is_end(&present, address, *port, family))
		return false;
	address[0] = family == 4 ? (u32)end.address[0] : end.address[0];
	address[1] = family == 4 ? 0 : end.address[1];
	*port = end.port;
	return true;
}

/*
 * As undo_nat(), for a packet without a connection, which IPVS or a stateless rule of the firewall may have translated:
 * the destination of a connected socket is the one that its owner gave. (A packet may also be sent to another
 * destination than that of its socket. If the network namespace has a firewall, but not conntrack, and both ports are
 * watched, this is wrong.)
 */
static __always_inline void undo_translation(const struct __sk_buff *ctx, u64 packet, u8 family, u64 *address,
					     u16 *port)
{
	const struct bpf_sock *peer = ctx->sk;
	u64 sock = PACKET_U64(packet, SKB_SK);

	/* A socket for IPv6 has an address for IPv4 only if it is connected to an IPv4-mapped address. */
	if (!peer || !sock || !peer->dst_port || (family == 4 && !peer->dst_ip4) || !has_firewall(sock, family))
		return;
	/* Otherwise, a query of a socket that is connected to an unwatched port could not be seen. */
	if (WATCHED_PORT(__builtin_bswap16(*port)) && !WATCHED_PORT(__builtin_bswap16(peer->dst_port)))
		return;
	if (family == 4) {
		address[0] = peer->dst_ip4;
		address[1] = 0;
	} else {
		address[0] = peer->dst_ip6[0] | (u64)peer->dst_ip6[1] << 32;
		address[1] = peer->dst_ip6[2] | (u64)peer->dst_ip6[3] << 32;
	}
	*port = peer->dst_port;
}

/* True if undo_translation() may change the port. */
static __always_inline bool is_connected_elsewhere(const struct __sk_buff *ctx, u16 port)
{
	const struct bpf_sock *peer = ctx->sk;

	return peer && peer->dst_port && peer->dst_port != port;
}

/* True if undo_translation() may change the address. */
static __always_inline bool has_other_peer(const struct __sk_buff *ctx, u8 family, const u64 *address)
{
	const struct bpf_sock *peer = ctx->sk;

	if (!peer || !peer->dst_port)
		return false;
	if (family == 4)
		return peer->dst_ip4 && peer->dst_ip4 != (u32)address[0];
	return peer->dst_ip6[0] != (u32)address[0] || peer->dst_ip6[1] != (u32)(address[0] >> 32) ||
	       peer->dst_ip6[2] != (u32)address[1] || peer->dst_ip6[3] != (u32)(address[1] >> 32);
}

/* False if the socket of a packet is certainly no raw one. The kernel keeps the protocol of a raw socket, which is
 * below 256, in place of its port (net/ipv4/af_inet.c, inet_create()). */
static __always_inline bool may_be_raw(const struct __sk_buff *ctx)
{
	const struct bpf_sock *sock = ctx->sk;

	return !sock || sock->src_port < 256;
}

/* Has the upper octets of the four counts of a DNS header. */
#define UPPER_OCTETS 0x00ff00ff00ff00ffULL

/* True for few packets that are no messages to a DNS server. */
static __always_inline bool looks_like_query(const struct dns *dns)
{
	u64 counts;

	__builtin_memcpy(&counts, &dns->questions, sizeof(counts));
	return !(dns->flags & 0x80) && !(counts & UPPER_OCTETS);
}

#endif
