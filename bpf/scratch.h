/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The work space of one run of a program: it needs more than the 512 octets of a BPF stack.
 */
#ifndef DNSPROBE_SCRATCH_H
#define DNSPROBE_SCRATCH_H

#include "maps.h"

/* Each kind of hook has a work space of its own on each CPU, since a hook of one kind can interrupt one of another. */
#define HOOK_FUNCTION 0
#define HOOK_DEVICE 1
#define HOOK_NEIGHBOUR 2
#define HOOK_STREAM 3
#define HOOK_STREAM_AGAIN 4

/* Room in front of a message: the name is reversed in steps of eight octets, which may begin before the message does.
 */
#define PACKET_FRONT 16
/* The length in front of each message over TCP: RFC 1035, section 4.2.2. */
#define LENGTH_SIZE 2
/* Where messages over TCP begin, so that their header is where that of a datagram is. */
#define STREAM_FRONT (PACKET_FRONT - LENGTH_SIZE)
/* An offset and a size, each masked to 511, stay inside together. */
#define PACKET_SIZE 1024

/* Where a query goes. */
struct destination {
	u64 skb;  /* the packet, or 0 */
	u64 sock; /* the socket, or 0: then it is that of the packet */
	u16 port; /* in host byte order */
	u8 family;
	u8 transport;
	u8 server[16];
	u8 pad[4];
};

/* The key of the prefix trie of rules. */
struct lpm_key {
	u32 bits;
	u8 reversed[NAME_SIZE + 8];
};

struct question {
	u64 hash;
	u32 length; /* of the name in wire format, root included */
	u32 labels; /* root excluded */
	u16 qtype;
	bool segmented; /* other datagrams follow in the same packet */
	u8 pad[5];
};

/* Each field says who writes it and who reads it. */
struct scratch {
	/* The message, behind PACKET_FRONT. Written by udp/packet.h (copy_question) and tcp/ (copy_from_write); read by
	 * dns/. */
	u8 packet[PACKET_FRONT + PACKET_SIZE];
	/* Where each label begins in the name. Written by walk_question, read by match_name. */
	u8 label_offset[128];
	/* Written by reverse_name; read by hash_name, match_name, count_pending and complete_event. */
	struct lpm_key key;
	u32 pad;
	/* Written by walk_question, hash_name (hash) and udp/message.h (segmented); read by dns/, query/ and
	 * udp/handler.h. */
	struct question question;
	/* Written by count_pending as a new entry of MAP(NAMES). */
	struct name name;
	/* Written by handle_query, is_event_due (repeats), walk_ancestry (chain) and complete_event; read by
	 * keep_and_submit. */
	struct event event;
	/* Written by read_identity, read by keep_identity. */
	struct identity identity;
	/* A new entry of MAP(STREAMS). Zero but for the inode, which find_stream writes. */
	struct stream stream;
	u32 copied;
	u32 size;
	u32 length;
	u32 progress;
	u32 more;
	struct destination to;
	struct process_key process;
	u64 leader;	/* its task */
	u32 keep_tree;	/* for the first time: its tree is to be kept */
	u32 submit;	/* an event is to be submitted */
	u32 seen_added; /* none like it is remembered */
	u64 last_skb;
	u64 last_sock;
	u64 first_device;
	u64 last_ports_id;
	u64 last_server[2];
};

static __always_inline struct scratch *get_scratch(u32 hook_kind)
{
	return bpf_map_lookup_elem(MAP(SCRATCH), &hook_kind);
}

#endif
