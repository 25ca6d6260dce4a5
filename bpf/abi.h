/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the BPF programs and user space share: sizes, numbers and structs. dnsprobe/kernel/abi.py mirrors this file, and
 * a test compares the two. Integers are in host byte order and times in nanoseconds, unless a field says otherwise.
 */
#ifndef DNSPROBE_ABI_H
#define DNSPROBE_ABI_H

#include <linux/types.h>

/* RFC 1035, section 2.3.4: a name has at most 255 octets, so at most 127 labels and the root. */
#define NAME_SIZE 256
#define COMM_SIZE 16
/* The process that asks and 39 ancestors. A deeper chain is cut off (struct chain, `cut`). */
#define CHAIN_SIZE 40
/* Processes of the lineage that are not in the chain of parents. */
#define LINEAGE_SIZE 23
#define CHAIN_ROOM 64 /* CHAIN_SIZE + LINEAGE_SIZE, rounded up to a power of two */
/* Octets of a path and of a command line that are kept. */
#define PATH_SIZE 512
#define CMDLINE_SIZE 512

/* The outcome of a name, in place of the id of a rule. */
#define NO_RULE 0U
#define CANARY 0xfffffffeU /* the name of the canaries: test queries that dnsprobe sends */
#define DECIDE 0xffffffffU /* user space decides by the whole name */
/* The ids of rules are below this. Each has a slot in the overflow array. */
#define RULE_IDS 65536
/* The rule in a counter of connections whose queries cannot be read, and in one of names that took user space too long
 * to decide. Their slots of the overflow array follow those of the rules. */
#define ENCRYPTED RULE_IDS
#define OVER_LIMIT (RULE_IDS + 1)
/* The same for messages that are not read as a query. In place of the type, the counter has the reason: a slot of the
 * statistics array. */
#define UNREAD (RULE_IDS + 2)
#define OVERFLOW_SLOTS (RULE_IDS + 3)

/* The type of a query in its counter, if the type has no name: anyone can ask for 65,536 types. IANA reserves it. */
#define OTHER_QTYPE 65535

/*
 * Who takes room in the maps and in the ring of events: a user, or a control group of root. Each may have only so much
 * that others find room as well (process/share.h).
 */
#define SHARE_OF_NOBODY 0ULL	     /* it is not known who asks, or user space has made the entry */
#define SHARE_OF_OTHERS 1ULL	     /* those that have no entry in MAP(SHARES), together */
#define SHARE_OF_USER (1ULL << 32)   /* below it, the uid */
#define SHARE_OF_CGROUP (1ULL << 62) /* below it, the id of the control group in the unified hierarchy */
#define SHARES 4096

/* What is shared. Its unit is an entry of a map, or an octet of the ring of events. */
enum resource {
	RESOURCE_COUNTERS = 0, /* MAP(COUNTS) */
	RESOURCE_NAMES,	       /* MAP(NAMES) */
	RESOURCE_PENDING,      /* MAP(PENDING) */
	RESOURCE_PROCESSES,    /* MAP(PROCESSES) */
	RESOURCE_IDENTITIES,   /* MAP(IDENTITIES) */
	RESOURCE_LINEAGE,      /* MAP(LINEAGE) */
	RESOURCE_EVENTS,       /* MAP(EVENTS) */
	RESOURCE_NOTES,	       /* MAP(NOTES) */
	RESOURCE_SERVERS,      /* MAP(SERVERS) */
	RESOURCES,
};

/* The transport of a query. mDNS, LLMNR and DoT are recognized by their port. */
enum transport {
	TRANSPORT_UDP = 0,
	TRANSPORT_TCP,
	TRANSPORT_MDNS,	 /* RFC 6762 */
	TRANSPORT_LLMNR, /* RFC 4795 */
	TRANSPORT_DOT,	 /* RFC 7858 */
};

/* In a counter, this bit of the transport is set if the server is on this host. */
#define TO_LOCAL 0x80

