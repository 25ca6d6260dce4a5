/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Which rule matches a name.
 */
#ifndef DNSPROBE_DNS_MATCH_H
#define DNSPROBE_DNS_MATCH_H

#include "dns/question.h"

/* Returns the id of a rule, NO_RULE, CANARY or DECIDE for the name that reverse_name() has made the key. */
static __always_inline u32 match_name(const struct scratch *s)
{
	u64 zero = 0;
	void *rules = bpf_map_lookup_elem(MAP(RULES), &zero);
	const struct outcome *outcome;

	if (!rules)
		return NO_RULE;
	outcome = bpf_map_lookup_elem(rules, (void *)&s->key);
	if (!outcome)
		return NO_RULE;
	if (outcome->length == s->question.length)
		return outcome->at;

	/*
	 * An octet inside a label can have the value of a length octet: the label "\007example\003com" ends like the
	 * name example.com. If the suffix does not begin at a label, user space decides by the whole name.
	 */
	u64 index = s->question.labels - outcome->labels;

	/* Both numbers come from maps, so the verifier knows no bound of their difference. */
	KEEP_BELOW_128(index);
	if (outcome->labels && s->label_offset[index] != s->question.length - outcome->length)
		return DECIDE;
	return outcome->below;
}

/* True if a rule is valid for a port: the canary rule only for the port of the canaries, others only for other ports.
 */
static __always_inline bool rule_fits_port(u32 rule, u16 port)
{
	return (rule == CANARY) == (port == CANARY_PORT);
}

#endif
