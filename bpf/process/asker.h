/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Who asks, for a hook behind the firewall: there, the current task may be a firewall in user space that sends on the
 * packet of another.
 */
#ifndef DNSPROBE_PROCESS_ASKER_H
#define DNSPROBE_PROCESS_ASKER_H

#include "kernel_read.h"
#include "maps.h"
#include "route.h"
#include "socket_storage.h"
#include "verifier.h"
#include "process/current.h"

/*
 * The address of the packet (struct sk_buff), from the context of a program (struct __sk_buff). The kernel gives the
 * program the address itself as its context. Since Linux 6.2, it has a function that returns it with its type, so that
 * members are loaded without a call: kernel commit fd264ca02094 ("bpf: Add a kfunc to type cast from bpf uapi ctx to
 * kernel ctx"). The compiler takes its BTF id for the number of a helper; dnsprobe/kernel/program.py corrects this.
 */
#ifdef CAST_TO_KERNEL
static u64 (*kernel_packet)(const struct __sk_buff *ctx) = (void *)CAST_TO_KERNEL;
static u64 (*kernel_sock)(const struct bpf_sock *ctx) = (void *)CAST_TO_KERNEL;
#define PACKET_U64(packet, member) (*(u64 *)((packet) + (member)))
#else
#define kernel_packet(ctx) ((u64)(ctx))
#define kernel_sock(ctx) ((u64)(ctx))
#define PACKET_U64(packet, member) read_u64((packet) + (member))
#endif

/* include/net/flow.h: each network namespace has loopback under this index. */
#define LOOPBACK_IFINDEX 1
/* include/linux/netdevice.h: the device of a VRF (IFF_L3MDEV_MASTER) */
#define L3MDEV_MASTER (1U << 18)

/* False if a packet behind the firewall clearly does not go to this host: the kernel routes what does over loopback or
 * over the device of a VRF (net/ipv4/route.c, ip_route_output_key_hash_rcu(), and net/ipv6/route.c,
 * ip6_rt_get_dev_rcu()). Loads of members cost less than a call that reads the flags of the route. */
static __always_inline bool may_be_local(const struct __sk_buff *ctx, u64 packet)
{
#ifdef CAST_TO_KERNEL
	if (!IS_THERE(SKB_DEVICE) || !IS_THERE(DEVICE_PRIVATE_FLAGS) || ctx->ifindex == LOOPBACK_IFINDEX)
		return true;
	return *(u32 *)(*(u64 *)(packet + SKB_DEVICE) + DEVICE_PRIVATE_FLAGS) & L3MDEV_MASTER;
#else
	return true;
#endif
}

/* Returns TO_LOCAL if a packet behind the firewall goes to this host, otherwise 0. NAT has changed its route. */
static __always_inline u8 local_by_packet(const struct __sk_buff *ctx, u64 packet, u8 family)
{
	return may_be_local(ctx, packet) ? local_by_route(PACKET_U64(packet, SKB_ROUTE) & ROUTE_MASK, family) : 0;
}

/* include/uapi/linux/netfilter.h: enum nf_inet_hooks */
#define NF_INET_LOCAL_OUT 3
#define NF_INET_POST_ROUTING 4
/* include/linux/sched.h */
#define PF_IO_WORKER 0x00000010

/* True if the network namespace of a socket may hold back packets: if it has rules at LOCAL_OUT or POST_ROUTING. */
static __always_inline bool has_firewall(u64 sock, u8 family)
{
	if (!IS_THERE(NET_HOOKS_IPV4) || !IS_THERE(NET_HOOKS_IPV6))
		return true;

	u64 net = PACKET_U64(sock, SOCK_NET);

#ifndef CAST_TO_KERNEL
	u64 hooks[2]; /* at NF_INET_LOCAL_OUT and, behind it, at NF_INET_POST_ROUTING */

	return READ(hooks, net + (family == 4 ? NET_HOOKS_IPV4 : NET_HOOKS_IPV6) + NF_INET_LOCAL_OUT * 8) || hooks[0] ||
	       hooks[1];
#endif
	if (family == 4)
		return PACKET_U64(net, NET_HOOKS_IPV4 + NF_INET_LOCAL_OUT * 8) ||
		       PACKET_U64(net, NET_HOOKS_IPV4 + NF_INET_POST_ROUTING * 8);
	return PACKET_U64(net, NET_HOOKS_IPV6 + NF_INET_LOCAL_OUT * 8) ||
	       PACKET_U64(net, NET_HOOKS_IPV6 + NF_INET_POST_ROUTING * 8);
}

/* File descriptors that one read takes, and how often that is repeated at most. */
#define FILES_AT_ONCE 16
#define FILE_BLOCKS 128

/* Not 0 if one of the files is `file`. It has no branches: the verifier would follow each. */
static __always_inline u64 is_among(const u64 *files, u64 file)
{
	u64 found = 0;

#pragma unroll
	for (u32 i = 0; i < FILES_AT_ONCE; i++) {
		u64 difference = files[i] ^ file;

		/* The uppermost bit is set only if there is no difference. */
		found |= (difference - 1) & ~difference;
	}
	return found >> 63;
}