/* Words of the key of hash_name(), hash_query() and hash_note(): two for each eight octets of the longest name, and the
 * rest. */
#define HASH_KEYS 78

enum kind {
	KIND_QUERY = 0,
	KIND_UNDECIDED = 1, /* user space decides by the whole name whether a rule matches */
	KIND_CANARY = 2,
	KIND_UNREAD = 3, /* a message that is not read as a query: event.qtype is the reason, and there is no name */
	KIND_ENDED = 4,	 /* what became of a query that had an event: a struct ended */
};

/* Slots of the statistics array: how often each happened since the programs were loaded. */
enum statistic {
	STAT_EVENTS = 0, /* events handed to user space */
	STAT_LOST_RING_FULL,
	STAT_UNATTRIBUTED_COUNTERS_FULL,
	STAT_UNATTRIBUTED_PROCESSES_FULL,
	STAT_UNDECIDED_NAMES_FULL, /* queries that a rule may match, not counted: no room for their name */
	STAT_UNPARSED_MALFORMED,
	STAT_UNPARSED_NONLINEAR, /* the question is not in the linear part of the packet */
	STAT_UNPARSED_SEGMENTED, /* datagrams in a send of several (UDP_SEGMENT) that are not read */
	STAT_COUNTERS_ADDED,	 /* entries made in the counter maps */
	STAT_NAMES_ADDED,
	STAT_IDENTITIES_FULL,	  /* identities that could not be kept: no room */
	STAT_UNPARSED_QUESTIONS,  /* messages with questions that are not read (mDNS) */
	STAT_UNPARSED_UNREADABLE, /* a write to a stream cannot be read: not in memory, or in too many buffers */
	STAT_UNPARSED_UNALIGNED,  /* it is not known where in the stream a message begins */
	STAT_UNPARSED_PIPELINED,  /* one write has more messages than can be read */
	STAT_LINEAGE_ADDED,	  /* entries made in the lineage map */
	STAT_LINEAGE_LEFT,	  /* entries kept after the process ended, for its children */
	STAT_LINEAGE_FULL,	  /* processes without an entry in the lineage map: no room */
	STAT_PARTS_LEFT,	  /* packets that a hook at a function left to the hook at egress */
	STAT_PARTS_TAKEN,	  /* such packets that the hook at egress has handled */
	STAT_LOST_SEGMENTED,	  /* events of datagrams in a packet with too many for an event each */
	STAT_UNPARSED_BUSY,	  /* no scratch space for the hook at egress was free, or the second program is gone */
	/* Messages to a watched port that are not standard queries, by the reason why they are none. */
	STAT_OTHER_NOTIFY,	   /* RFC 1996 */
	STAT_OTHER_UPDATE,	   /* RFC 2136 */
	STAT_OTHER_DSO,		   /* RFC 8490 */
	STAT_OTHER_OPCODE,	   /* any other OPCODE */
	STAT_OTHER_NO_QUESTION,	   /* QDCOUNT 0 */
	STAT_OTHER_QUESTIONS,	   /* QDCOUNT above 1, except over mDNS */
	STAT_UNATTRIBUTED_SENT_ON, /* queries that another task sent on, whose asker is not known */
	STAT_OTHER_RESPONSE,	   /* QR 1 */
	STAT_SERVERS_FULL,	   /* queries that are counted without their server: no room for it */
	STAT_LOST_RESULTS,	   /* results of queries that had an event: no room in the ring */
	STATISTICS,
};

/* What became of a counted query, beside "it still waits": the slots of struct count. The first ones are the numbers of
 * RFC 1035, section 4.1.1. */
