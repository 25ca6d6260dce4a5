/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Notes: queries that wait for their answer. Exactly one event takes a note back, and its result is counted beside the
 * query: the one whose bpf_map_delete_elem() removes it. Without the macro ANSWERS there are no notes.
 */
#ifndef DNSPROBE_ANSWERS_NOTE_H
#define DNSPROBE_ANSWERS_NOTE_H

#include "kernel_read.h"
#include "maps.h"
#include "verifier.h"
#include "scratch.h"
#include "answers/latency.h"
#include "process/share.h"
#include "query/server.h"

#ifdef ANSWERS
#define TRACKS_ANSWERS true
#else
#define TRACKS_ANSWERS false
#endif

static __always_inline void set_asked(struct asked *asked, const struct destination *to, u16 id)
{
	if (!TRACKS_ANSWERS && !TELLS_SERVERS)
		return;
	asked->sock = TRACKS_ANSWERS ? to->sock ?: read_u64(to->skb + SKB_SK) : 0;
	__builtin_memcpy(asked->server, to->server, sizeof(asked->server));
	asked->id = id;
	asked->port = to->port;
	set_family(asked, to->family);
}

#ifdef ANSWERS

/* How often a note is deleted at most. Linux 5.11 and later refuse it with -EBUSY if the run interrupts a change of the
 * same bucket: kernel commit 20b6cc34ea74 ("bpf: Avoid hashtab deadlock with map_locked"). */
#define DELETE_ATTEMPTS 3

/* include/linux/net.h */
#define SOCK_RAW 3

/* True for a raw socket: the answer to its query comes to another one. */
static __always_inline bool is_raw(u64 sock)
{
	return (u16)read_u32(sock + SOCK_TYPE) == SOCK_RAW;
}

/* Counts what became of a query. Its counter is there: user space removes none whose queries wait. */
static __always_inline void count_result(const struct note *note, u64 result)
{
	COUNTER *count = note->noted == NOTED_PENDING ? bpf_map_lookup_elem(MAP(PENDING), (void *)note->counter)
						      : bpf_map_lookup_elem(MAP(COUNTS), (void *)note->counter);

	/* The result may be on the stack, where the verifier forgets its bounds. */
	KEEP_BELOW_16(result);
	if (count)
		__sync_fetch_and_add(&count->results[result], 1);
}

/* Remembers whether a query that was taken back had an answer, for a further answer to it. */
static __always_inline void remember_taken(u64 hash, bool is_answered)
{
	u64 index = hash & (TAKEN_NOTES - 1); /* as in add_to_slot() */
	u64 *slot = bpf_map_lookup_elem(MAP(TAKEN_NOTES), &index);

	if (slot)
		*slot = (hash & ~(u64)(TAKEN_NOTES - 1)) | is_answered;
}

/*
 * Takes the note with the key `hash` back. False if there is none, or if another event is taking it. `note` gets the
 * note: on the stack or, in a program that has no room there, in its scratch space. So does `hash`. The caller ends it.
 * `leave_awaited`: false as well if its result is to be reported, and the caller cannot do that.
 */
static __always_inline bool remove_note(const u64 *hash, struct note *note, bool leave_awaited)
{
	struct note *found = bpf_map_lookup_elem(MAP(NOTES), (void *)hash);
	long failed = -EEXIST;

	if (!found || (leave_awaited && found->query_id))
		return false;
	/* Once it is deleted, its memory may have another note. */
	*note = *found;
	for (u32 i = 0; i < DELETE_ATTEMPTS && failed && failed != -ENOENT; i++)
		failed = bpf_map_delete_elem(MAP(NOTES), (void *)hash);
	if (failed)
		return false;
	if (note->noted != NOTED_CANARY)
		give_back(note->share, RESOURCE_NOTES, 1);
	return true;
}

/* Reports what became of a canary. */
static __always_inline void report_canary(const struct note *note, u64 result)
{
	const struct pending_key *key = (const void *)note->counter;
	struct canary_result report = {
		.name_hash = key->name_hash,
		.start_ns = key->start_ns,
		.tgid = key->tgid,
		.result = result,
	};

	bpf_ringbuf_output(MAP(CANARIES), &report, sizeof(report), 0);
}

