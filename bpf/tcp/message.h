/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * A message in a TCP stream, of which only a part may have been written.
 */
#ifndef DNSPROBE_TCP_MESSAGE_H
#define DNSPROBE_TCP_MESSAGE_H

#include "verifier.h"
#include "scratch.h"
#include "dns/message.h"
#include "dns/question.h"

enum progress {
	MESSAGE_INCOMPLETE,
	MESSAGE_READ,
	MESSAGE_NO_QUERY,
	MESSAGE_MALFORMED,
};

/* Reads the message of which s->size octets are in s->packet, and sets s->length to the length that the message has by
 * its first two octets. For MESSAGE_NO_QUERY, s->message is the result of classify(). */
static __always_inline enum progress read_message(struct scratch *s)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	/* With a register, the verifier would track other bounds for each way in which the caller computes the size. */
	u32 present = FORGET(s->size);
	u32 length = s->packet[STREAM_FRONT] << 8 | s->packet[STREAM_FRONT + 1];

	s->length = length;
	if (present < LENGTH_SIZE)
		return MESSAGE_INCOMPLETE;

	u32 size = present - LENGTH_SIZE < length ? present - LENGTH_SIZE : length;

	if (size >= DNS_HEADER) {
		s->message = classify(dns, s->to.transport);
		/* With a register, the verifier would follow the code below for each result. */
		if (FORGET(s->message) != STANDARD_QUERY)
			return MESSAGE_NO_QUERY;
	}

	if (size >= SHORTEST_QUERY && walk_question(s, size))
		return MESSAGE_READ;
	s->join.message = (u64)(s->packet + PACKET_FRONT);
	s->join.size = size;
	/* FORGET: with a register, the verifier would follow this once for each way out of walk_question(). */
	if (size >= SHORTEST_QUERY && FORGET(s->question.has_pointer) && join_question(s, NULL, false, DNS_HEADER))
		return MESSAGE_READ;
	return size >= length || present >= STREAM_SIZE ? MESSAGE_MALFORMED : MESSAGE_INCOMPLETE;
}

#endif