enum result {
	RESULT_NOERROR = 0, /* with an answer */
	RESULT_FORMERR,
	RESULT_SERVFAIL,
	RESULT_NXDOMAIN,
	RESULT_NOTIMP,
	RESULT_REFUSED,
	RESULT_OTHER_RCODE,
	RESULT_BADVERS,	    /* RFC 6891, section 9 */
	RESULT_BADCOOKIE,   /* RFC 7873, section 8 */
	RESULT_NODATA,	    /* NOERROR without an answer: RFC 2308, section 2.2; the last one of an answer */
	RESULT_TIMEOUT,	    /* only user space counts it */
	RESULT_CLOSED,	    /* the socket was closed before an answer came */
	RESULT_UNREACHABLE, /* an error came back (ICMP) */
	RESULT_SUPERSEDED,  /* the same query was sent again */
	RESULT_UNTRACKED,   /* there was no room for a note, or its answer cannot be recognized */
	RESULTS,
};
#define RESULT_ROOM 16 /* RESULTS, rounded up to a power of two */

/* Answers that fit no note: slots of MAP(UNMATCHED). */
enum unmatched {
	UNMATCHED_LATE = 0,    /* its query was given up before */
	UNMATCHED_DUPLICATE,   /* its query has had an answer */
	UNMATCHED_UNSOLICITED, /* no such query was seen, although a rule matches its name */
	UNMATCHED_UNREADABLE,  /* its question cannot be read */
	UNMATCHED_FORGED,      /* the same as unsolicited, but the socket waits for another answer */
	UNMATCHED,
};

/* What one user or control group has. Only the kernel side writes it. */
struct share {
	u64 used[RESOURCES];	/* units taken, less those that the kernel side gave back */
	u64 refused[RESOURCES]; /* how often there was no room in the share */
};

/* What user space gave back of a share, in units. Only user space writes it. */
struct returned {
	u64 units[RESOURCES];
};

/* In struct settings, for the version of IP: 4 or 6. */
#define ANSWERS_SEEN(family) (1U << (family))

struct settings {
	u64 repeat_ns;	/* how long repeated queries cause no event; 0: each query causes one */
	u32 generation; /* of the rules: one more after each change */
	u32 seeding;	/* 1 while user space reads the processes in /proc that were there before */
	u32 parts_only; /* 1: the hook at egress handles what the hooks at functions cannot read, and nothing else */
	u32 answers;	/* ANSWERS_SEEN of each version of IP whose answers are seen; queries of others are untracked */
	u64 hash_key[HASH_KEYS]; /* random at each start */
};

/* The outcomes of the longest matching suffix: each is the id of a rule, NO_RULE, CANARY or DECIDE. */
struct outcome {
	u32 at;	   /* if the name is the suffix */
	u32 below; /* if the name is below the suffix */
	u8 length; /* of the suffix in wire format, root included */
	u8 labels; /* of the suffix, root excluded */
	u8 pad[2];
};

struct process_key {
	u64 start_ns; /* since boot: task_struct.start_boottime of the group leader */
	u32 tgid;
	u32 exec; /* for identities: task_struct.self_exec_id, which execve(2) changes; for trees: 0 */
};

/* A counter, and who takes its room. */
struct count {
	u64 queries;
	u64 share;
};

/*
 * The same with what became of the queries. User space copies it from its first octet to its last while runs add to it.
 * So `queries` is behind the results: each of these is of a query that was counted before.
 */
struct tracked_count {
	u64 results[RESULT_ROOM];
	u64 queries;
	u64 share;
};

/* Octets of the largest one of the values that a program adds as zeros: struct share, struct tracked_count, struct
 * noted_socket and struct latencies. */
#define ZEROS_SIZE 144

/* Servers that are told apart at a time, with the macro BY_SERVER. */
#define SERVERS 4096
/* In place of the number of a server: there was no room for it, or it is not known. */
#define OTHER_SERVER 0

/* A server, as the asker gave it: the key of MAP(SERVERS). */
struct server {
	u8 address[16]; /* network byte order; IPv4 in the first four octets */
	u16 port;
	u16 family; /* 4 or 6 */
};

/* The number of a server in counters. Each number is given out once. */
struct numbered_server {
	u64 number;
	u64 share; /* who takes its room */
};