/* Counts the result of a query whose note was taken back. */
static __always_inline void end_query(const u64 *hash, const struct note *note, u64 result)
{
	/* Before the result: user space takes the histogram once no query waits. */
	if (result <= RESULT_NODATA)
		count_latency(note);
	count_result(note, result);
	remember_taken(*hash, result <= RESULT_NODATA);
}

/* Counts the result of a note that was taken back, or reports that of a canary. */
static __always_inline void end_note(const u64 *hash, const struct note *note, u64 result)
{
	if (note->noted == NOTED_CANARY)
		report_canary(note, result);
	else
		end_query(hash, note, result);
}

/* Hands a result without an answer to user space, if the query had an event. */
static __always_inline void report_result(const struct note *note, u64 result)
{
	/* It has no octets of an answer. */
	const u64 size = __builtin_offsetof(struct ended, message);
	u64 query_id = note->query_id;
	struct ended *ended = NULL;

	if (!query_id)
		return;
	if (take_room(note->share, RESOURCE_EVENTS, ring_room(size))) {
		ended = bpf_ringbuf_reserve(MAP(EVENTS), size, 0);
		if (!ended)
			give_back(note->share, RESOURCE_EVENTS, ring_room(size));
	}
	if (!ended) {
		count_statistic(STAT_LOST_RESULTS);
		return;
	}
	ended->time_ns = bpf_ktime_get_ns();
	ended->query_id = query_id;
	ended->share = note->share;
	ended->result = result;
	ended->size = 0;
	ended->kind = KIND_ENDED;
	bpf_ringbuf_submit(ended, 0);
}

/* Remembers that a socket has a note. */
static __always_inline void add_to_socket(const u64 *sock, u64 hash, u32 without_question)
{
	struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), (void *)sock);

	if (!socket) {
		const void *none = get_zeros();

		if (none)
			bpf_map_update_elem(MAP(SOCKETS), (void *)sock, (void *)none, BPF_NOEXIST);
		socket = bpf_map_lookup_elem(MAP(SOCKETS), (void *)sock);
		if (!socket)
			return;
	}

	u64 at = socket->next;

	socket->next = at + 1;
	at &= SOCKET_NOTES - 1;
	socket->notes[at] = hash;
	/* If two CPUs write here at once, the check of one fits no note of the other. */
	socket->checks[at] = without_question ^ (u32)hash;
}

#define EVENT_RESULT 3ULL /* see struct noted_socket */

/* Remembers an event of a socket. RESULT_UNTRACKED: answers over TCP could not be read. */
static __always_inline void add_event(struct noted_socket *socket, u64 result)
{
	u64 event = (bpf_ktime_get_ns() & ~EVENT_RESULT) | (result - RESULT_CLOSED);

	if ((socket->events[0] ^ event) & EVENT_RESULT) {
		for (u32 i = SOCKET_EVENTS - 1; i > 0; i--)
			socket->events[i] = socket->events[i - 1];
	}
	socket->events[0] = event;
}

/* True if the answer to a query may have been missed, because segments of its TCP connection were. */
static __always_inline bool may_be_missed(const struct noted_socket *socket, const struct note *note)
{
	for (u32 i = 0; i < SOCKET_EVENTS; i++) {
		if ((socket->events[i] & EVENT_RESULT) == RESULT_UNTRACKED - RESULT_CLOSED &&
		    socket->events[i] > note->time_ns)
			return true;
	}
	return false;
}

/*
 * Takes back the notes of a socket: RESULT_CLOSED or RESULT_UNREACHABLE. A query over TCP whose answer may have been
 * missed is untracked. Of more notes than SOCKET_NOTES, the older ones wait until user space gives them up, and get the
 * result of the event.
 */
