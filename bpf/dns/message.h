/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The header of a DNS message (RFC 1035, section 4.1.1), and the protocols that share it.
 */
#ifndef DNSPROBE_DNS_MESSAGE_H
#define DNSPROBE_DNS_MESSAGE_H

#include "abi.h"
#include "scratch.h"

#define DNS_HEADER 12
/* The longest name, its type and its class. */
#define QUESTION_SIZE (255 + 4)
/* The shortest message with a question: the one for the root. */
#define SHORTEST_QUERY (DNS_HEADER + 5)

#define PORT_MDNS 5353
#define PORT_LLMNR 5355

/* Of the field OPCODE: https://www.iana.org/assignments/dns-parameters */
#define OPCODE_QUERY 0
#define OPCODE_NOTIFY 4
#define OPCODE_UPDATE 5
#define OPCODE_DSO 6

/* Questions of a message over multicast DNS that are read at most: each takes a run of a program, and the kernel
 * follows 32 tail calls. */
#define QUESTIONS_AT_MOST 16

/* The result of classify() that is no statistic. */
#define STANDARD_QUERY STATISTICS

struct dns {
	u16 id;
	u8 flags; /* QR, OPCODE, AA, TC, RD */
	u8 more_flags;
	u16 questions;
	u16 answers;
	u16 authorities;
	u16 additional;
};

static __always_inline bool is_multicast(const struct destination *to)
{
	/* RFC 5771, section 3; RFC 4291, section 2.7 */
	return to->family == 4 ? (to->server[0] & 0xf0) == 0xe0 : to->server[0] == 0xff;
}

/*
 * Returns the transport of a message; `protocol` is that of plain DNS, TRANSPORT_UDP or TRANSPORT_TCP, and `source` is
 * the source port in host byte order.
 *
 * A server on port 5353 may be an ordinary one. Multicast DNS goes to a multicast address, or comes from port 5353: the
 * other queries of RFC 6762, section 5.5. LLMNR has its port for itself, and uses TCP as well (RFC 4795, section 2.5).
 */
static __always_inline u8 transport_of(const struct destination *to, u16 source, u8 protocol)
{
	if (to->port == PORT_MDNS && protocol == TRANSPORT_UDP && (source == PORT_MDNS || is_multicast(to)))
		return TRANSPORT_MDNS;
	return to->port == PORT_LLMNR ? TRANSPORT_LLMNR : protocol;
}

/*
 * Returns STANDARD_QUERY, or the statistic that counts other messages of this kind. A standard query has one
 * question (RFC 9619); over mDNS it has as many questions as its sender wants (RFC 6762, section 5.3).
 */
static __always_inline u32 classify(const struct dns *dns, u8 transport)
{
	u8 opcode = dns->flags >> 3 & 15;

	if (dns->flags & 0x80)
		return STAT_OTHER_RESPONSE;
	if (opcode == OPCODE_NOTIFY)
		return STAT_OTHER_NOTIFY;
	if (opcode == OPCODE_UPDATE)
		return STAT_OTHER_UPDATE;
	if (opcode == OPCODE_DSO)
		return STAT_OTHER_DSO;
	if (opcode != OPCODE_QUERY)
		return STAT_OTHER_OPCODE;
	if (!dns->questions)
		return STAT_OTHER_NO_QUESTION;
	if (dns->questions != __builtin_bswap16(1) && transport != TRANSPORT_MDNS)
		return STAT_OTHER_QUESTIONS;
	return STANDARD_QUERY;
}

#endif