struct count_key {
	u64 start_ns;
	u32 tgid;
	u32 rule;
	u16 qtype;
	u8 transport; /* with TO_LOCAL */
	u8 pad;
	u32 server; /* struct numbered_server; OTHER_SERVER without the macro BY_SERVER */
};

/* A counter whose rule is not decided yet (KIND_UNDECIDED). */
struct pending_key {
	u64 start_ns;
	u64 name_hash;
	u32 tgid;
	u32 generation;
	u16 qtype;
	u8 transport; /* with TO_LOCAL */
	u8 pad;
	u32 server; /* as in struct count_key */
};

/* Octets of the longer one of both keys. */
#define NOTED_KEY_SIZE 32

/* What a note is about. */
enum noted {
	NOTED_COUNT = 0, /* a query with a counter in MAP(COUNTS) */
	NOTED_PENDING,	 /* a query with a counter in MAP(PENDING) */
	NOTED_CANARY,	 /* a canary: it has no counter, and its result goes to MAP(CANARIES) */
};

/* A query that waits for its answer, and its counter. The key of the map is hash_note(). */
struct note {
	u64 time_ns;		    /* CLOCK_MONOTONIC */
	u64 share;		    /* who takes its room */
	u64 sock;		    /* of the query: the key of MAP(SOCKETS) */
	u64 noted;		    /* enum noted */
	u8 counter[NOTED_KEY_SIZE]; /* its key: struct count_key, otherwise struct pending_key */
	u64 query_id;		    /* of the event that waits for its result; 0: none does */
};

/* The notes of canaries. They find room when queries have taken all of theirs. */
#define CANARY_NOTES 256

/* What became of a canary: a record of MAP(CANARIES). */
struct canary_result {
	u64 name_hash;
	u64 start_ns; /* of the process that sent it */
	u32 tgid;
	u32 result; /* enum result */
};

/* The latest notes of a socket, by their keys. A power of two. */
#define SOCKET_NOTES 8

/* Events of a socket that are remembered. */
#define SOCKET_EVENTS 4

/*
 * The notes of a socket, so that its end or an error takes them back. The key of the map is its address. Older notes
 * than the latest ones end in user space, by the first event after them. An event is its time (CLOCK_MONOTONIC), whose
 * lowest two bits are replaced by its result, less RESULT_CLOSED; 0: none. Of events in a row with the same result,
 * only the last one is kept. They may be of several sockets, one after the other at this address.
 */
struct noted_socket {
	u64 notes[SOCKET_NOTES];
	u32 checks[SOCKET_NOTES];  /* of each: its hash without the question, exclusive or the lower half of its key */
	u64 next;		   /* how many notes there were since they were taken back last */
	u64 events[SOCKET_EVENTS]; /* the latest first */
};

/* Buckets of latencies: one for each bound, and one for what is above the last bound. A power of two. */
#define LATENCY_BUCKETS 16

/* The upper bounds of the buckets, ascending and inclusive. Those that are not used are U64_MAX. */
struct latency_bounds {
	u64 ns[LATENCY_BUCKETS];
};

/* Whose answers have such latencies. `name_hash` and `generation` are 0 unless the rule is DECIDE. */
struct latency_key {
	u64 start_ns;
	u64 name_hash;
	u32 tgid;
	u32 rule;
	u32 generation;
	u8 transport;
	u8 pad[3];
};

/* How long answers took. */
struct latencies {
	u64 buckets[LATENCY_BUCKETS];
	u64 sum_ns;
};

/* Notes that were taken back and are remembered. A power of two. */
#define TAKEN_NOTES 8192

/* A query that was asked before. The key of the map is the hash of its process, name, type, class and transport. */
struct seen {
	u64 last_ns; /* CLOCK_MONOTONIC: when it last caused an event */
	u64 repeats;
};

/* Slots of the cache of outcomes. A power of two. */
#define OUTCOMES 8192

/*
 * What became of a query, for the next one that is the same. Runs on other CPUs read and write a slot at the same time,
 * so `check` is the exclusive or of the hash, the value and the generation of the rules: a slot that two runs wrote at
 * once fits no query.
 */
