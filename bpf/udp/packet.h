/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * From the socket buffer to the octets of a DNS message, if it is one. Each UDP packet of the host comes through here,
 * so what is not to a watched port leaves after two reads.
 */
#ifndef DNSPROBE_PACKET_H
#define DNSPROBE_PACKET_H

#include "maps.h"

#define IP4_HEADER 20
#define IP6_HEADER 40
#define UDP_HEADER 8
#define DNS_HEADER 12
#define PROTOCOL_UDP 17
/* The longest name, its type and its class. */
#define QUESTION_SIZE (255 + 4)
/* The shortest message with a question: the root's. */
#define SHORTEST_QUERY (DNS_HEADER + 5)

/* What is known of a packet that may be a query. */
struct packet {
	struct destination to;
	u64 payload;  /* address of the DNS message */
	u64 buffer;   /* address of the start of the linear part */
	u32 length;   /* octets of the message in the linear part */
	u32 beyond;   /* octets of the packet behind the linear part */
	u64 ports_id; /* both ports and the message's id: tells packets of one socket apart */
	bool several; /* it has more than one question */
};

/* Where a hook finds the port. UDP headers are complete only after udp_send_skb. */
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

/* RFC 1035, section 4.1.1 */
struct dns {
	u16 id;
	u8 flags; /* QR, OPCODE, AA, TC, RD */
	u8 more_flags;
	u16 questions;
	u16 answers;
	u16 authorities;
	u16 additional;
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

/* The fields of struct sk_buff from the transport header's offset to the data pointer stand together: one read. */
#define SKB_SPAN (SKB_DATA + 8 - SKB_PROTOCOL)

struct skb_span {
	u8 bytes[SKB_SPAN];
} __attribute__((aligned(8)));

#define SPAN_U16(span, member) (*(u16 *)&(span).bytes[(member) - SKB_PROTOCOL])
#define SPAN_U64(span, member)                                                                                         \
	({                                                                                                             \
		u64 value_;                                                                                            \
		__builtin_memcpy(&value_, &(span).bytes[(member) - SKB_PROTOCOL], 8);                                  \
		value_;                                                                                                \
	})

#define PORT_MDNS 5353
#define PORT_LLMNR 5355

static __always_inline u8 transport_of(u16 port, u8 protocol)
{
	if (port == PORT_MDNS)
		return TRANSPORT_MDNS;
	return port == PORT_LLMNR ? TRANSPORT_LLMNR : protocol;
}

/* RFC 1035, section 4.1.1: a standard query (QR 0, OPCODE 0) with one question; over mDNS with as many as its sender
 * wants to know (RFC 6762, section 5.3). */
static __always_inline bool is_query(const struct dns *dns, u16 port)
{
	return (dns->flags & 0xf8) == 0 &&
	       (dns->questions == __builtin_bswap16(1) || (port == PORT_MDNS && dns->questions));
}

/*
 * True for a UDP packet to a watched port that looks like a DNS query, or whose header is out of reach. `known_port` is
 * the destination port in host byte order where the hook has it, or PORT_IN_HEADER.
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

	/* Behind a short packet lies struct skb_shared_info: reading too much here stays inside the buffer. */
	if (bpf_probe_read_kernel(&headers, sizeof(headers), (void *)(head + network)))
		return false;

	u32 header = transport - network;
	u8 version = headers.four.ip.version_length >> 4;

	if (version == 4) {
		/* Only the first fragment has a UDP header. */
		if (headers.four.ip.protocol != PROTOCOL_UDP || (headers.four.ip.fragment & __builtin_bswap16(0x1fff)))
			return false;
		if (header != IP4_HEADER &&
		    bpf_probe_read_kernel(&headers.four.udp, sizeof(struct udp) + sizeof(struct dns),
					  (void *)(head + transport)))
			return false;
		udp = &headers.four.udp;
		dns = &headers.four.dns;
		packet->to.family = 4;
		__builtin_memset(packet->to.server, 0, sizeof(packet->to.server));
		__builtin_memcpy(packet->to.server, headers.four.ip.destination, 4);
	} else if (version == 6) {
		u8 next = headers.six.ip.next_header;

		/* Extension headers are rare: then the socket says what the packet is. */
		if (next != PROTOCOL_UDP && (next == 6 || next == 58 || next == 44 ||
					     (u16)read_u32(read_u64(skb + SKB_SK) + SOCK_PROTOCOL) != PROTOCOL_UDP))
			return false;
		if (header != IP6_HEADER &&
		    bpf_probe_read_kernel(&headers.six.udp, sizeof(struct udp) + sizeof(struct dns),
					  (void *)(head + transport)))
			return false;
		udp = &headers.six.udp;
		dns = &headers.six.dns;
		packet->to.family = 6;
		__builtin_memcpy(packet->to.server, headers.six.ip.destination, 16);
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
	packet->to.transport = transport_of(packet->to.port, TRANSPORT_UDP);
	packet->ports_id = (u64)udp->source << 32 | (u32)packet->to.port << 16 | dns->id;
	packet->buffer = head;
	packet->payload = head + transport + UDP_HEADER;
	/* Signed: a wrong guess of the layout must not turn into a large number. */
	s64 linear = (s64)(data + length[0] - length[1]) - (s64)packet->payload;

	packet->length = linear > 0 && linear < 65536 ? linear : 0;
	packet->beyond = length[1];
	/* Without the DNS header in the linear part, what was read in its place is something else. */
	packet->several = false;
	if (packet->length < DNS_HEADER)
		return packet->beyond != 0;
	packet->several = dns->questions != __builtin_bswap16(1);
	return is_query(dns, packet->to.port);
}

#endif
