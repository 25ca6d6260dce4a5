/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the kernel side and user space share: sizes, numbers and structs. dnsprobe/kernel/abi.py mirrors this file and a
 * test compares the two. Integers are in host byte order and times in nanoseconds unless a field says otherwise.
 */
#ifndef DNSPROBE_ABI_H
#define DNSPROBE_ABI_H

/* RFC 1035, section 2.3.4: a name has at most 255 octets, so at most 127 labels and the root. */
#define NAME_SIZE 256
#define COMM_SIZE 16
/* The asker and 39 ancestors. Deeper chains are cut off and say so. */
#define CHAIN_SIZE 40
/* Processes of the lineage that are not the same as in the chain of parents. */
#define LINEAGE_SIZE 23
#define CHAIN_ROOM 64 /* CHAIN_SIZE + LINEAGE_SIZE, up to a power of two */
/* Octets that are kept of a path, and of a command line. */
#define PATH_SIZE 512
#define CMDLINE_SIZE 512

/* What a name comes to, instead of a rule's id. */
#define NO_RULE 0U
#define CANARY 0xfffffffeU
#define DECIDE 0xffffffffU
/* Ids of rules are below this: each has a slot in the overflow array. */
#define RULE_IDS 65536
/* Stands in a counter in place of a rule: connections whose queries cannot be read. Its slot is the one behind theirs.
 */
#define ENCRYPTED RULE_IDS

/* How a query goes, where the port says more than the protocol: what the port says. */
enum transport {
	TRANSPORT_UDP = 0,
	TRANSPORT_TCP,
	TRANSPORT_MDNS,	 /* RFC 6762 */
	TRANSPORT_LLMNR, /* RFC 4795 */
	TRANSPORT_DOT,	 /* RFC 7858 */
};

enum kind {
	KIND_QUERY = 0,
	KIND_UNDECIDED = 1, /* user space has to decide by the whole name whether a rule asks for it */
	KIND_CANARY = 2,
};

/* Slots of the statistics array: so many times each, since the programs were loaded. */
enum statistic {
	STAT_EVENTS = 0, /* events handed to user space */
	STAT_LOST_RING_FULL,
	STAT_UNATTRIBUTED_COUNTERS_FULL,
	STAT_UNATTRIBUTED_PROCESSES_FULL,
	STAT_UNDECIDED_NAMES_FULL, /* queries that may be wanted, not counted: no room to remember their name */
	STAT_UNPARSED_MALFORMED,
	STAT_UNPARSED_NONLINEAR, /* the question lies beyond the linear part of the packet */
	STAT_UNPARSED_SEGMENTED, /* one send carries several datagrams (UDP_SEGMENT); only the first is read */
	STAT_COUNTERS_ADDED,	 /* entries made in the counter maps */
	STAT_NAMES_ADDED,
	STAT_IDENTITIES_FULL,	  /* programs of whose process nothing but its tree could be kept */
	STAT_UNPARSED_QUESTIONS,  /* a packet asks more than one question (mDNS); only the first is read */
	STAT_UNPARSED_UNREADABLE, /* what is sent down a stream lies where it cannot be read, or in too many pieces */
	STAT_UNPARSED_UNALIGNED,  /* where in a stream a message begins is not known */
	STAT_UNPARSED_PIPELINED,  /* more messages in one send than one run can read */
	STAT_LINEAGE_ADDED,	  /* processes whose lineage is followed from their fork on */
	STAT_LINEAGE_LEFT,	  /* those that ended and were kept, for their children */
	STAT_LINEAGE_FULL,	  /* processes whose lineage is not followed: no room */
	STATISTICS,
};

struct settings {
	u64 repeat_ns;	 /* how long a query like an earlier one causes no event; 0: each causes one */
	u64 name_key[2]; /* SipHash key, random at each start */
	u32 generation;	 /* of the rules, one more at each change */
	u32 seeding;	 /* 1 while user space reads from /proc who was there before */
};

/* What the longest matching suffix says of a name: rule id, NO_RULE, CANARY or DECIDE. */
struct outcome {
	u32 at;	   /* the name is the suffix */
	u32 below; /* the name is below it */
	u8 length; /* of the suffix in wire format, root included */
	u8 labels; /* of the suffix, root excluded */
	u8 pad[2];
};

struct process_key {
	u64 start_ns; /* since boot: task_struct.start_boottime of the group leader */
	u32 tgid;
	u32 exec; /* of an identity: task_struct.self_exec_id, another one after each execve(2); 0 of a tree */
};

struct count_key {
	u64 start_ns;
	u32 tgid;
	u32 rule;
	u16 qtype;
	u8 transport;
	u8 pad[5];
};

/* A count whose rule is open: see KIND_UNDECIDED. */
struct pending_key {
	u64 start_ns;
	u64 name_hash;
	u32 tgid;
	u32 generation;
	u16 qtype;
	u8 transport;
	u8 pad[5];
};

