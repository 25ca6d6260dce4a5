/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The result of an answer: its RCODE, with the upper bits of the OPT record, and whether it has data.
 */
#ifndef DNSPROBE_ANSWERS_RCODE_H
#define DNSPROBE_ANSWERS_RCODE_H

#include "maps.h"
#include "dns/message.h"

/* Records of the answer section that are read. Resolvers follow chains of CNAMEs that are a little longer. */
#define RECORDS_READ 8

/* RFC 1035, section 3.2.2; RFC 6672; RFC 4034; in network byte order. */
#define TYPE_CNAME __builtin_bswap16(5)
#define TYPE_DNAME __builtin_bswap16(39)
#define TYPE_RRSIG __builtin_bswap16(46)
/* RFC 1035, section 3.2.3: a query for records of all types. */
#define TYPE_ANY __builtin_bswap16(255)

/* RFC 6891, section 6.1.1 */
#define TYPE_OPT 41

/* RFC 6891, section 9; RFC 7873, section 8 */
#define RCODE_BADVERS 16
#define RCODE_BADCOOKIE 23

/* A record behind its name, which is a compression pointer: RFC 1035, sections 4.1.3 and 4.1.4. */
struct record {
	u16 pointer;
	u16 type;
	u16 class;
	u16 ttl[2];
	u16 length; /* of the data behind it */
};

/* The beginning of an OPT record, whose name is the root: RFC 6891, section 6.1.3. */
struct opt {
	u8 root;
	u8 type[2];
	u8 class[2];
	u8 rcode; /* its upper eight bits */
};

/* As the end of a message: nothing is behind it in its packet. */
#define WHOLE_PACKET 0xffffffffU

/* Copies octets of a message, which ends at the offset `end` of the packet: what follows may be another message. 0 on
 * success. */
static __always_inline long load_octets(struct __sk_buff *skb, u32 at, u32 end, void *to, u32 size)
{
	return at + size > end ? -1 : bpf_skb_load_bytes(skb, at, to, size);
}

/* True if the answer section has a record of what was asked. `at` is its offset in the packet, `qtype` is in network
 * byte order. True as well if that is not certain: a name that is not compressed, a record that is not there, or too
 * many records. */
static __always_inline bool has_answer(struct __sk_buff *skb, u32 at, u32 end, u16 records, u16 qtype)
{
	struct record record;

	/* Any record is what was asked, also a CNAME. */
	if (qtype == TYPE_ANY)
		return records;
	for (u32 i = 0; i < RECORDS_READ; i++) {
		if (i == records)
			return false;
		if (load_octets(skb, at, end, &record, sizeof(record)))
			return true;
		if (*(u8 *)&record.pointer < 0xc0 || record.type == qtype)
			return true;
		/* These lead to another name, or sign what does. */
		if (record.type != TYPE_CNAME && record.type != TYPE_DNAME && record.type != TYPE_RRSIG)
			return true;
		at += sizeof(record) + __builtin_bswap16(record.length);
	}
	return true;
}

/*
 * Returns the slot of struct tracked_count for a response. `records` is the offset in the packet of what follows its
 * question, `end` that of its end. The upper bits of the RCODE are in the OPT record. Only if there are no other
 * records is it in a place that is known; servers that send such codes have no other records to send.
 */
static __always_inline u64 result_of(struct __sk_buff *skb, const struct dns *dns, u32 records, u32 end, u16 qtype)
{
	u64 rcode = dns->more_flags & 15;
	u16 answers = __builtin_bswap16(dns->answers);
	bool is_truncated = dns->flags & 2;
	struct opt opt;

	if (!answers && !dns->authorities && dns->additional &&
	    load_octets(skb, records, end, &opt, sizeof(opt)) == 0 && !opt.root && !opt.type[0] &&
	    opt.type[1] == TYPE_OPT)
		rcode |= opt.rcode << 4;
	if (rcode == RCODE_BADVERS)
		return RESULT_BADVERS;
	if (rcode == RCODE_BADCOOKIE)
		return RESULT_BADCOOKIE;
	if (rcode > RESULT_REFUSED)
		return RESULT_OTHER_RCODE;
	/* A truncated one may have no answers: RFC 2181, section 9. */
	if (rcode != RESULT_NOERROR || is_truncated)
		return rcode;
	return has_answer(skb, records, end, answers, qtype) ? RESULT_NOERROR : RESULT_NODATA;
}

#endif
