/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The question of a DNS message: RFC 1035, sections 4.1.2 and 3.1.
 */
#ifndef DNSPROBE_DNS_QUESTION_H
#define DNSPROBE_DNS_QUESTION_H

#include "verifier.h"
#include "scratch.h"
#include "dns/message.h"

/* Reads the question of the message in the scratch space, which has `size` octets. Returns the offset behind the name,
 * or 0 if the question is malformed or incomplete. */
static __always_inline u64 walk_question(struct scratch *s, u32 size, u8 transport)
{
	u64 at = DNS_HEADER;

	s->question.length = 0;
	for (u32 i = 0; i < 128; i++) {
		/* The comparison at the end of the loop may be with a copy of `at`. */
		KEEP_BELOW_512(at);
		u8 length = s->packet[PACKET_FRONT + at];

		if (length == 0) {
			s->question.labels = i;
			s->question.length = at + 1 - DNS_HEADER;
			break;
		}
		/* Values above 63 are compression pointers (section 4.1.4). A question has nothing to point back to. */
		if (length > 63)
			break;
		s->label_offset[i] = at - DNS_HEADER;
		at += length + 1;
		if (at > DNS_HEADER + 254)
			break;
	}
	/* With a register, the verifier would follow the code below once for each number of labels. */
	u64 end = FORGET(s->question.length);

	if (end == 0 || end > 255 || DNS_HEADER + end + 4 > size)
		return 0;
	end += DNS_HEADER;
	/* Without this, the verifier refuses the programs for TCP: it takes `end` to be up to 65535 (Linux 6.18). */
	KEEP_BELOW_512(end);
	s->question.qtype = (s->packet[PACKET_FRONT + end] << 8) | s->packet[PACKET_FRONT + end + 1];
	s->question.qclass = (s->packet[PACKET_FRONT + end + 2] << 8) | s->packet[PACKET_FRONT + end + 3];
	/* The top bit asks for an answer by unicast: RFC 6762, section 5.4. */
	if (transport == TRANSPORT_MDNS)
		s->question.qclass &= 0x7fff;
	return end;
}

#endif
