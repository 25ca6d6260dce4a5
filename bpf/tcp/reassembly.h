/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * DNS over TCP: from what a program writes to the messages in it, however it cuts them up (RFC 7766, section 8).
 *
 * What tells where a write belongs is the socket's own sequence number, not what was written before: a write that the
 * socket took in part is written again from there on, and is then found to be known already. Of one that it did not
 * take at all, the first octets tell whether it is written again. Only a write that opens its connection comes before
 * there are such numbers.
 */
#ifndef DNSPROBE_STREAM_H
#define DNSPROBE_STREAM_H

#include "verifier.h"
#include "dns/match.h"
#include "query/handler.h"
#include "query/submit.h"

/* The length in front of each message: RFC 1035, section 4.2.2. */
#define LENGTH_SIZE 2
/* Pieces of one write that are looked at. */
#define PIECES 64
/* struct iovec of include/uapi/linux/uio.h; struct kvec is laid out alike. */
#define PIECE_SIZE 16

/* include/linux/socket.h */
#define AF_INET 2
#define AF_INET6 10
#define MSG_FASTOPEN 0x20000000

#define TCP_SYN_SENT 2	    /* include/net/tcp_states.h */
#define TFO_CLIENT_ENABLE 1 /* include/net/tcp.h */

/* At a function, which is entered before a connection is opened; the tracepoint is hit after. */
#if defined(STREAM_FUNCTION) && defined(MSG_NAME)
#define OPENINGS
#endif

/* Where messages are kept in the scratch space: the length in front, the header where read_question() has it. */
#define STREAM_FRONT (PACKET_FRONT - LENGTH_SIZE)

/* A write, as struct iov_iter of include/linux/uio.h has it. */
struct write {
	u32 sequence; /* of its first octet */
	u32 kind;     /* enum iter_type */
	u64 size;
	u64 offset; /* of its first octet in its first piece */
	u64 data;   /* address of its pieces, or of the one that it has */
	u64 pieces;
};

struct piece {
	u64 address;
	u64 size;
};

/* How a write stands to its connection: TCP Fast Open (RFC 7413) sends the first one with the SYN. */
enum opening {
	NOT_OPENING,
	OPENING_NAMED,	 /* sendmsg(2) with MSG_FASTOPEN connects: the message says where to */
	OPENING_DEFERRED /* connect(2) left it to the first write (TCP_FASTOPEN_CONNECT of tcp(7)) */
};

/* struct sockaddr_in6 of include/uapi/linux/in6.h, and struct sockaddr_in, which ends with `four`. */
struct address {
	u16 family;
	u16 port;
	u32 four; /* that of IPv6 has the flow here */
	u32 six[4];
};

#ifdef OPENINGS
/* Reads where a write of MSG_FASTOPEN goes; false if it is none, or fails at once as the system does not allow it
 * (net/ipv4/tcp.c, tcp_sendmsg_fastopen()). */
static __always_inline bool read_name(struct address *address, u64 sock, u64 message)
{
	u64 net = read_u64(sock + SOCK_NET);

	return (read_u32(message + MSG_FLAGS) & MSG_FASTOPEN) &&
	       (read_u32(net + NET_TCP_FASTOPEN) & TFO_CLIENT_ENABLE) &&
	       READ(*address, read_u64(message + MSG_NAME)) == 0 &&
	       (address->family == AF_INET || address->family == AF_INET6);
}
#endif

/* True for a write to a port that is watched, or whose connections are counted. */
static __always_inline bool read_destination(struct destination *to, enum opening *opening, u64 sock, u64 message)
{
	u8 common[SOCK_COMMON_SPAN] __attribute__((aligned(8)));
	struct address address = {};

	*opening = NOT_OPENING;
	if (bpf_probe_read_kernel(common, sizeof(common), (void *)(sock + SOCK_COMMON)))
		return false;
	address.port = *(u16 *)&common[SOCK_DPORT];
#ifdef OPENINGS
	if (!address.port) {
		if (!read_name(&address, sock, message))
			return false;
		*opening = OPENING_NAMED;
	}
#endif
	to->port = __builtin_bswap16(address.port);
	if (!WATCHED_PORT(to->port) && !ENCRYPTED_PORT(to->port))
		return false;
	if (*opening != OPENING_NAMED) {
		address.family = *(u16 *)&common[SOCK_FAMILY];
		address.four = *(u32 *)&common[SOCK_DADDR];
		if (address.family != AF_INET)
			READ(address.six, sock + SOCK_COMMON + SOCK_V6_DADDR);
	}
#ifdef OPENINGS
	/* Where connect(2) is not put off, the SYN was sent. */
	if (*opening == NOT_OPENING && common[SOCK_STATE] == TCP_SYN_SENT && read_u32(sock + TCP_SEGS_OUT) == 0)
		*opening = OPENING_DEFERRED;
#endif
	to->skb = 0;
	to->sock = sock;
	to->transport = transport_of(to->port, TRANSPORT_TCP);
	to->family = 4;
	__builtin_memset(to->server, 0, sizeof(to->server));
	/* An IPv4 address in IPv6's clothes (RFC 4291, section 2.5.5.2) is what it is on the wire. */
	if (address.family == AF_INET) {
		__builtin_memcpy(to->server, &address.four, 4);
	} else if (!address.six[0] && !address.six[1] && address.six[2] == __builtin_bswap32(0xffff)) {
		__builtin_memcpy(to->server, &address.six[3], 4);
	} else {
		to->family = 6;
		__builtin_memcpy(to->server, address.six, sizeof(address.six));
	}
	return true;
}

