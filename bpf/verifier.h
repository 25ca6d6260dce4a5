/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Help for the kernel's verifier. Before the kernel loads a program, the verifier follows each path through it. It
 * refuses the program if that takes too many steps, or if it cannot prove that each access to memory is in bounds. Each
 * use of these macros says why it is needed there.
 *
 * Three habits need no macro:
 *
 * - A loop has a constant bound, and leaves early.
 * - A large part, such as the walk over the ancestors, has one caller only. Everything is inlined, so each further call
 *   would be a copy that the verifier follows as well. Code that needs the part sets a flag in the scratch space.
 * - An array has room for an offset and a size that are as large as their masks admit (PACKET_SIZE), so that the masks
 *   alone prove an access to be in bounds.
 */
#ifndef DNSPROBE_VERIFIER_H
#define DNSPROBE_VERIFIER_H

#include <linux/types.h>

/* Reads a value that another CPU may change, once and at this place. */
#define READ_ONCE(value)                                                                                               \
	({                                                                                                             \
		typeof(value) *where_ = &(value);                                                                      \
		*(volatile typeof(value) *)where_;                                                                     \
	})

/*
 * Reads a value from a map again, although a register may hold it. The verifier tracks the value of a register, such as
 * the number of labels at each exit of a loop, or the constant that one branch sets. It follows the code behind once
 * for each such value ("BPF program is too large. Processed 1000001 insn"). It does not track the content of a map, so
 * after this read all those paths are one. Loops therefore keep their result in the scratch space.
 */
#define FORGET(value) READ_ONCE(value)

/*
 * Bounds an index or a size by a mask. Written in C, the mask is dropped if the compiler can prove from an earlier
 * comparison that it changes nothing. The verifier often cannot: it forgets how two registers are related, and the
 * compiler may compare one register and use a copy in another. Then it complains of "unbounded memory access" or "max
 * value is outside of the allowed memory range".
 */
#define KEEP_BELOW_16(value) asm volatile("%0 &= 15" : "+r"(value))
#define KEEP_BELOW_64(value) asm volatile("%0 &= 63" : "+r"(value))
#define KEEP_BELOW_128(value) asm volatile("%0 &= 127" : "+r"(value))
#define KEEP_BELOW_256(value) asm volatile("%0 &= 255" : "+r"(value))
#define KEEP_BELOW_512(value) asm volatile("%0 &= 511" : "+r"(value))
#define KEEP_BELOW_1024(value) asm volatile("%0 &= 1023" : "+r"(value))
#define KEEP_BELOW_32768(value) asm volatile("%0 &= 32767" : "+r"(value))

/* Hides from the compiler what a register holds, so that it does not replace masks by branches, or use what it has
 * computed from it before. */
#define HIDE(value) asm volatile("" : "+r"(value))

/*
 * Reads and writes a member of the context. Written in C, the compiler may compute the address of the member once for
 * both: "dereference of modified ctx ptr".
 */
#define LOAD_CONTEXT(value, context, member)                                                                           \
	asm volatile("%0 = *(u32 *)(%1 + %2)"                                                                          \
		     : "=r"(value)                                                                                     \
		     : "r"(context), "i"(__builtin_offsetof(typeof(*(context)), member)))
#define STORE_CONTEXT(context, member, value)                                                                          \
	asm volatile("*(u32 *)(%0 + %1) = %2"                                                                          \
		     :                                                                                                 \
		     : "r"(context), "i"(__builtin_offsetof(typeof(*(context)), member)), "r"(value)                   \
		     : "memory")

/*
 * The helper bpf_probe_read_user(). BCC replaces a call by that name with bpf_probe_read(), unless it finds the helper
 * in /proc/kallsyms.
 */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;

/*
 * The helper bpf_tail_call(): starts the program at `index` of an array of programs in place of this one, and returns
 * only if there is none or after MAX_TAIL_CALL_CNT calls. A loop around a whole program would be too large: the
 * verifier counts each round, but it follows a program that calls itself only once. BCC offers this helper only as a
 * method of its own tables.
 */
static void (*tail_call)(void *ctx, void *map, u32 index) = (void *)BPF_FUNC_tail_call;

/* The helpers bpf_map_pop_elem() and bpf_map_push_elem(). BCC offers them only as methods of its own tables. */
static long (*map_pop)(void *map, void *value) = (void *)BPF_FUNC_map_pop_elem;
static long (*map_push)(void *map, const void *value, u64 flags) = (void *)BPF_FUNC_map_push_elem;

/* The helper bpf_sk_storage_get(), which BCC offers only as a method of its own tables. */
static void *(*socket_storage)(void *map, const void *sock, void *value, u64 flags) = (void *)BPF_FUNC_sk_storage_get;
#define BPF_SK_STORAGE_GET_F_CREATE 1 /* include/uapi/linux/bpf.h */

#endif
