/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hooks for UDP do with a packet.
 */
#ifndef DNSPROBE_UDP_HANDLER_H
#define DNSPROBE_UDP_HANDLER_H

#include "scratch.h"
#include "dns/match.h"
#include "dns/name.h"
#include "query/handler.h"
#include "query/submit.h"
#include "udp/device.h"
#include "udp/packet.h"
#include "udp/payload.h"

/* A hook that packets of both families pass can be limited to one of them. */
#ifndef SERVED_FAMILY
#define SERVED_FAMILY(family) true
#endif

/* Handles one packet at one of the hooks. Each step rejects what it can, the cheapest first. */
static __always_inline int handle_packet(u64 skb, u16 known_port, u32 hook_kind)
{
	struct packet packet;

	if (!read_packet(&packet, skb, known_port) || !SERVED_FAMILY(packet.to.family))
		return 0;

	struct scratch *s = get_scratch(hook_kind);
	struct settings *settings = get_settings();

	if (!s || !settings)
		return 0;

	u32 problem = packet.message == STANDARD_QUERY ? read_question(s, &packet) : packet.message;

	if (problem != PARSED) {
		if (packet.to.port != CANARY_PORT && is_counted_here(s, &packet, hook_kind))
			count_statistic(problem);
		return 0;
	}
	reverse_name(s);

	u32 rule = match_name(s);

	/* A rule may match a question that is not read. So such packets are counted below even if no rule matches the
	 * first question. */
	if (rule == NO_RULE && !s->question.segmented && !packet.many_questions)
		return 0;
	if (!rule_fits_port(rule, packet.to.port) || !is_counted_here(s, &packet, hook_kind))
		return 0;
	if (s->question.segmented)
		count_statistic(STAT_UNPARSED_SEGMENTED);
	if (packet.many_questions)
		count_statistic(STAT_UNPARSED_QUESTIONS);
	if (rule == NO_RULE)
		return 0;
	s->to = packet.to;
	s->keep_tree = 0;
	handle_query(s, settings, rule);
	keep_and_submit(s, settings);
	return 0;
}

#endif
