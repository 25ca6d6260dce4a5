/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The header of a DNS message (RFC 1035, section 4.1.1), and the ports of protocols that share it.
 */
#ifndef DNSPROBE_DNS_MESSAGE_H
#define DNSPROBE_DNS_MESSAGE_H

#include "abi.h"

#define DNS_HEADER 12
/* The longest name, its type and its class. */
#define QUESTION_SIZE (255 + 4)
/* The shortest message with a question: the one for the root. */
#define SHORTEST_QUERY (DNS_HEADER + 5)

#define PORT_MDNS 5353
#define PORT_LLMNR 5355

struct dns {
	u16 id;
	u8 flags; /* QR, OPCODE, AA, TC, RD */
	u8 more_flags;
	u16 questions;
	u16 answers;
	u16 authorities;
	u16 additional;
};

/* Returns the transport of a port; `protocol` is that of plain DNS. */
static __always_inline u8 transport_of(u16 port, u8 protocol)
{
	if (port == PORT_MDNS)
		return TRANSPORT_MDNS;
	return port == PORT_LLMNR ? TRANSPORT_LLMNR : protocol;
}

/* True for a standard query (QR 0, OPCODE 0) with one question. Over mDNS, a query has as many questions as its sender
 * wants (RFC 6762, section 5.3). */
static __always_inline bool is_query(const struct dns *dns, u16 port)
{
	return (dns->flags & 0xf8) == 0 &&
	       (dns->questions == __builtin_bswap16(1) || (port == PORT_MDNS && dns->questions));
}

#endif
