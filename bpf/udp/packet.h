/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * From a socket buffer (struct sk_buff) to the DNS message in it. Each UDP packet of the host comes through here: one
 * that goes to no watched port is rejected after two reads.
 */
#ifndef DNSPROBE_UDP_PACKET_H
#define DNSPROBE_UDP_PACKET_H

#include "kernel_read.h"
#include "maps.h"
#include "scratch.h"
#include "dns/message.h"

#define IP4_HEADER 20
#define IP6_HEADER 40
#define UDP_HEADER 8
/* Of the field Next Header of IPv6, too: https://www.iana.org/assignments/protocol-numbers */
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define FRAGMENT_HEADER 44
#define PROTOCOL_ICMPV6 58

/* What is known of a packet that may be a query. */
struct packet {
	struct destination to;
	u64 payload;	     /* address of the DNS message */
	u64 buffer;	     /* address of the start of the linear part */
	u32 length;	     /* octets of the message in the linear part */
	u32 beyond;	     /* octets of the packet behind the linear part */
	u64 ports_id;	     /* both ports and the id of the message: tells packets of one socket apart */
	u32 message;	     /* the result of classify() */
	bool many_questions; /* more than one */
};

/* In place of a known port: read_packet() reads the port from the UDP header, which is complete only after
 * udp_send_skb(). */
#define PORT_IN_HEADER 0

struct ip4 {
	u8 version_length;
	u8 tos;
	u16 length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u8 source[4];
	u8 destination[4];
};

struct ip6 {
	u32 version_flow;
	u16 length;
	u8 next_header;
	u8 hop_limit;
	u8 source[16];
	u8 destination[16];
};

struct udp {
	u16 source;
	u16 destination;
	u16 length;
	u16 checksum;
};

struct headers {
	union {
		struct {
			struct ip4 ip;
			struct udp udp;
			struct dns dns;
		} four;
		struct {
			struct ip6 ip;
			struct udp udp;
			struct dns dns;
		} six;
	};
} __attribute__((packed, aligned(8)));

/*
 * True for a UDP packet of IPv4. Its UDP and DNS headers are in `headers` then, wherever they begin: `transport` is the
 * address of the transport header, `ip_size` the size of the IP header in front of it.
 */
static __always_inline bool read_udp_over_ip4(struct headers *headers, u64 transport, u32 ip_size)
{
	/* Only the first fragment has a UDP header. */
	if (headers->four.ip.protocol != PROTOCOL_UDP || (headers->four.ip.fragment & __builtin_bswap16(0x1fff)))
		return false;
	if (ip_size != IP4_HEADER &&
	    bpf_probe_read_kernel(&headers->four.udp, sizeof(struct udp) + sizeof(struct dns), (void *)transport))
		return false;
	return true;
}

/* As read_udp_over_ip4(), for IPv6. */
static __always_inline bool read_udp_over_ip6(struct headers *headers, u64 skb, u64 transport, u32 ip_size)
{
	u8 next = headers->six.ip.next_header;

	/* Extension headers are rare. Behind them, the protocol is taken from the socket. */
	if (next != PROTOCOL_UDP && (next == PROTOCOL_TCP || next == PROTOCOL_ICMPV6 || next == FRAGMENT_HEADER ||
				     (u16)read_u32(read_u64(skb + SKB_SK) + SOCK_PROTOCOL) != PROTOCOL_UDP))
		return false;
	if (ip_size != IP6_HEADER &&
	    bpf_probe_read_kernel(&headers->six.udp, sizeof(struct udp) + sizeof(struct dns), (void *)transport))
		return false;
	return true;
}

static __always_inline void set_server(struct destination *to, u8 family, const u8 *address)
{
	to->family = family;
	if (family == 4) {
		__builtin_memset(to->server, 0, sizeof(to->server));
		__builtin_memcpy(to->server, address, 4);
	} else {
		__builtin_memcpy(to->server, address, 16);
	}
}

/* Sets the address of the DNS message, and the number of its octets in the linear part. */
static __always_inline void set_payload(struct packet *packet, u64 head, u16 transport, u64 end)
{
	packet->buffer = head;
	packet->payload = head + transport + UDP_HEADER;
	/* Signed: if the layout was guessed wrong, a negative difference must not become a large number. */
	s64 linear = (s64)end - (s64)packet->payload;

	packet->length = linear > 0 && linear < 65536 ? linear : 0;
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

/* False for a response, and for what is too short for a message. If the DNS header is not in the linear part, `dns` has
 * other octets. */
static __always_inline bool read_kind(struct packet *packet, const struct dns *dns)
{
	packet->many_questions = false;
	packet->message = STANDARD_QUERY;
	if (packet->length < DNS_HEADER)
		return packet->beyond != 0;
	packet->many_questions = dns->questions != __builtin_bswap16(1);
	packet->message = classify(dns, packet->to.transport);
	return packet->message != RESPONSE;
}

/*
 * True for a UDP packet to a watched port that looks like a DNS message, but no response, or whose DNS header is out of
 * reach. `known_port` is the destination port in host byte order, or PORT_IN_HEADER.
 */
static __always_inline bool read_packet(struct packet *packet, u64 skb, u16 known_port)
{
	struct skb_span span;
	struct headers headers;
	const struct udp *udp;
	const struct dns *dns;

	if (bpf_probe_read_kernel(&span, sizeof(span), (void *)(skb + SKB_PROTOCOL)))
		return false;

	u16 network = SPAN_U16(span, SKB_NETWORK_HEADER);
	u16 transport = SPAN_U16(span, SKB_TRANSPORT_HEADER);
	u64 head = SPAN_U64(span, SKB_HEAD);

	/* Behind a short packet lies struct skb_shared_info: a read of too much stays inside the buffer. */
	if (bpf_probe_read_kernel(&headers, sizeof(headers), (void *)(head + network)))
		return false;

	u32 ip_size = transport - network;
	u8 version = headers.four.ip.version_length >> 4;

	if (version == 4) {
		if (!read_udp_over_ip4(&headers, head + transport, ip_size))
			return false;
		udp = &headers.four.udp;
		dns = &headers.four.dns;
		set_server(&packet->to, 4, headers.four.ip.destination);
	} else if (version == 6) {
		if (!read_udp_over_ip6(&headers, skb, head + transport, ip_size))
			return false;
		udp = &headers.six.udp;
		dns = &headers.six.dns;
		set_server(&packet->to, 6, headers.six.ip.destination);
	} else {
		return false;
	}
	packet->to.port = known_port ?: __builtin_bswap16(udp->destination);
	if (!WATCHED_PORT(packet->to.port))
		return false;

	u32 length[2]; /* skb->len, skb->data_len */
	u64 data = SPAN_U64(span, SKB_DATA);

	if (bpf_probe_read_kernel(length, sizeof(length), (void *)(skb + SKB_LEN)))
		return false;
	packet->to.skb = skb;
	packet->to.sock = 0;
	packet->to.transport =
	    transport_of(&packet->to, source_port(skb, udp, known_port, packet->to.port), TRANSPORT_UDP);
	packet->ports_id = (u64)udp->source << 32 | (u32)packet->to.port << 16 | dns->id;
	set_payload(packet, head, transport, data + length[0] - length[1]);
	packet->beyond = length[1];
	return read_kind(packet, dns);
}

#endif
