/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * From a socket buffer (struct sk_buff) at a kernel function to the DNS message in it. Each UDP packet of the host
 * comes through here: one that goes to no watched port is rejected after two reads.
 */
#ifndef DNSPROBE_UDP_PACKET_H
#define DNSPROBE_UDP_PACKET_H

#include "kernel_read.h"
#include "maps.h"
#include "udp/headers.h"

/* What is known of a packet that may be a query. */
struct packet {
	struct destination to;
	u64 payload; /* address of the DNS message */
	u64 buffer;  /* address of the start of the linear part */
	u32 length;  /* octets of the message in the linear part */
	u32 beyond;  /* octets of the packet behind the linear part */
};

/* In place of a known port: read_packet() reads the port from the UDP header, which is complete only after
 * udp_send_skb(). */
#define PORT_IN_HEADER 0

struct headers {
	union {
		struct {
			struct ip4 ip;
			struct udp udp;
		} four;
		struct {
			struct ip6 ip;
			struct udp udp;
		} six;
	};
} __attribute__((packed, aligned(8)));

/* Where the parts of a packet lie. */
struct parts {
	u64 head;    /* address of the buffer */
	u32 tail;    /* the end of the linear part, as an offset from `head`: NET_SKBUFF_DATA_USES_OFFSET */
	u16 network; /* offsets of the headers from `head` */
	u16 transport;
};

#ifdef ATTACH_FENTRY
/* The kernel knows the type of an argument of the function, so that members are loaded without a call. */
static __always_inline bool read_parts(struct parts *parts, u64 skb)
{
	parts->network = *(u16 *)(skb + SKB_NETWORK_HEADER);
	parts->transport = *(u16 *)(skb + SKB_TRANSPORT_HEADER);
	parts->head = *(u64 *)(skb + SKB_HEAD);
	parts->tail = *(u32 *)(skb + SKB_TAIL);
	return true;
}

/* Returns the number of octets behind the linear part. */
static __always_inline u32 read_beyond(u64 skb)
{
	return *(u32 *)(skb + SKB_DATA_LEN);
}
#else
static __always_inline bool read_parts(struct parts *parts, u64 skb)
{
	struct skb_span span;

	if (bpf_probe_read_kernel(&span, sizeof(span), (void *)(skb + SKB_PROTOCOL)))
		return false;
	parts->network = SPAN_U16(span, SKB_NETWORK_HEADER);
	parts->transport = SPAN_U16(span, SKB_TRANSPORT_HEADER);
	parts->head = SPAN_U64(span, SKB_HEAD);
	parts->tail = SPAN_U32(span, SKB_TAIL);
	return true;
}

static __always_inline u32 read_beyond(u64 skb)
{
	return read_u32(skb + SKB_DATA_LEN);
}
#endif

/*
 * True for a UDP packet of IPv4. Its UDP header is in `headers` then, wherever it begins: `transport` is the address of
 * the transport header, `ip_size` the size of the IP header in front of it.
 */
static __always_inline bool read_udp_over_ip4(struct headers *headers, u64 transport, u32 ip_size)
{
	/* Only the first fragment has a UDP header. */
	if (headers->four.ip.protocol != PROTOCOL_UDP || (headers->four.ip.fragment & FRAGMENT_OFFSET))
		return false;
	if (ip_size != IP4_HEADER && bpf_probe_read_kernel(&headers->four.udp, sizeof(struct udp), (void *)transport))
		return false;
	return true;
}

/* As read_udp_over_ip4(), for IPv6. */
static __always_inline bool read_udp_over_ip6(struct headers *headers, u64 skb, u64 transport, u32 ip_size)
{
	u8 next = headers->six.ip.next_header;

	/* Extension headers are rare. Behind them, the protocol is taken from the socket. */
	if (next != PROTOCOL_UDP && (next == PROTOCOL_TCP || next == PROTOCOL_ICMPV6 ||
				     (u16)read_u32(read_u64(skb + SKB_SK) + SOCK_PROTOCOL) != PROTOCOL_UDP))
		return false;
	if (ip_size != IP6_HEADER && bpf_probe_read_kernel(&headers->six.udp, sizeof(struct udp), (void *)transport))
		return false;
	return true;
}

/*
 * Returns the source port in host byte order, 0 if it does not matter for transport_of(). If the destination port is
 * not in the header yet, the source port is not there, either: it is that of the socket.
 */
static __always_inline u16 source_port(u64 skb, const struct udp *udp, u16 known_port, u16 port)
{
	if (port != PORT_MDNS)
		return 0;
	return known_port ? (u16)read_u32(read_u64(skb + SKB_SK) + SOCK_NUM) : __builtin_bswap16(udp->source);
}

/* A routing header may have the address of the receiver. It is looked for right behind the IPv6 header, where no other
 * extension header has to be. */
static __always_inline void read_receiver(struct destination *to, u64 address)
{
	struct routing_header routing;

	if (READ(routing, address) == 0 && has_receiver(&routing))
		set_server(to, 6, routing.address);
}

/* True for a UDP packet to a watched port that is not empty. `known_port` is the port in host byte order, or
 * PORT_IN_HEADER. */
static __always_inline bool read_packet(struct packet *packet, u64 skb, u16 known_port)
{
	struct parts parts;
	struct headers headers;
	const struct udp *udp;

	if (!read_parts(&parts, skb))
		return false;
	/* Behind a short packet lies struct skb_shared_info: a read of too much stays inside the buffer. */
	if (bpf_probe_read_kernel(&headers, sizeof(headers), (void *)(parts.head + parts.network)))
		return false;

	u64 transport = parts.head + parts.transport;
	u32 ip_size = parts.transport - parts.network;
	u8 version = headers.four.ip.version_length >> 4;

	if (version == 4 && read_udp_over_ip4(&headers, transport, ip_size))
		udp = &headers.four.udp;
	else if (version == 6 && read_udp_over_ip6(&headers, skb, transport, ip_size))
		udp = &headers.six.udp;
	else
		return false;
	packet->to.port = known_port ?: __builtin_bswap16(udp->destination);
	if (!WATCHED_PORT(packet->to.port))
		return false;
	set_server(&packet->to, version, version == 4 ? headers.four.ip.destination : headers.six.ip.destination);
	if (version == 6 && headers.six.ip.next_header == ROUTING_HEADER)
		read_receiver(&packet->to, parts.head + parts.network + IP6_HEADER);
	packet->to.skb = skb;
	packet->to.sock = 0;
	packet->to.transport =
	    transport_of(&packet->to, source_port(skb, udp, known_port, packet->to.port), TRANSPORT_UDP);
	packet->buffer = parts.head;
	packet->payload = transport + UDP_HEADER;
	packet->beyond = read_beyond(skb);

	/* Signed: if the layout was guessed wrong, a negative difference must not become a large number. */
	s32 length = parts.tail - parts.transport - UDP_HEADER;

	packet->length = length > 0 && length < 65536 ? length : 0;
	return packet->length || packet->beyond;
}

#endif
