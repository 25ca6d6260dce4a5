/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * From a UDP packet to the question in it.
 */
#ifndef DNSPROBE_UDP_PAYLOAD_H
#define DNSPROBE_UDP_PAYLOAD_H

#include "verifier.h"
#include "dns/question.h"
#include "udp/packet.h"

/* The result if the question was read. Any other result is the statistic that counts the reason why it was not. */
#define PARSED STATISTICS

/* Notes whether other datagrams follow in the same packet (UDP_SEGMENT of udp(7)). `end` is where the question ends. */
static __always_inline void read_segmentation(struct question *question, const struct packet *packet, u64 end)
{
	/* A second message behind the first one is at least as long as the shortest. */
	if (packet->length - end >= 4 + SHORTEST_QUERY) {
		u32 shared_info = 0;
		u16 segment = 0;

		/* skb_shinfo(): at skb->end, an offset from skb->head on 64-bit kernels. */
		READ(shared_info, packet->to.skb + SKB_END);
		READ(segment, packet->buffer + shared_info + SHINFO_GSO_SIZE);
		question->segmented = segment && segment < packet->length + packet->beyond;
	}
}

/* Copies the message and reads its question. Returns PARSED or a statistic. */
static __always_inline u32 read_question(struct scratch *s, const struct packet *packet)
{
	u32 size = packet->length;

	if (size > DNS_HEADER + QUESTION_SIZE)
		size = DNS_HEADER + QUESTION_SIZE;
	if (size < SHORTEST_QUERY)
		goto unparsed;
	/* The comparison above may be with a copy of `size`. */
	KEEP_BELOW_512(size);
	if (bpf_probe_read_kernel(s->packet + PACKET_FRONT, size, (void *)packet->payload))
		goto unparsed;

	u64 end = walk_question(s, size, packet->to.transport);

	if (!end)
		goto unparsed;
	read_segmentation(&s->question, packet, end);
	return PARSED;

unparsed:
	return packet->beyond ? STAT_UNPARSED_NONLINEAR : STAT_UNPARSED_MALFORMED;
}

#endif