struct seen_key {
	u64 start_ns;
	u64 name_hash;
	u32 tgid;
	u16 qtype;
	u8 transport;
	u8 pad;
};

struct seen {
	u64 last_ns;
	u64 repeats;
};

struct name {
	u32 verdict; /* rule id, NO_RULE or DECIDE */
	u32 generation;
	u32 length;		/* in wire format, root included */
	u8 reversed[NAME_SIZE]; /* lower case, last octet first */
	u32 pad;
};

/* A DNS message over TCP, up to the end of its question: its length (RFC 1035, section 4.2.2), header, longest
 * question. */
#define STREAM_SIZE (2 + 12 + 255 + 4)
/* Words of 64 bits by which a write is known again. */
#define STREAM_HEAD 4

/* Where a TCP connection is. Sequence numbers are those of RFC 9293, section 3.4, in host byte order. */
struct stream {
	u64 inode;  /* of the socket: tells sockets apart that have the same address */
	u32 first;  /* of its first octet; until it is open, of what was written so far */
	u32 start;  /* of the message that comes next, or has begun */
	u32 have;   /* octets of it that are here */
	u32 known;  /* 0: where the next message begins is not known */
	u32 lost;   /* where it was given up last */
	u32 opened; /* a write has opened it, so that `first` is to be put right by the next one */
	u32 last;   /* of the last write that began with a message */
	u32 head_size;
	u64 head[STREAM_HEAD]; /* the first octets of that write */
	u8 octets[STREAM_SIZE];
	u8 pad[7];
};

/* A packet that was counted while it waits for its neighbour's address. */
struct deferred {
	u64 ports_id;
	u64 since_ns; /* CLOCK_MONOTONIC */
	u32 hook_kind;
	u32 pad;
};

/* A process of the lineage, by what /proc/PID/stat tells as well: a pid does not come round within a tick. */
struct ancestor_key {
	u64 start_ticks; /* since boot, in units of USER_HZ, rounded down */
	u32 tgid;	 /* 0: none, or not known */
	u32 pad;
};

/* Who forked a process, and what becomes of it. */
struct ancestor {
	u64 start_ns; /* 0: taken from /proc, which has ticks alone */
	struct ancestor_key parent;
	u32 children;  /* that are here and have counted_by_parent set */
	u32 exited;    /* not 0: it has */
	u8 has_others; /* it has or had children beside those counted: only user space can tell when all are gone */
	u8 counted_by_parent;
	u8 parent_lost; /* its fork was not seen */
	u8 pad[5];
	u8 comm[COMM_SIZE]; /* the last one that it had */
};

struct process {
	u64 start_ns;
	u32 tgid;
	u32 exited;	    /* 1: before the query; of a lineage's process */
	u8 comm[COMM_SIZE]; /* cut at the first NUL: older kernels leave bytes behind it */
};

/* The asker and its parents, and behind them those who started it, where these are others. */
struct chain {
	u32 depth;
	u32 cut;	   /* 1: the chain goes on beyond what is here */
	u32 exec;	   /* of the asker: which of its identities it had */
	u32 shared;	   /* how many of the first ones are of the lineage, too */
	u32 lineage_depth; /* how many of the lineage come behind the first `depth` */
	u32 lineage_cut;   /* 1: the lineage goes on beyond what is here, or is not known any further */
	struct process process[CHAIN_ROOM];
};

/* The names of a path, from its end to the root, each ended by NUL. */
struct path {
	u32 length; /* 0: not known */
	u32 whole;  /* 1: up to the root */
	u8 names[PATH_SIZE];
};

/* What a process is besides its tree. A number that is not known is 0. */
struct identity {
	u32 loginuid_plus_one; /* of the audit system, in the initial user namespace; 0: not set */
	u32 pid_ns;	       /* inode numbers of namespaces, as in /proc/PID/ns */
	u32 mnt_ns;
	u32 cmdline_length;
	struct path cgroup; /* in the unified hierarchy */
	struct path exe;
	u8 cmdline[CMDLINE_SIZE]; /* arguments ended by NUL, the first octets of all */
};

struct event {
	u64 time_ns; /* CLOCK_MONOTONIC */
	u64 name_hash;
	u64 repeats; /* queries like it without an event since the last one */
	u32 rule;
	u32 generation;
	u32 uid;
	u32 gid;
	u32 net_ns; /* inode number of the network namespace that the query left */
	u32 pad;
	u16 qtype;
	u16 port;
	u8 kind;
	u8 transport;
	u8 family;     /* 4 or 6 */
	u8 length;     /* of the name in wire format, root included */
	u8 server[16]; /* network byte order; IPv4 in the first four */
	u8 reversed[NAME_SIZE];
	struct chain chain; /* only the first chain.depth + chain.lineage_depth processes are handed over */
};

#endif
