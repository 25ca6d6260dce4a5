/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The scratch space of one run of a program, which needs more than the 512 octets of a BPF stack.
 */
#ifndef DNSPROBE_SCRATCH_H
#define DNSPROBE_SCRATCH_H

#include "maps.h"
#include "dns/hash.h"

/*
 * Programs that have a scratch space of their own on each CPU. A program may interrupt another one, but never itself:
 * the kernel skips and counts such runs. The program at egress is not among them: nothing keeps it from interrupting
 * itself, so each of its runs takes a scratch space from a pool (udp/egress.h).
 */
#define HOOK_IP4 0
#define HOOK_IP6 1
#define HOOK_STREAM 2
#define HOOK_STREAM_SECOND 3

/* Room in front of a message: the name is reversed in steps of eight octets, which may begin before the message does.
 */
#define PACKET_FRONT 16
/* The length in front of each message over TCP: RFC 1035, section 4.2.2. */
#define LENGTH_SIZE 2
/* Where messages over TCP begin. So their DNS header is at PACKET_FRONT, as that of a datagram is. */
#define STREAM_FRONT (PACKET_FRONT - LENGTH_SIZE)
/* The sum of an offset and a size, each masked to 511, is below this. */
#define PACKET_SIZE 1024

/* Where a query goes. */
struct destination {
	u64 skb;  /* the packet, or 0 */
	u64 sock; /* the socket, or 0: then it is that of the packet */
	u16 port; /* in host byte order */
	u8 family;
	u8 transport;
	u8 server[16];
	u8 local; /* TO_LOCAL if the server is on this host, otherwise 0 */
	u8 pad[3];
};

/* The transport in the counter of a query. */
static __always_inline u8 counted_transport(const struct destination *to)
{
	return to->transport | to->local;
}

/* The key of the prefix trie of rules. */
struct lpm_key {
	u32 bits;
	u8 reversed[NAME_SIZE + 8];
};

struct question {
	struct sums sums; /* of the name */
	u64 hash;	  /* of the name */
	u64 query_hash;	  /* of the name, type, class, transport and process */
	u32 length;	  /* of the name in wire format, root included */
	u32 labels;	  /* root excluded */
	u16 qtype;
	u16 qclass;	  /* over mDNS, without the bit that asks for an answer by unicast */
	bool plain;	  /* no label has an octet that is 0 */
	bool has_pointer; /* join_question() has to read the name: it has a compression pointer, or is not the first */
	u8 pad[2];
};

/* A compressed name while its pieces are joined. */
struct join {
	u64 message;  /* where it begins: an offset in its packet, or an address */
	u32 size;     /* of the message */
	u32 at;	      /* where the next label or pointer is in the message */
	u32 length;   /* of the labels so far, in wire format */
	u32 labels;   /* root included */
	u32 behind;   /* the offset behind the first pointer, 0: there was none yet; at last, that of the type */
	u32 is_whole; /* the root was read */
	u8 head[4];   /* octets that were read last, except for labels */
	u8 name[NAME_SIZE + 64];
};

/* A query that is noted. */
struct waiting {
	struct asked asked;
	u64 hash;	      /* of it: the key of its note */
	u32 without_question; /* of it: hash_note() */
	u32 pad;
	struct note note;  /* a new entry of MAP(NOTES) */
	struct note taken; /* the note of the same query before */
};

/* struct scratch.sent_on */
#define SENT_ON 1
#define NOTED 2

/* A packet of a TCP connection at egress. Sequence numbers are in host byte order. */
struct segment {
	u64 sock;     /* address of struct sock */
	u32 at;	      /* offset of the first octet in the packet */
	u32 sequence; /* of that octet */
	u32 end;      /* sequence number behind the last octet */
	u32 urgent;   /* sequence number of the urgent octet */
	u32 is_first; /* 1: it opens the connection */
	u32 is_urgent;
};

/*
 * The comment on a field names the functions that write it and those that read it. Nothing clears the fields between
 * runs: a run finds the values of the last run of the same kind of hook on this CPU.
 */
