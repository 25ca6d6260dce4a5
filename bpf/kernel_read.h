/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Reads of kernel memory. User space takes the offset of each member from the kernel's BTF and passes it as a macro,
 * such as TASK_TGID (dnsprobe/kernel/layout.py). A read that fails gives 0.
 */
#ifndef DNSPROBE_KERNEL_READ_H
#define DNSPROBE_KERNEL_READ_H

#include <linux/types.h>

/* The offset of a member that this kernel does not have. */
#define NOT_THERE 0xffffffffU
#define IS_THERE(member) ((member) != NOT_THERE)

/*
 * BCC defines bpf_probe_read_kernel() as bpf_probe_read(), unless it finds the address of the helper in /proc/kallsyms,
 * which may be hidden. Programs at control groups may not call bpf_probe_read(). BCC does not know these names.
 */
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static long (*read_kernel_str)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_kernel_str;
#undef bpf_probe_read_kernel
#undef bpf_probe_read_kernel_str
#define bpf_probe_read_kernel read_kernel
#define bpf_probe_read_kernel_str read_kernel_str

/* Reads as much as the destination takes; returns 0 on success. */
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

/*
 * The part of struct sk_buff from `protocol` to `data`, which has the offsets of the headers and the address of the
 * buffer. One read of all costs less than a read for each member.
 */
#define SKB_SPAN (SKB_DATA + 8 - SKB_PROTOCOL)

struct skb_span {
	u8 bytes[SKB_SPAN];
} __attribute__((aligned(8)));

#define SPAN_U16(span, member) (*(u16 *)&(span).bytes[(member) - SKB_PROTOCOL])
#define SPAN_U32(span, member) (*(u32 *)&(span).bytes[(member) - SKB_PROTOCOL])
#define SPAN_U64(span, member)                                                                                         \
	({                                                                                                             \
		u64 value_;                                                                                            \
		__builtin_memcpy(&value_, &(span).bytes[(member) - SKB_PROTOCOL], 8);                                  \
		value_;                                                                                                \
	})

#endif