/* The open files of a task: the table of their addresses, by descriptor, and its size (struct fdtable). */
struct open_files {
	u64 table;
	u32 size;
	u32 next; /* the lowest descriptor that may be free */
};

static __always_inline void read_open_files(struct open_files *open, u64 files)
{
	u64 table = read_u64(files + FILES_FDT);

	open->table = read_u64(table + FDTABLE_FD);
	open->size = read_u32(table + FDTABLE_MAX_FDS);
	open->next = read_u32(files + FILES_NEXT_FD);
}

/*
 * True if `at` is below the size. The compiler must not compare the size itself: at each exit of a loop, the verifier
 * would know another range of it, and follow the code behind once for each.
 */
static __always_inline bool is_below(u64 at, u64 size)
{
	asm volatile("%0 -= %1" : "+r"(at) : "r"(size));
	return (s64)at < 0;
}

static __always_inline bool has_file(const struct open_files *open, u64 file)
{
	u64 block[FILES_AT_ONCE] = {};
	/* A new file gets the lowest descriptor that is free, and the kernel notes the next one. So the socket is most
	 * often found at once. */
	u32 at = open->next > FILES_AT_ONCE ? open->next - FILES_AT_ONCE : 0;

	for (u32 i = 0; i < FILE_BLOCKS; i++) {
		bpf_probe_read_kernel(block, sizeof(block), (void *)(open->table + at * 8));
		if (is_among(block, file))
			return true;
		at = i * FILES_AT_ONCE;
		if (!is_below(at, open->size))
			break;
	}
	return false;
}

/* include/linux/socket.h, include/uapi/linux/netlink.h */
#define FAMILY_NETLINK 16
#define NETLINK_NETFILTER 12
#define DESCRIPTORS_AT_MOST 128

/* Returns the file of a socket. A socket of the kernel has none, nor has one that was closed. */
static __always_inline u64 file_of(u64 sock)
{
	return read_u64(read_u64(sock + SOCK_SOCKET) + SOCKET_FILE);
}

/* True if a socket of netfilter is among the open files: the task may be a firewall. */
static __always_inline bool has_netfilter_socket(const struct open_files *open)
{
	for (u32 i = 0; i < DESCRIPTORS_AT_MOST && is_below(i, open->size); i++) {
		u64 file = read_u64(open->table + i * 8);
		u64 sock = read_u64(read_u64(file + FILE_PRIVATE_DATA) + SOCKET_SK);
		u16 family = read_u32(sock + SOCK_FAMILY_AT);
		u16 protocol = read_u32(sock + SOCK_PROTOCOL);

		/* One condition: the verifier would follow each. What is no socket does not lead back to its file. */
		if (!((file_of(sock) ^ file) | (family ^ FAMILY_NETLINK) | (protocol ^ NETLINK_NETFILTER)))
			return true;
	}
	return false;
}

/*
 * True if it costs little to find out that the current task is the one that asks: if the network namespace has no
 * firewall, or if the socket is among the files that the task opened last. If it is false, is_asker() decides.
 */
static __always_inline bool is_clearly_asker(u64 packet, u8 family)
{
	u64 block[FILES_AT_ONCE] = {};
	u64 task = current_task();
	u64 sock = PACKET_U64(packet, SKB_SK);

	if (!sock || TASK_U32(task, TASK_FLAGS) & PF_KTHREAD)
		return false;
	if (!KNOWS_OPEN_FILES || !has_firewall(sock, family))
		return true;

	u64 files = TASK_U64(task, TASK_FILES);
	u32 next = TASK_U32(files, FILES_NEXT_FD);
	/* Not by TASK_U64(): the verifier of Linux 6.18 allows no arithmetic with an address whose type it knows. */
	u64 table = read_u64(TASK_U64(files, FILES_FDT) + FDTABLE_FD);
	u64 file = file_of(sock);
	u32 first = next > FILES_AT_ONCE ? next - FILES_AT_ONCE : 0;

	return file && !bpf_probe_read_kernel(block, sizeof(block), (void *)(table + first * 8)) &&
	       is_among(block, file);
}

/*
 * True if the current task is the one that asks, and not one that sends on the packet of another. A firewall in user
 * space (NFQUEUE) gets a packet, and later gives its verdict; then the packet goes on in the context of the firewall.
 * It does not have the socket of the asker, so the kernel's list of its open files decides. User ids and names do not.
 */