static __always_inline void take_notes_of(u64 sock, u64 result)
{
	struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), &sock);

	if (!socket)
		return;
	for (u32 i = 0; i < SOCKET_NOTES; i++) {
		u64 hash = socket->notes[i];
		struct note note;

		u64 ending = result;

		if (!hash || !remove_note(&hash, &note, false))
			continue;
		if (may_be_missed(socket, &note))
			ending = RESULT_UNTRACKED;
		end_note(&hash, &note, ending);
		report_result(&note, ending);
	}
	/* Otherwise, all its notes since the last event were taken here. The next sockets at this address must not push
	 * out the events of this one. */
	if (socket->next > SOCKET_NOTES)
		add_event(socket, result);
	socket->next = 0;
	if (!socket->events[0])
		bpf_map_delete_elem(MAP(SOCKETS), &sock);
}

/* Remembers that answers over TCP could not be read. Queries that wait may still get theirs; the others are untracked,
 * because nobody knows. */
static __always_inline void miss_answers_of(u64 sock)
{
	struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), &sock);

	if (socket)
		add_event(socket, RESULT_UNTRACKED);
}

/* Sets waiting->hash to the key of the note with these id, socket and server (waiting->asked). False if none or
 * several of the latest notes of the socket have them. */
static __always_inline bool find_note_by_id(struct waiting *waiting, const struct settings *settings)
{
	const struct noted_socket *socket = bpf_map_lookup_elem(MAP(SOCKETS), &waiting->asked.sock);
	struct sums none = {};

	/* Only without_question is of use. */
	hash_note(none, settings, 0, &waiting->asked, &waiting->without_question);
	waiting->hash = 0;
	if (!socket)
		return false;
	for (u32 i = 0; i < SOCKET_NOTES; i++) {
		u64 hash = socket->notes[i];

		/* FORGET, here and below: with registers, the verifier would follow each round once for each way
		 * through the rounds before it. */
		if ((socket->checks[i] ^ (u32)hash) != FORGET(waiting->without_question) ||
		    !bpf_map_lookup_elem(MAP(NOTES), &hash))
			continue;
		if (FORGET(waiting->hash) && FORGET(waiting->hash) != hash)
			return false;
		waiting->hash = hash;
	}
	return FORGET(waiting->hash) != 0;
}

/* Stores the note of a query that was counted just now. False if there is no room. */
static __always_inline bool put_note(const u64 *hash, struct note *note, u32 without_question)
{
	bool takes_room = note->noted != NOTED_CANARY;

	if (takes_room && !take_room(note->share, RESOURCE_NOTES, 1))
		return false;
	if (bpf_map_update_elem(MAP(NOTES), (void *)hash, note, BPF_NOEXIST)) {
		if (takes_room)
			give_back(note->share, RESOURCE_NOTES, 1);
		return false;
	}
	add_to_socket(&note->sock, *hash, without_question);
	return true;
}

/* True if the same query still waits. Then the second program handles this one: there is not enough room on the stack
 * of the first. */
static __always_inline bool is_waiting(u64 hash)
{
	return bpf_map_lookup_elem(MAP(NOTES), &hash) != NULL;
}

/* True if the answers to queries over a version of IP are seen. Otherwise, it would mean nothing if none came. */
static __always_inline bool sees_answers(const struct settings *settings, u8 family)
{
	return settings->answers & ANSWERS_SEEN(family & 7);
}

/* Notes a query that was found in the cache of outcomes, and was counted. */
static __always_inline void note_recent(u64 hash, COUNTER *count, const struct count_key *key, u64 sock,
					u32 without_question, bool seen)
{
	struct note note = {
		.time_ns = bpf_ktime_get_ns(),
		.share = count->share,
		.sock = sock,
	};

	__builtin_memcpy(note.counter, key, sizeof(*key));
	if (!seen || !put_note(&hash, &note, without_question))
		__sync_fetch_and_add(&count->results[RESULT_UNTRACKED], 1);
}

/* The event of the query in the scratch space has no id, unless note_query() gives it one. */
static __always_inline void forget_query_id(struct scratch *s)
{
	s->event.query_id = 0;
}