struct cached {
	u64 check;
	u64 value;   /* the rule, or NO_RULE; above it, the time in jiffies until which the query causes no event */
	u64 repeats; /* queries that this slot answered since the last event */
	u64 hash;    /* for the map of queries that were asked before */
};

struct name {
	u32 verdict; /* rule id, NO_RULE or DECIDE */
	u32 generation;
	u32 length;		/* in wire format, root included */
	u8 reversed[NAME_SIZE]; /* lower case, last octet first */
	u32 pad;
	u64 share; /* who takes its room */
};

/* A DNS message over TCP, up to the end of its question: length (RFC 1035, section 4.2.2), header, longest question. */
#define STREAM_SIZE (2 + 12 + 255 + 4)
/* Words of 64 bits by which a repeated write is recognized. */
#define STREAM_HEAD 4

/* The state of a TCP connection at a hook at a function. Sequence numbers are those of RFC 9293, section 3.4, in host
 * byte order. */
struct stream {
	u64 inode;    /* of the socket: tells apart sockets that had the same address in memory */
	u32 first;    /* sequence number of the first octet; until the connection is open, that of the last write */
	u32 start;    /* sequence number of the message that has begun, or comes next */
	u32 buffered; /* octets of that message in `octets` */
	u32 aligned;  /* 0: it is not known where the next message begins */
	u32 lost_at;  /* sequence number of the last write at which the alignment was lost */
	u32 opened;   /* 1: a write has opened the connection; the next write corrects `first` */
	u32 last;     /* sequence number of the last write that began with a message */
	u32 head_size;
	u64 head[STREAM_HEAD]; /* the first octets of that write, head_size of them */
	u8 octets[STREAM_SIZE];
	u8 pad[7];
};

/* The process that opened a socket, which the kernel keeps with the socket. */
struct opener {
	u64 leader; /* its task: where the kernel keeps it, which may hold another one after the process has ended */
	u64 start_ns;
	u32 tgid;
	u32 pad;
};

/* A process of the lineage, by facts that /proc/PID/stat has as well. A pid is not given out twice in one tick. */
struct ancestor_key {
	u64 start_ticks; /* since boot, in units of USER_HZ, rounded down */
	u32 tgid;	 /* 0: none, or not known */
	u32 pad;
};

/* The parent that forked a process, and the state of the process. */
struct ancestor {
	u64 start_ns; /* 0: from /proc, which has only ticks */
	u64 share;    /* who takes its room */
	struct ancestor_key parent;
	u32 children;  /* in the map, with counted_by_parent set */
	u32 exited;    /* not 0: it has ended */
	u8 has_others; /* it had children that are not counted: only user space finds out when all have ended */
	u8 counted_by_parent;
	u8 parent_lost; /* its fork was missed */
	u8 pad[5];
	u8 comm[COMM_SIZE]; /* its latest name */
};

struct process {
	u64 start_ns;
	u32 tgid;
	u32 exited;	    /* 1: a process of the lineage that ended before the query */
	u8 comm[COMM_SIZE]; /* ends at the first NUL: older kernels leave octets behind it */
};

/* The process that asks and its parents, and behind them the rest of its lineage, if that differs. */
struct chain {
	u32 depth;
	u32 cut;	   /* 1: the chain of parents is longer */
	u32 exec;	   /* of the process that asks: see struct process_key */
	u32 shared;	   /* how many of the first processes belong to the lineage, too */
	u32 lineage_depth; /* processes of the lineage behind the first `depth` ones */
	u32 lineage_cut;   /* 1: the lineage is longer, or not known any further */
	u64 share;	   /* of the process that asks */
	struct process process[CHAIN_ROOM];
};

/*
 * A TCP connection at egress, which the kernel keeps with its socket. Anyone can open tens of thousands, so it is
 * small: what few connections need is in other maps. Sequence numbers are those of RFC 9293, section 3.4, in host byte
 * order. `next` counts all octets that the connection has sent, whether they were read or not.
 */
