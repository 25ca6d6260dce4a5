/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The octets of a write: the program's buffers, as struct iov_iter of include/linux/uio.h describes them.
 */
#ifndef DNSPROBE_TCP_IOV_H
#define DNSPROBE_TCP_IOV_H

#include "kernel_read.h"
#include "verifier.h"
#include "scratch.h"

/* Buffers of one write that are read. */
#define MAX_IOVECS 64

struct write {
	u32 sequence; /* of its first octet */
	u32 type;     /* enum iter_type */
	u64 size;
	u64 offset; /* of its first octet in its first buffer */
	u64 data;   /* address of the iovecs, or of the only buffer (ITER_UBUF) */
	u64 iovecs;
};

/* struct iovec of include/uapi/linux/uio.h; struct kvec has the same layout. */
struct iovec {
	u64 base;
	u64 length;
};

static __always_inline void read_write(struct write *write, u64 message)
{
	u64 iterator = message + MSG_ITER;

	write->type = ITER_KIND(read_u32(iterator + ITER_TYPE));
	write->size = read_u64(iterator + ITER_COUNT);
	write->offset = read_u64(iterator + ITER_OFFSET);
	write->data = read_u64(iterator + ITER_DATA);
	write->iovecs = read_u64(iterator + ITER_NR_SEGS);
	if (write->type == ITER_UBUF)
		write->iovecs = 1;
}

static __always_inline bool read_iovec(struct iovec *iovec, const struct write *write, u32 index)
{
	if (write->type == ITER_UBUF) {
		iovec->base = write->data;
		iovec->length = write->offset + write->size;
		return true;
	}
	return (write->type == ITER_IOVEC || write->type == ITER_KVEC) &&
	       READ(*iovec, write->data + index * (u32)sizeof(*iovec)) == 0;
}

/*
 * Copies s->size octets of a write into s->packet: from `skip` octets behind the start of the write, to `at_octet`
 * octets behind STREAM_FRONT. False if they cannot be read.
 */
static __always_inline bool copy_from_write(struct scratch *s, const struct write *write, u64 skip, u32 at_octet)
{
	u64 at = write->offset + skip;
	struct iovec iovec;

	s->copied = 0;
	for (u32 i = 0; i < MAX_IOVECS; i++) {
		/* FORGET, here and below: with a register, the verifier would track another sum of sizes after each
		 * round. */
		u64 done = FORGET(s->copied);
		u64 size = FORGET(s->size);

		if (done >= size || i >= write->iovecs || !read_iovec(&iovec, write, i))
			break;
		if (at >= iovec.length) {
			at -= iovec.length;
			continue;
		}

		u64 part = iovec.length - at;
		u64 to = at_octet + done;

		if (part > size - done)
			part = size - done;
		/* Both are differences and sums of values from maps, so the verifier knows no bound. */
		KEEP_BELOW_512(to);
		KEEP_BELOW_512(part);
		void *octets = s->packet + STREAM_FRONT + to;
		/* read_user(), except for the buffers of a kernel thread (ITER_KVEC). */
		void *from = (void *)(iovec.base + at);
		long failed = write->type == ITER_KVEC ? bpf_probe_read_kernel(octets, part, from)
						       : read_user(octets, part, from);

		if (failed)
			break;
		s->copied = done + part;
		at = 0;
	}
	return FORGET(s->copied) == FORGET(s->size);
}

#endif