/* Returns a number that tells queries apart, never 0. It is shown to people, so it says nothing about the hashes. */
static __always_inline u64 make_query_id(void)
{
	return (u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32() ?: 1;
}

/* Prepares the note of a canary: which process asked for which name. Nobody reads the other fields. */
static __always_inline void describe_canary(struct scratch *s)
{
	struct pending_key *key = &s->pending_key;

	key->start_ns = s->process.start_ns;
	key->name_hash = s->question.hash;
	key->tgid = s->process.tgid;
}

/* Notes the query in the scratch space, which was counted for s->event.rule, or is a canary. All of it is in the
 * scratch space: there is not enough room on the stack of the programs for TCP. */
static __always_inline void note_query(struct scratch *s, const struct settings *settings)
{
	const u16 *id = (const u16 *)(s->packet + PACKET_FRONT);
	u32 type_class = __builtin_bswap16(s->question.qtype) | __builtin_bswap16(s->question.qclass) << 16;
	struct waiting *waiting = &s->waiting;
	struct note *note = &waiting->note;
	/* FORGET: with a register, the verifier would follow this once for each kind of rule. */
	u32 rule = FORGET(s->event.rule);

	if (rule == UNREAD)
		return;
	note->time_ns = s->event.time_ns;
	note->share = s->share;
	note->query_id = 0;
	note->noted = rule == DECIDE ? NOTED_PENDING : NOTED_COUNT;
	if (rule == CANARY) {
		note->noted = NOTED_CANARY;
		describe_canary(s);
	}
	if (note->noted != NOTED_COUNT)
		__builtin_memcpy(note->counter, &s->pending_key, sizeof(s->pending_key));
	else
		__builtin_memcpy(note->counter, &s->count_key, sizeof(s->count_key));
	/* The answers of multicast come from others than the server. An octet 0 in a label is taken for the root in an
	 * answer. */
	if (rule != CANARY && ((s->to.transport != TRANSPORT_UDP && s->to.transport != TRANSPORT_TCP) ||
			       !s->question.plain || !sees_answers(settings, s->to.family))) {
		count_result(note, RESULT_UNTRACKED);
		return;
	}
	set_asked(&waiting->asked, &s->to, *id);
	waiting->hash = hash_note(s->question.sums, settings, type_class, &waiting->asked, &waiting->without_question);
	note->sock = waiting->asked.sock;
	if (remove_note(&waiting->hash, &waiting->taken, false)) {
		/* Not end_note(): a canary is sent once, and there is no room for its report on the stack. */
		end_query(&waiting->hash, &waiting->taken, RESULT_SUPERSEDED);
		/* Its event gets the result of this one, unless await_result() finds that this one has an event, too.
		 */
		note->query_id = waiting->taken.query_id;
	}
	if (!is_raw(note->sock) && put_note(&waiting->hash, note, waiting->without_question)) {
		if (note->noted != NOTED_CANARY)
			s->event.query_id = make_query_id();
		return;
	}
	/* The result of a canary that finds no room is missing. */
	if (note->noted == NOTED_CANARY)
		return;
	count_result(note, RESULT_UNTRACKED);
	report_result(note, RESULT_UNTRACKED);
}

/* Notes that the event of the query in the scratch space was handed to user space, which waits for the result. */
static __always_inline void await_result(struct scratch *s)
{
	/* FORGET: with a register, the verifier would follow this once for each way through note_query(). */
	u64 query_id = FORGET(s->event.query_id);
	struct note *note;

	if (!query_id)
		return;
	note = bpf_map_lookup_elem(MAP(NOTES), &s->waiting.hash);
	if (!note) {
		/* Another event has taken it, and did not know of this id. */
		count_statistic(STAT_LOST_RESULTS);
		return;
	}
	note->query_id = query_id;
	/* That of the same query before. */
	report_result(&s->waiting.note, RESULT_SUPERSEDED);
}
#else
static __always_inline bool sees_answers(const struct settings *settings, u8 family)
{
	return false;
}

static __always_inline bool is_waiting(u64 hash)
{
	return false;
}

static __always_inline void note_recent(u64 hash, COUNTER *count, const struct count_key *key, u64 sock,
					u32 without_question, bool seen)
{
}

static __always_inline void forget_query_id(struct scratch *s)
{
}

static __always_inline void note_query(struct scratch *s, const struct settings *settings)
{
}

static __always_inline void await_result(struct scratch *s)
{
}
#endif

#endif