struct scratch {
	/* The message, at PACKET_FRONT or STREAM_FRONT. Written by read_question, join_question, copy_from_write and
	 * read_next_message; read by walk_question, reverse_name, read_message, begin_message and advance. */
	u8 packet[PACKET_FRONT + PACKET_SIZE];
	/* Where each label begins in the name. Written by walk_question and join_piece, read by match_name. */
	u8 label_offset[128];
	/* The reversed name. Written by reverse_name; read by hash_name, match_name, count_pending, complete_event. */
	struct lpm_key key;
	u32 pad;
	/* Written by walk_question, join_question, identify_query, hash_name (sums, hash, plain) and
	 * count_encrypted_connection (qtype); read by dns/, query/ and handle_datagram. */
	struct question question;
	/* The message and its size are written by handle_packet_slowly, read_next and read_message; the rest is
	 * written and read by join_piece and join_question. */
	struct join join;
	/* The keys of the counter. Written and read by count_query and count_pending. */
	struct count_key count_key;
	struct pending_key pending_key;
#ifdef BY_SERVER
	/* The server that is asked, and its number, which is a new entry of MAP(SERVERS). Written by number_server and
	 * add_server; read by them, count_query and count_pending. */
	struct server asked_server;
	struct numbered_server server;
#endif
#ifdef ANSWERS
	/* Written and read by note_query and handle_question. */
	struct waiting waiting;
	/* Of a segment with answers: its connection. Written and read by answers/stream.h, as the next ones. */
	struct answer_stream arriving;
	/* Not 0: the segment came before its turn. Then the place of what is missing, and the octets in front of it. */
	u32 is_out_of_turn;
	u32 missing_at;
	u32 missing_buffered;
	/* Not 0: answers of the connection may have been missed. */
	u32 is_lost;
	/* Not 0: an answer without a question counts. Written by handle_parts as well, as the next one. */
	u32 may_be_bare;
	/* The offset of what follows the question. */
	u32 records;
	/* Not 0: the answer fits a note. Written by handle_question as well. */
	u32 is_matched;
	/* Octets of an answer that the packet has; 0: it began in an earlier one. Written by handle_part and
	 * handle_stream_answer, read by report_answer. */
	u32 in_packet;
	/* A result with its answer. Written by handle_question and report_answer. */
	struct ended ended;
#endif
	/* A new entry of MAP(NAMES). Written and read by count_pending. */
	struct name name;
	/* Written by handle_query, is_event_due (repeats), walk_ancestry (chain), complete_event and
	 * count_encrypted_connection (kind); read by query/ and keep_identity (chain.exec). */
	struct event event;
	/* A new entry of MAP(IDENTITIES). Written by read_identity, read by keep_identity. */
	struct identity identity;
	/* A new entry of MAP(STREAMS): all zero, except for the inode. Written and read by add_stream. */
	struct stream stream;
	/* Octets that were copied so far. Written and read by copy_from_write. */
	u32 copied;
	/* Octets to copy; behind that, octets of the message in `packet`. Written by read_next_message; read by
	 * copy_from_write, begin_message, read_message and advance. */
	u32 size;
	/* The length that the message has by its first two octets. Written by read_message, read by advance. */
	u32 length;
	/* enum progress. Written by read_next_message and advance, read by advance and handle_message. */
	u32 progress;
	/* The result of classify(). Written by read_message, read by handle_message. */
	u32 message;
	/* Not 0: the write has another message. Written by read_next_message, advance and handle_write; read by
	 * handle_write of this run and of the run that the tail call starts. */
	u32 more;
	/* The rule of the message, UNREAD if it is not read as a query. Written by handle_odd_message and
	 * handle_message; read by them and query/. */
	u32 rule;
	/* Why a message is not read as a query, 0: it is. A slot of the statistics array. Written by handle_datagram,
	 * handle_odd_datagram, handle_message and lose_alignment; read by handle_odd_message and handle_message. */
	u32 unread;
	/* Questions of the message that were read, and the offset of the next one, 0: there is none. Written by
	 * begin_questions, handle_datagram, note_next_question, handle_odd_message and handle_odd_datagram; read by
	 * udp/. */
	u32 questions;
	u32 question_at;
	/* Not 0: octets in front of a message that is read were not seen. Written by handle_message, read by
	 * handle_write. */
	u32 has_gap;
	/* Written by handle_packet and handle_write; read by query/, read_next_message and tcp/handler.h. */
	struct destination to;
	/* The process that sends. Written by identify_query, want_tree and count_encrypted_connection; read by query/.
	 */
	struct process_key process;
	/* The task of the leader of its thread group. Written as `process`, read by keep_and_submit. */
	u64 leader;
	/* Who takes the room of what this query adds (SHARE_OF_*), and the type under which it is counted. Written by
	 * set_share, want_tree and count_encrypted_connection (counted_qtype); read by query/ and keep_identity. */
	u64 share;
	u32 counted_qtype;
	/* Not 0: the process has a new counter and no tree yet. Written by handle_packet and handle_write (0),
	 * count_query, count_pending and want_tree; read by keep_and_submit. */
	u32 keep_tree;
	/* Not 0: an event is to be submitted. Written by handle_write (0) and handle_query, read by keep_and_submit. */
	u32 submit;
	/* Not 0: this run has added the entry of MAP(SEEN). Written by is_event_due, read by update_seen. */
	u32 seen_added;
	/* Not 0: the next query that is the same has the same outcome. Written by describe_unread,
	 * handle_datagram, handle_packet_slowly and handle_odd_datagram; read by remember_query. */
	u32 repeatable;
	/* The rule of that outcome, DECIDE if it is not known. Written and read by query/. */
	u32 outcome;
	/* For how many nanoseconds the same query causes no event. Written by is_event_due and update_seen, read by
	 * remember_query. */
	u64 quiet_ns;
	/* Of a datagram: its octets in `packet` or, while it is not copied, in the linear part of its packet. Written
	 * by handle_packet and copy_datagram; read by handle_datagram. */
	u32 present;
	/* Of a packet at a kernel function: the address of its message, and the octets of it in the linear part.
	 * Written by handle_packet, read by handle_packet_slowly. */
	u64 payload;
	u32 linear;
	/* How many datagrams the packet has. Written by handle_packet, read by handle_packet_slowly. */
	u32 datagrams;
	/* Of a packet at egress: the offset of its first DNS message, the octets from there on, those of each datagram
	 * but the last, where the next datagram begins behind the first octet of the first one, and how many runs the
	 * packet had. Written by read_cut, read_next and handle_datagrams, which read them as well; of one at ingress,
	 * by handle_parts. */
	u32 message_at;
	u32 total;
	u32 segment;
	u32 at;
	u32 runs;
	/* SENT_ON: the current task does not ask, but sends on the packet of another. Then `process` and `leader` are
	 * those of the asker, 0 if it is not known. NOTED: as well, and the asker and `share` are from the TCP
	 * connection. Written by find_sender, find_writer and exclude_kernel_thread; read by query/.
	 */
	u32 sent_on;
	/* Of a segment: its octets that are not read yet, up to the urgent octet, and those of them that belong to the
	 * message. Written and read by read_segment_message. */
	u32 left;
	u32 part;
	/* The segment. Written by handle_egress_stream_slowly, read by tcp/egress.h and find_writer. */
	struct segment tcp;
	/* Its connection. Written by load_connection, written and read by tcp/egress.h and tcp/writer.h. */
	struct connection connection;
	/* Not 0: the kernel keeps the connection with its socket. Not 0: it does not know it before this packet, which
	 * does not open it. Why octets count as not read if it is not known where a message begins. Written by
	 * load_connection, read by tcp/egress.h. */
	u32 is_kept;
	u32 is_late;
	u32 unaligned;
	/* Not 0: a firewall may have held back the segment. Written by find_writer, read by tcp/egress.h. */
	u32 held_back;
	/* Not 0: the connection notes the tree of the process that writes. Written by find_writer, read by
	 * keep_and_submit_segment. */
	u32 note_tree;
	/* Of a datagram: octets of its packet behind the linear part. Written by handle_packet and copy_datagram, read
	 * by read_question and handle_packet_slowly. */
	u32 beyond;
};

static __always_inline struct scratch *get_scratch(u32 hook_kind)
{
	return bpf_map_lookup_elem(MAP(SCRATCH), &hook_kind);
}

#endif
