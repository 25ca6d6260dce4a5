/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The programs, one for each hook. HOOK_* selects those for UDP, which call handle_packet(), and STREAM_* those for
 * TCP, which call handle_write(). The programs that follow lineages are always compiled.
 */
#include "kernel_read.h"
#include "scratch.h"
#include "process/lineage.h"
#include "udp/egress.h"
#include "udp/function.h"
#include "tcp/egress.h"
#include "tcp/handler.h"
#ifdef ANSWERS
#include "answers/ingress.h"
#include "answers/socket.h"
#include "answers/stream.h"
#endif

/*
 * A program at a kernel function is attached by fentry or by a kprobe. fentry passes the arguments of the function as
 * an array, as raw tracepoints do; its programs must return 0.
 */
#ifdef ATTACH_FENTRY
#define FUNCTION_CONTEXT struct bpf_raw_tracepoint_args
#define ARGUMENT(ctx, number) ((ctx)->args[(number) - 1])
/* udp_send_skb() has the arguments of the source: fentry never attaches to a clone. */
#define PORT_ARGUMENT(ctx) ARGUMENT(ctx, 2)
#define PORT_IN_FLOW true
#define CORK_ARGUMENT(ctx) ARGUMENT(ctx, 3)
#else
#define FUNCTION_CONTEXT struct pt_regs
#define ARGUMENT(ctx, number) PT_REGS_PARM##number(ctx)
#endif

#ifdef HOOK_IP_SEND_SKB
/* net/ipv4/ip_output.c: int ip_send_skb(struct net *net, struct sk_buff *skb) */
int ip_send_skb_entry(FUNCTION_CONTEXT *ctx)
{
	return handle_packet(ctx, ARGUMENT(ctx, 2), PORT_IN_HEADER, 0, HOOK_IP4);
}

int ip_send_skb_slow(FUNCTION_CONTEXT *ctx)
{
	return handle_packet_slowly(ctx, HOOK_IP4);
}

/* net/ipv6/ip6_output.c: int ip6_send_skb(struct sk_buff *skb) */
int ip6_send_skb_entry(FUNCTION_CONTEXT *ctx)
{
	return handle_packet(ctx, ARGUMENT(ctx, 1), PORT_IN_HEADER, 0, HOOK_IP6);
}

int ip6_send_skb_slow(FUNCTION_CONTEXT *ctx)
{
	return handle_packet_slowly(ctx, HOOK_IP6);
}
#endif

#ifdef HOOK_UDP_SEND_SKB
/* It is not known in which register a clone gets the cork. */
#ifndef CORK_ARGUMENT
#define CORK_ARGUMENT(ctx) 0
#endif

/* Returns the destination port that a function or its clone gets as an argument. PORT_ARGUMENT is the register with the
 * flow (struct flowi4 or flowi6) or with the port itself. */
static __always_inline u16 port_from(u64 argument, u32 flow_offset)
{
	/* The verifier refuses to store a part of a pointer. */
	u16 port = PORT_IN_FLOW ? 0 : argument;

	if (PORT_IN_FLOW && bpf_probe_read_kernel(&port, sizeof(port), (void *)(argument + flow_offset)))
		return 0;
	return __builtin_bswap16(port);
}

/* net/ipv4/udp.c: static int udp_send_skb(struct sk_buff *skb, struct flowi4 *fl4, struct inet_cork *cork) */
int udp_send_skb_entry(FUNCTION_CONTEXT *ctx)
{
	u16 port = port_from(PORT_ARGUMENT(ctx), FLOWI4_DPORT);

	return port ? handle_packet(ctx, ARGUMENT(ctx, 1), port, CORK_ARGUMENT(ctx), HOOK_IP4) : 0;
}

int udp_send_skb_slow(FUNCTION_CONTEXT *ctx)
{
	return handle_packet_slowly(ctx, HOOK_IP4);
}

/* net/ipv6/udp.c: static int udp_v6_send_skb(struct sk_buff *skb, struct flowi6 *fl6, struct inet_cork *cork) */
int udp_v6_send_skb_entry(FUNCTION_CONTEXT *ctx)
{
	u16 port = port_from(PORT_ARGUMENT(ctx), FLOWI6_DPORT);

	return port ? handle_packet(ctx, ARGUMENT(ctx, 1), port, CORK_ARGUMENT(ctx), HOOK_IP6) : 0;
}

int udp_v6_send_skb_slow(FUNCTION_CONTEXT *ctx)
{
	return handle_packet_slowly(ctx, HOOK_IP6);
}
#endif

#ifdef HOOK_EGRESS
/* BPF_CGROUP_RUN_PROG_INET_EGRESS() in net/ipv4/ip_output.c, ip_finish_output(), and net/ipv6/ip6_output.c */
int egress_entry(struct __sk_buff *skb)
{
	return handle_egress(skb);
}

int egress_slow(struct __sk_buff *skb)
{
	return handle_egress_slowly(skb, false);
}