/*
 * Returns the number of a connection's first octet, which is one behind that of its SYN. The SYN counts as
 * acknowledged, too: both numbers grow together (net/ipv4/tcp_input.c, tcp_snd_una_update()).
 */
static __always_inline u32 first_octet(u64 sock)
{
	return read_u32(sock + TCP_SND_UNA) - read_u32(sock + TCP_BYTES_ACKED) + 1;
}

static __always_inline void read_write(struct write *write, u64 message)
{
	u64 iterator = message + MSG_ITER;

	write->kind = ITER_KIND(read_u32(iterator + ITER_TYPE));
	write->size = read_u64(iterator + ITER_COUNT);
	write->offset = read_u64(iterator + ITER_OFFSET);
	write->data = read_u64(iterator + ITER_DATA);
	write->pieces = read_u64(iterator + ITER_NR_SEGS);
	if (write->kind == ITER_UBUF)
		write->pieces = 1;
}

static __always_inline bool find_piece(struct piece *piece, const struct write *write, u32 index)
{
	if (write->kind == ITER_UBUF) {
		piece->address = write->data;
		piece->size = write->offset + write->size;
		return true;
	}
	return (write->kind == ITER_IOVEC || write->kind == ITER_KVEC) &&
	       READ(*piece, write->data + index * PIECE_SIZE) == 0;
}

/* Copies s->size octets of a write, `skip` behind its start, behind the `have` octets that are there already; false if
 * they cannot be read. */
static __always_inline bool copy_octets(struct scratch *s, const struct write *write, u64 skip, u32 have)
{
	u64 at = write->offset + skip;
	struct piece piece;

	s->copied = 0;
	for (u32 i = 0; i < PIECES; i++) {
		u64 done = FORGET(s->copied);
		u64 size = FORGET(s->size);

		if (done >= size || i >= write->pieces || !find_piece(&piece, write, i))
			break;
		if (at >= piece.size) {
			at -= piece.size;
			continue;
		}

		u64 part = piece.size - at;
		u64 to = have + done;

		if (part > size - done)
			part = size - done;
		KEEP_BELOW_512(to);
		KEEP_BELOW_512(part);
		void *octets = s->packet + STREAM_FRONT + to;
		void *from = (void *)(piece.address + at);
		long failed = write->kind == ITER_KVEC ? bpf_probe_read_kernel(octets, part, from)
						       : read_user(octets, part, from);

		if (failed)
			break;
		s->copied = done + part;
		at = 0;
	}
	return FORGET(s->copied) == FORGET(s->size);
}

/* How a message that has begun goes on. */
enum progress {
	MESSAGE_INCOMPLETE,
	MESSAGE_READ,
	MESSAGE_NO_QUERY,
	MESSAGE_MALFORMED,
};

/* Looks at the s->size octets of a message that are in the scratch space; s->length gets what it says of itself. */
static __always_inline enum progress read_message(struct scratch *s, u16 port)
{
	const struct dns *dns = (const struct dns *)(s->packet + PACKET_FRONT);
	u32 have = FORGET(s->size);
	u32 length = s->packet[STREAM_FRONT] << 8 | s->packet[STREAM_FRONT + 1];

	s->length = length;
	if (have < LENGTH_SIZE)
		return MESSAGE_INCOMPLETE;

	u32 size = have - LENGTH_SIZE < length ? have - LENGTH_SIZE : length;

	if (size >= DNS_HEADER && !is_query(dns, port))
		return MESSAGE_NO_QUERY;
	if (size >= SHORTEST_QUERY && walk_question(s, size))
		return MESSAGE_READ;
	return size >= length || have >= STREAM_SIZE ? MESSAGE_MALFORMED : MESSAGE_INCOMPLETE;
}

