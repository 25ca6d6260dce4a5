/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * A packet of a TCP connection at egress: RFC 9293, section 3.1. With segmentation offload, it becomes several segments
 * behind the hook, whose octets follow each other in it.
 */
#ifndef DNSPROBE_TCP_SEGMENT_H
#define DNSPROBE_TCP_SEGMENT_H

#include "kernel_read.h"
#include "verifier.h"
#include "process/asker.h"

#define TCP_HEADER 20
#define TCP_PROTOCOL 6 /* IPPROTO_TCP, include/uapi/linux/in.h */
#define TCP_SYN 0x02
#define TCP_URG 0x20

struct tcp {
	u16 source;
	u16 destination;
	u32 sequence;
	u32 acknowledgement;
	u8 offset; /* in words of four octets, in the upper half */
	u8 flags;
	u16 window;
	u16 checksum;
	u16 urgent;
};

/* Returns the port of the server, in host byte order, 0 if the packet has no connected socket. The asker gave this
 * destination: NAT does not change it in the socket. */
static __always_inline u16 server_port(const struct __sk_buff *skb)
{
	const struct bpf_sock *peer = skb->sk;

	return peer ? __builtin_bswap16(peer->dst_port) : 0;
}

/* Reads the TCP header. False if the packet is none of a TCP socket, or says nothing about the messages. */
static __always_inline bool read_segment(struct segment *segment, struct __sk_buff *skb)
{
	u64 packet = kernel_packet(skb);
	u64 sock = read_u64(packet + SKB_SK);
	u16 network = read_u32(packet + SKB_NETWORK_HEADER);
	u16 transport = read_u32(packet + SKB_TRANSPORT_HEADER);
	struct tcp tcp;

	/* The packet begins with the IP header: the kernel's own offsets spare a walk over options and extensions. */
	u32 header = (u16)(transport - network);

	if (!sock || (u16)read_u32(sock + SOCK_PROTOCOL) != TCP_PROTOCOL ||
	    bpf_skb_load_bytes(skb, header, &tcp, TCP_HEADER))
		return false;

	u32 at = header + (tcp.offset >> 4) * 4;
	u32 size = skb->len > at ? skb->len - at : 0;

	segment->sock = sock;
	segment->at = at;
	segment->is_first = (tcp.flags & TCP_SYN) != 0;
	segment->is_urgent = (tcp.flags & TCP_URG) != 0;
	/* The SYN takes a number. */
	segment->sequence = __builtin_bswap32(tcp.sequence) + segment->is_first;
	segment->end = segment->sequence + size;
	/* The pointer is behind the octet (RFC 6093, section 2.1, says what implementations do). 0 counts as 1: Linux
	 * does so in tcp_check_urg(). */
	segment->urgent = __builtin_bswap32(tcp.sequence) + __builtin_bswap16(tcp.urgent) - (tcp.urgent != 0);
	return size || segment->is_first || segment->is_urgent;
}

#endif
