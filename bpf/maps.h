/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The maps and what is read from the kernel's memory. User space makes the maps and gives their descriptors as MAP_*,
 * so that they outlive a program and can be sized by configuration.
 */
#ifndef DNSPROBE_MAPS_H
#define DNSPROBE_MAPS_H

#include <linux/types.h>

#include "abi.h"

#define EEXIST 17

/* What is not the same at each start, and is put in as the program is loaded (dnsprobe/kernel/program.py): the
 * descriptor of a map, whose number is known here, and the port of the canaries. */
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_##name))
#define CANARY_PORT bpf_pseudo_fd(CANARY_MARK, 0)

/* A label can hold any octet, so what stands in front of a name must be readable too: reversing goes by eight octets.
 */
#define PACKET_FRONT 16
/* Twice what a mask leaves of an offset and a size. */
#define PACKET_SIZE 1024

/* Where a query goes. */
struct destination {
	u64 skb;  /* the packet, or 0 */
	u64 sock; /* 0: that of the packet */
	u16 port; /* in host byte order */
	u8 family;
	u8 transport;
	u8 server[16];
	u8 pad[4];
};

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

/* Work space of one run: more than a BPF stack holds. One a CPU and kind of hook, since one kind can interrupt another.
 */
struct scratch {
	u8 packet[PACKET_FRONT + PACKET_SIZE];
	u8 label_offset[128];
	struct lpm_key key;
	u32 pad;
	struct question question;
	struct name name;
	struct event event;
	struct identity identity;
	struct stream stream;
	u32 copied;   /* octets of a stream that were read in this run */
	u32 size;     /* octets to read, then those of the message that are here */
	u32 length;   /* that the message says it has */
	u32 progress; /* how the message that was read goes on: enum progress */
	u32 more;     /* another one follows */
	struct destination to;
	struct process_key process;
	u64 leader;  /* its task */
	u32 counted; /* for the first time: its tree is to be kept */
	u32 tell;    /* an event is to be submitted */
	u32 fresh;   /* none like it is remembered */
	u64 last_skb;
	u64 last_sock;
	u64 first_device;
	u64 last_ports_id;
	u64 last_server[2];
};

static __always_inline struct scratch *scratch(u32 hook_kind)
{
	return bpf_map_lookup_elem(MAP(SCRATCH), &hook_kind);
}

static __always_inline struct settings *settings(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(MAP(SETTINGS), &zero);
}

static __always_inline void count_statistic(u32 which)
{
	u64 *value = bpf_map_lookup_elem(MAP(STATISTICS), &which);

	if (value)
		*value += 1;
}

#define READ(destination, address) bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)(address))

static __always_inline u64 read_u64(u64 address)
{
	u64 value = 0;

	READ(value, address);
	return value;
}

static __always_inline u32 read_u32(u64 address)
{
	u32 value = 0;

	READ(value, address);
	return value;
}

#endif