/*
 * Goes on with a connection of which the first write was seen before it had sequence numbers. What of it did not go
 * out, as the socket was not to wait, is written again, and is then known.
 */
static __always_inline void go_on(struct stream *stream, u32 first)
{
	stream->start += first - stream->first;
	stream->lost += first - stream->first;
	stream->last += first - stream->first;
	stream->first = first;
	stream->opened = 0;
}

/*
 * Finds the connection that a write belongs to, or begins one; NULL where there is no room. `continued` says that this
 * is not the first run for this write.
 */
static __always_inline struct stream *find_stream(struct scratch *s, u64 sock, u32 sequence, enum opening opening,
						  bool continued)
{
	struct stream *stream = bpf_map_lookup_elem(MAP(STREAMS), &sock);
	u64 inode = read_u64(read_u64(sock + SOCK_SOCKET) + SOCKET_INODE);

	if (!stream) {
		s->stream.inode = ~inode;
		bpf_map_update_elem(MAP(STREAMS), &sock, &s->stream, BPF_ANY);
		stream = bpf_map_lookup_elem(MAP(STREAMS), &sock);
		if (!stream)
			return NULL;
	}

	/* Before there is a connection, its numbers are those that the writes would have. */
	u32 first = opening == NOT_OPENING ? first_octet(sock) : sequence;
	/* The address may be that of a socket that is gone. */
	bool other = stream->inode != inode || (opening == OPENING_NAMED && !continued);

	/* Where the socket is not locked, it may have changed between the two halves of the number. */
	if (opening == NOT_OPENING && stream->first != first)
		first = first_octet(sock);
	if (!other && opening == NOT_OPENING && stream->opened)
		go_on(stream, first);
	if (!other && stream->first == first)
		return stream;
	stream->inode = inode;
	stream->first = first;
	stream->start = sequence;
	stream->have = 0;
	stream->known = sequence == first;
	stream->lost = ~sequence;
	stream->last = ~sequence;
	stream->opened = opening == OPENING_NAMED;
	return stream;
}

/* Gives a stream up; it is taken up again where a write begins with a message. */
static __always_inline void lose_stream(struct stream *stream, u16 port, u32 sequence, u32 statistic)
{
	stream->known = 0;
	stream->lost = sequence;
	if (port != CANARY_PORT)
		count_statistic(statistic);
}

/* True where the octets of a write that were copied begin as those of the last write did. */
static __always_inline bool begins_alike(const struct stream *stream, const u64 *head, u32 copied)
{
	u32 size = copied < stream->head_size ? copied : stream->head_size;
	u64 differing = 0;

	for (u32 i = 0; i < STREAM_HEAD; i++) {
		u32 before = i * 8;
		u64 mask = size >= before + 8 ? ~0ULL : size > before ? (1ULL << (size - before) * 8) - 1 : 0;

		differing |= (head[i] ^ stream->head[i]) & mask;
	}
	return !differing;
}

/*
 * Looks at a write that begins with a message, the first octets of which are in the scratch space; false if it was seen
 * before, and is written again.
 */
static __always_inline bool take_write(struct scratch *s, struct stream *stream, u32 sequence, bool again)
{
	u32 copied = FORGET(s->size);
	u64 head[STREAM_HEAD];

	bpf_probe_read_kernel(head, sizeof(head), s->packet + STREAM_FRONT);
	if (again && begins_alike(stream, head, copied))
		return false;
	__builtin_memcpy(stream->head, head, sizeof(head));
	stream->head_size = copied;
	stream->last = sequence;
	stream->start = sequence;
	stream->have = 0;
	return true;
}

/*
 * Reads the message that is next in a write, and goes on behind it; `continued` says that this is not the first run for
 * this write. What comes of it goes to the scratch space, for the reason that FORGET() has.
 */
