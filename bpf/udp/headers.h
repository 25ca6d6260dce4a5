/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The headers in front of a DNS message over UDP: RFC 791, RFC 8200, RFC 768.
 */
#ifndef DNSPROBE_UDP_HEADERS_H
#define DNSPROBE_UDP_HEADERS_H

#include "scratch.h"
#include "dns/message.h"

#define IP4_HEADER 20
#define IP6_HEADER 40
#define UDP_HEADER 8
/* Of the field Next Header of IPv6, too: https://www.iana.org/assignments/protocol-numbers */
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ICMPV6 58
/* The part of the field with flags and offset that is the offset, in network byte order. */
#define FRAGMENT_OFFSET __builtin_bswap16(0x1fff)

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

#define ROUTING_HEADER 43

/*
 * The routing headers that Linux sends with data: Segment Routing (RFC 8754, section 2) and Mobile IPv6 (RFC 6275,
 * section 6.4). While segments are left, the destination in the IPv6 header is that of the next segment, and the first
 * address here is that of the receiver.
 */
struct routing_header {
	u8 next_header;
	u8 length;
	u8 type;
	u8 segments_left;
	u32 data;
	u8 address[16];
};

#define ROUTING_MOBILE 2
#define ROUTING_SEGMENTS 4

static __always_inline bool has_receiver(const struct routing_header *header)
{
	return header->segments_left && (header->type == ROUTING_MOBILE || header->type == ROUTING_SEGMENTS);
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

#endif