static __always_inline bool is_asker(u64 packet, u8 family)
{
	u64 task = current_task();
	u64 sock = PACKET_U64(packet, SKB_SK);
	u32 flags = TASK_U32(task, TASK_FLAGS);
	struct open_files open;

	if (!sock || flags & PF_KTHREAD)
		return false;
	if (!KNOWS_OPEN_FILES || !has_firewall(sock, family))
		return true;

	u64 file = file_of(sock);

	if (!file)
		return false;
	read_open_files(&open, TASK_U64(task, TASK_FILES));
	if (has_file(&open, file))
		return true;
	/* It may be one of more files than were compared. Or it is not open in the task, but registered in a ring of
	 * io_uring(7). */
	bool is_doubtful = flags & PF_IO_WORKER || (IS_THERE(TASK_IO_URING) && TASK_U64(task, TASK_IO_URING)) ||
			   !is_below(open.size, (FILE_BLOCKS - 1) * FILES_AT_ONCE + 1);

	return is_doubtful && !has_netfilter_socket(&open);
}

/* True if the current task may be a firewall that sends on the packet of another. */
static __always_inline bool is_firewall(u64 packet, u8 family)
{
	u64 task = current_task();
	u64 sock = PACKET_U64(packet, SKB_SK);
	struct open_files open;

	if (!KNOWS_OPEN_FILES || !sock || TASK_U32(task, TASK_FLAGS) & PF_KTHREAD || !has_firewall(sock, family))
		return false;
	read_open_files(&open, TASK_U64(task, TASK_FILES));
	return has_netfilter_socket(&open);
}

/*
 * Notes who opens a socket for a protocol, for find_asker(). This costs most of the sockets little: they are in a
 * network namespace without a firewall. The note is kept with the socket, so no other socket can push it out. Programs
 * at this place may use the storage of sockets since Linux 5.9: kernel commit f7c6cb1d9728 ("bpf: Expose socket storage
 * to BPF_PROG_TYPE_CGROUP_SOCK").
 */
static __always_inline void note_opener(struct bpf_sock *ctx, u32 protocol)
{
	u64 sock = kernel_sock(ctx);
	struct process_key process;
	struct opener *opener;

	if (ctx->protocol != protocol || (!has_firewall(sock, 4) && !has_firewall(sock, 6)) || is_kernel_thread())
		return;
	opener = make_storage(MAP(OPENERS), ctx);
	if (!opener)
		return;
	opener->leader = current_process(&process);
	opener->start_ns = process.start_ns;
	opener->tgid = process.tgid;
}

/* Tasks that wait for a socket that are looked at, at most. */
#define WAITERS_AT_MOST 8

/*
 * Returns how many references to the file of a socket are held by threads of a process that wait for an answer. The
 * kernel's count of references has them, beside one for each descriptor.
 */
static __always_inline u64 count_waiters(u64 sock, u64 file, u64 leader, u64 files)
{
	u64 list = read_u64(sock + SOCK_WQ) + SOCKET_WQ_WAIT + WAIT_HEAD;
	u64 entry = read_u64(list);
	/* fdget() in fs/file.c takes no reference for a process with one thread. */
	u64 has_threads = read_u32(files + FILES_COUNT) > 1;
	u64 waiters = 0;

	for (u32 i = 0; i < WAITERS_AT_MOST; i++) {
		u64 wait = entry - WAIT_ENTRY;
		u64 owner = read_u64(wait + WAIT_PRIVATE);
		u64 task = owner;
		u64 holds = has_threads;

		if (entry == list)
			break;
		/* poll(2) and select(2) take one, in any case: fs/select.c, __pollwait(). */
		if (read_u64(wait - POLL_WAIT + POLL_FILE) == file) {
			task = read_u64(owner + POLL_TASK);
			holds = 1;
		}
		if (read_u64(task + TASK_GROUP_LEADER) == leader)
			waiters += holds;
		entry = read_u64(entry);
	}
	return waiters;
}

/*
 * Returns the task of the leader of the process that asks, if the current task does not: the one that has opened the
 * socket, if it is the only one that has the socket. Otherwise it is not certain who asks, and the result is 0.
 */
static __always_inline u64 find_asker(struct __sk_buff *ctx, u64 packet, struct process_key *process)
{
	const struct bpf_sock *with_note = ctx->sk;
	struct open_files open;
	struct opener *opener;
	u64 sock = PACKET_U64(packet, SKB_SK);

	if (!with_note || !sock || !KNOWS_OPEN_FILES || !KNOWS_WAITERS)
		return 0;
	opener = find_storage(MAP(OPENERS), with_note);
	if (!opener)
		return 0;

	u64 leader = opener->leader;

	process->start_ns = opener->start_ns;
	process->tgid = opener->tgid;
	process->exec = 0;
	/* The memory may belong to another task by now. */
	if (read_u32(leader + TASK_TGID) != process->tgid ||
	    read_u64(leader + TASK_START_BOOTTIME) != process->start_ns)
		return 0;

	u64 file = file_of(sock);
	u64 files = read_u64(leader + TASK_FILES);

	if (!file || !files)
		return 0;

	u64 others = read_u64(file + FILE_COUNT) - FILE_COUNT_OF_ONE;

	if (others && others != count_waiters(sock, file, leader, files))
		return 0;
	read_open_files(&open, files);
	return has_file(&open, file) ? leader : 0;
}

#endif