struct connection {
	u32 alignment; /* enum alignment of tcp/egress.h */
	u32 first;     /* sequence number of the first octet */
	u32 next;      /* sequence number of the octet that comes next */
	u32 buffered;  /* octets of the message that has begun in MAP(BEGUN) */
	u32 skip;      /* octets of the message before that are still to come */
	u32 urgent;    /* sequence number of the urgent octet, which servers do not read */
	u32 is_urgent; /* 1: there is one */
	u32 runs;      /* that handled the present segment */
	u64 leader;    /* task of the process that wrote last; the memory may hold another task after its end */
	u64 start_ns;
	u64 share; /* of that process */
	u32 tgid;  /* 0: not known */
	u32 uid;
	u32 gid;
	u32 exec; /* see struct process_key */
	u8 comm[COMM_SIZE];
};

/* The octets of a message that has begun in a TCP connection at egress and is not whole, kept with the socket. */
struct begun {
	u8 octets[STREAM_SIZE];
	u8 pad[7];
};

/* The answers of a TCP connection, kept with its socket. Sequence numbers are those of the server. */
struct answer_stream {
	u32 is_known;	/* 1: the other fields are set */
	u32 is_guess;	/* 1: it is not known whether a message begins at `next` */
	u32 next;	/* sequence number of the next octet that is to be read */
	u32 buffered;	/* octets of the message in front of `next`, which are in MAP(PIECES) */
	u32 is_ahead;	/* 1: octets from `ahead_from` on came before those in front of them, and were read */
	u32 ahead_from; /* as if a message began there */
	u32 ahead_next; /* the octet that comes next behind them */
	u32 pad;
};

/* The names in a path, from its end to the root, each with a NUL behind it. */
struct path {
	u32 length; /* 0: not known */
	u32 whole;  /* 1: up to the root */
	u8 names[PATH_SIZE];
};

/* The facts of a process besides its tree. A number that is not known is 0. */
struct identity {
	u32 loginuid_plus_one; /* of the audit system, in the initial user namespace; 0: not set */
	u32 pid_ns;	       /* inode numbers of namespaces, as in /proc/PID/ns */
	u32 mnt_ns;
	u32 user_ns;
	u32 exe_user_ns; /* that owns the mount namespace of the executable */
	u32 cmdline_length;
	u64 share;	    /* who takes the room of this entry */
	struct path cgroup; /* in the unified hierarchy */
	struct path exe;
	u8 cmdline[CMDLINE_SIZE]; /* the first octets; each argument has a NUL behind it */
};

struct event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u64 name_hash;
	u64 repeats; /* repeated queries without an event since the last event */
	u32 rule;
	u32 generation;
	u32 uid;
	u32 gid;
	u32 net_ns; /* inode number of the network namespace that the query left */
	u16 qtype;
	u16 qclass;
	u16 port;
	u8 kind;
	u8 transport;
	u8 family; /* 4 or 6 */
	u8 length; /* of the name in wire format, root included */
	u8 pad[2];
	u64 query_id;  /* random; 0: its result is not reported */
	u8 server[16]; /* network byte order; IPv4 in the first four */
	u8 reversed[NAME_SIZE];
	struct chain chain; /* only the first chain.depth + chain.lineage_depth processes are submitted */
};

/* Octets of an answer that are handed to user space at most. A power of two. */
#define ANSWER_SIZE 1024

/* What became of a query that had an event. In the ring of events, `kind` tells both apart: it is at the same offset.
 */
struct ended {
	u64 time_ns; /* CLOCK_MONOTONIC: when it became known */
	u64 query_id;
	u64 share;  /* who takes its room in the ring */
	u64 result; /* enum result */
	u8 pad[16];
	u16 size; /* octets of the answer in `message` */
	u8 kind;
	u8 message[ANSWER_SIZE]; /* only the first `size` octets are submitted */
};

#endif
