/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the hook at ingress does with a packet: cgroup_skb at the root of cgroup2. The kernel runs it once for each
 * packet that it delivers to a socket, in sk_filter_trim_cap(): after NAT was undone, before the socket's buffer is
 * full, and whether a program reads the packet or not.
 *
 * Its programs return 1 on every path: 0 would drop the packet.
 */
#ifndef DNSPROBE_ANSWERS_INGRESS_H
#define DNSPROBE_ANSWERS_INGRESS_H

#include "answers/note.h"
#include "udp/egress.h"

/* Returns the slot of struct count for a response. */
static __always_inline u64 result_of(const struct dns *dns)
{
	u64 rcode = dns->more_flags & 15;

	if (rcode > RESULT_REFUSED)
		return RESULT_OTHER_RCODE;
	/* A truncated one may have no answers: RFC 2181, section 9. */
	return rcode == RESULT_NOERROR && !dns->answers && !(dns->flags & 2) ? RESULT_NODATA : rcode;
}

static __always_inline void count_unmatched(u32 reason)
{
	u64 key = WHOLE_WORD(reason);
	u64 *value = bpf_map_lookup_elem(MAP(UNMATCHED), &key);

	if (value)
		__sync_fetch_and_add(value, 1);
}

/* Counts an answer that fits no note. Most are to names that no rule matches. */
static __always_inline void handle_unmatched(const struct __sk_buff *skb, const struct place *place, u64 hash,
					     u64 name_hash)
{
	u64 index = hash & (TAKEN_NOTES - 1); /* as in add_statistic() */
	u64 *slot = bpf_map_lookup_elem(MAP(TAKEN_NOTES), &index);
	struct name *name;

	if (slot && !((*slot ^ hash) & ~(u64)(TAKEN_NOTES - 1))) {
		count_unmatched(*slot & 1 ? UNMATCHED_DUPLICATE : UNMATCHED_LATE);
		return;
	}
	if (matches_no_rule(skb, place))
		return;
	name = bpf_map_lookup_elem(MAP(NAMES), &name_hash);
	if (!name || name->verdict != NO_RULE)
		count_unmatched(UNMATCHED_UNSOLICITED);
}

/* Handles a packet whose UDP header is at the offset `header`; `source` is the offset of its address. */
static __always_inline void handle_answer(const struct __sk_buff *skb, u32 header, u8 family, u32 source)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct udp *udp = (void *)(data + header);
	const struct dns *dns = (void *)(udp + 1);
	struct place place = { .name = header + UDP_HEADER + DNS_HEADER };
	struct settings *settings;
	struct asked asked = {};
	struct sums sums = {};
	struct note note;
	u32 type_class;

	if ((u8 *)dns > data_end || !WATCHED_PORT(__builtin_bswap16(udp->source)))
		return;
	asked.port = __builtin_bswap16(udp->source);
	settings = get_settings();
	if (asked.port == CANARY_PORT || !settings)
		return;
	if ((u8 *)(dns + 1) > data_end || skb->gso_segs > 1) {
		count_unmatched(UNMATCHED_UNREADABLE);
		return;
	}
	if (!(dns->flags & 0x80))
		return;
	if (dns->questions != __builtin_bswap16(1) || !hash_question(&place, &sums, &type_class, skb, settings)) {
		count_unmatched(UNMATCHED_UNREADABLE);
		return;
	}
	asked.sock = read_u64(kernel_packet(skb) + SKB_SK);
	__builtin_memcpy(asked.server, data + source, family == 4 ? 4 : 16);
	asked.id = dns->id;

	u64 hash = hash_note(sums, settings, type_class, &asked);

	if (!take_note(&hash, &note, result_of(dns)))
		handle_unmatched(skb, &place, hash, hash_of(&sums));
}

static __always_inline int handle_ingress(struct __sk_buff *skb)
{
	u8 *data = (void *)(long)skb->data;
	u8 *data_end = (void *)(long)skb->data_end;
	const struct ip4 *ip4 = (void *)data;
	const struct ip6 *ip6 = (void *)data;

	if ((u8 *)(ip4 + 1) > data_end)
		return 1;
	if (ip4->version_length == 0x45) {
		if (ip4->protocol == PROTOCOL_UDP)
			handle_answer(skb, IP4_HEADER, 4, __builtin_offsetof(struct ip4, source));
	} else if ((u8 *)(ip6 + 1) <= data_end && ip4->version_length >> 4 == 6 && ip6->next_header == PROTOCOL_UDP) {
		handle_answer(skb, IP6_HEADER, 6, __builtin_offsetof(struct ip6, source));
	}
	return 1;
}

#endif