static __always_inline void next_message(struct scratch *s, struct stream *stream, const struct write *write,
					 bool continued)
{
	u16 port = s->to.port;
	u32 length;

	s->progress = MESSAGE_INCOMPLETE;
	s->more = 0;
	/* Something was sent that did not come by here. */
	if (stream->known && (s32)(stream->start + stream->have - write->sequence) < 0)
		lose_stream(stream, port, write->sequence, STAT_UNPARSED_UNALIGNED);
	if (!stream->known) {
		stream->start = write->sequence;
		stream->have = 0;
	}

	u32 start = FORGET(stream->start);
	u32 have = FORGET(stream->have);
	/* The socket took nothing of the last write: this is the same once more, or another in its place. */
	bool again = !continued && FORGET(stream->known) && stream->last == write->sequence;

	if (again) {
		start = write->sequence;
		have = 0;
	}

	u32 skip = start + have - write->sequence;

	/* Known already: it is written again, since the socket took a part of it. */
	if (skip >= write->size || have >= STREAM_SIZE)
		return;
	s->size = write->size - skip < STREAM_SIZE - have ? write->size - skip : STREAM_SIZE - have;
	bpf_probe_read_kernel(s->packet + STREAM_FRONT, STREAM_SIZE, stream->octets);
	if (!copy_octets(s, write, skip, have)) {
		lose_stream(stream, port, write->sequence, STAT_UNPARSED_UNREADABLE);
		return;
	}
	if (!continued && !skip && !have && !take_write(s, stream, write->sequence, again)) {
		s->more = FORGET(stream->start) + FORGET(stream->have) - write->sequence < write->size;
		return;
	}
	s->size += have;
	s->progress = read_message(s, port);
	length = LENGTH_SIZE + FORGET(s->length);
	if (!FORGET(stream->known) && (FORGET(s->progress) != MESSAGE_READ || length > write->size)) {
		s->progress = MESSAGE_INCOMPLETE;
		lose_stream(stream, port, write->sequence, STAT_UNPARSED_UNALIGNED);
		return;
	}
	stream->known = 1;
	if (FORGET(s->progress) == MESSAGE_INCOMPLETE) {
		stream->have = s->size;
		bpf_probe_read_kernel(stream->octets, STREAM_SIZE, s->packet + STREAM_FRONT);
		return;
	}
	stream->start += length;
	stream->have = 0;
	s->more = stream->start - write->sequence < write->size;
}

static __always_inline void take_message(struct scratch *s, const struct settings *settings)
{
	reverse_name(s);

	u32 rule = match_name(s);

	if (rule != NO_RULE && rule_fits_port(rule, s->to.port))
		handle_query(s, settings, rule);
}

/* Counts a connection whose queries cannot be read, at its first octets. */
static __always_inline void take_encrypted(struct scratch *s, struct stream *stream, u32 sequence)
{
	if (!stream->known || stream->first != sequence)
		return;
	stream->known = 0; /* the same octets may come once more */
	s->leader = current_process(&s->process);
	s->question.qtype = 0;
	s->event.kind = KIND_QUERY;
	count_query(s, ENCRYPTED, TRANSPORT_DOT);
}

/* One write to a TCP socket, from reject to submit. Each message in it takes a run of its own, of the same program: it
 * stands in the array at `again`. */
static __always_inline int handle_stream(void *ctx, u64 sock, u64 message, u32 kind, u32 again)
{
	struct destination to;
	enum opening opening;

	if (!read_destination(&to, &opening, sock, message))
		return 0;

	struct scratch *s = get_scratch(kind);
	struct settings *settings = get_settings();

	if (!s || !settings)
		return 0;

	struct write write = { .sequence = read_u32(sock + TCP_WRITE_SEQ) };

	if (opening == OPENING_DEFERRED)
		write.sequence++;

	bool continued = FORGET(s->more);
	struct stream *stream = find_stream(s, sock, write.sequence, opening, continued);

	s->more = 0;
	if (!stream)
		return 0;
	/* This write was seen, and it was counted that it cannot be read: by the first of two programs, or before the
	 * socket took none of it. */
	if (!stream->known && stream->lost == write.sequence)
		return 0;
	s->to = to;
	s->keep_tree = 0;
	s->submit = 0;
	if (WATCHED_PORT(to.port)) {
		read_write(&write, message);
		if (!write.size)
			return 0;
		next_message(s, stream, &write, continued);
		if (FORGET(s->progress) == MESSAGE_MALFORMED && s->to.port != CANARY_PORT)
			count_statistic(STAT_UNPARSED_MALFORMED);
		if (FORGET(s->progress) == MESSAGE_READ)
			take_message(s, settings);
	} else {
		take_encrypted(s, stream, write.sequence);
	}
	keep_and_submit(s, settings);
	if (!FORGET(s->more))
		return 0;
	tail_call(ctx, MAP(AGAIN), again);
	s->more = 0;
	/* So many messages in one write that the kernel follows no further (MAX_TAIL_CALL_CNT). */
	lose_stream(stream, s->to.port, write.sequence, STAT_UNPARSED_PIPELINED);
	return 0;
}

#endif