int egress_odd(struct __sk_buff *skb)
{
	return handle_egress_slowly(skb, true);
}

/* The same, for TCP. */
int egress_stream_entry(struct __sk_buff *skb)
{
	return handle_egress_stream(skb);
}

int egress_stream_slow(struct __sk_buff *skb)
{
	return handle_egress_stream_slowly(skb);
}

/* BPF_CGROUP_RUN_PROG_INET_SOCK() in net/ipv4/af_inet.c, inet_create(), and net/ipv6/af_inet6.c. A program that returns
 * 0 keeps the socket from being opened. */
int sock_create_entry(struct bpf_sock *ctx)
{
	note_opener(ctx, PROTOCOL_UDP);
	return 1;
}

/* The same, for TCP. */
int sock_create_stream_entry(struct bpf_sock *ctx)
{
	note_opener(ctx, PROTOCOL_TCP);
	return 1;
}
#endif

#ifdef STREAM_FUNCTION
/*
 * net/ipv4/tcp.c: int tcp_sendmsg_locked(struct sock *sk, struct msghdr *msg, size_t size), or tcp_sendmsg(), which has
 * the same arguments and is called before the socket is locked.
 */
int tcp_sendmsg_entry(FUNCTION_CONTEXT *ctx)
{
	return handle_write(ctx, ARGUMENT(ctx, 1), ARGUMENT(ctx, 2), HOOK_STREAM, 0);
}
#endif

#ifdef STREAM_TRACEPOINT
/*
 * include/trace/events/tcp.h: tcp_sendmsg_locked(const struct sock *sk, const struct msghdr *msg,
 *                                                const struct sk_buff *skb, int size_goal)
 *
 * It is hit once for each part of a write that is copied. `msg` and the sequence number of the socket stand at that
 * part.
 */
int tcp_sendmsg_locked_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_write(ctx, ctx->args[0], ctx->args[1], HOOK_STREAM, 0);
}

#ifdef STREAM_TWICE
/*
 * If programs at tracepoints can be preempted, another thread may take the CPU in the middle of a run. The kernel then
 * skips that thread's runs of the same program (kernel/trace/bpf_trace.c, __bpf_trace_run()), but not those of this
 * second program. It is the same code with another scratch space. If both programs see a write, the second one finds
 * that the first has read it.
 */
int tcp_sendmsg_locked_again_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_write(ctx, ctx->args[0], ctx->args[1], HOOK_STREAM_SECOND, 1);
}
#endif
#endif

#ifdef ANSWERS
/* BPF_CGROUP_RUN_PROG_INET_INGRESS() in net/core/filter.c, sk_filter_trim_cap() */
int ingress_entry(struct __sk_buff *skb)
{
	return handle_ingress(skb);
}

int ingress_slow(struct __sk_buff *skb)
{
	return handle_ingress_slowly(skb);
}

int ingress_odd(struct __sk_buff *skb)
{
	return handle_ingress_stream(skb);
}

/* BPF_CGROUP_RUN_PROG_INET_SOCK_RELEASE() in net/ipv4/af_inet.c, inet_release(). Since Linux 5.9: kernel commit
 * f5836749c9c0 ("bpf: Add BPF_CGROUP_INET_SOCK_RELEASE hook"). */
int sock_release_entry(struct bpf_sock *ctx)
{
	end_socket(ctx);
	return 1;
}

/* include/trace/events/sock.h: inet_sk_error_report(const struct sock *sk). Since Linux 5.14: "net: sock:
 * add tracers for inet socket errors". */
int inet_sk_error_report_entry(struct bpf_raw_tracepoint_args *ctx)
{
	/* fentry passes a pointer, with which the verifier allows no arithmetic. */
	note_error(number_of((void *)ctx->args[0]));
	return 0;
}

/* net/core/sock.c: static void sock_def_error_report(struct sock *sk), in place of the tracepoint */
int sock_def_error_report_entry(struct pt_regs *ctx)
{
	note_error(PT_REGS_PARM1(ctx));
	return 0;
}
#endif

/*
 * include/trace/events/sched.h: sched_process_fork(struct task_struct *parent, struct task_struct *child)
 *
 * It is hit before the child runs, so nothing that the child does is seen earlier.
 */
int sched_process_fork_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return follow_fork(read_u64(ctx->args[0] + TASK_GROUP_LEADER), ctx->args[1]);
}

/*
 * include/trace/events/task.h: task_rename(struct task_struct *task, const char *comm)
 *
 * It is hit by execve(2) and prctl(2), while the task still has its old name.
 */
int task_rename_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return follow_rename(ctx->args[0], ctx->args[1]);
}

/* include/trace/events/sched.h: sched_process_exit(struct task_struct *p), for each thread */
int sched_process_exit_entry(struct bpf_raw_tracepoint_args *ctx)
{
	return follow_exit(ctx->args[0]);
}

/* BCC turns this into the license section, letter by letter. */
/* clang-format off */
#define BPF_LICENSE Dual MIT/GPL
/* clang-format on */
