/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the kernel keeps with a socket, and frees with it. Its memory counts for the control group of dnsprobe, and
 * anyone can open sockets: so user space says once a second how much more may be made.
 */
#ifndef DNSPROBE_SOCKET_STORAGE_H
#define DNSPROBE_SOCKET_STORAGE_H

#include "maps.h"
#include "verifier.h"

/* Returns what a map keeps with a socket, NULL if it keeps nothing. */
#define find_storage(map, sock) socket_storage(map, sock, NULL, 0)

static __always_inline s64 *storage_room(void)
{
	u64 first = 0;

	return bpf_map_lookup_elem(MAP(STORAGE_ROOM), &first);
}

/* True if more may be kept. */
static __always_inline bool has_storage_room(const s64 *room)
{
	/* READ_ONCE: runs on other CPUs change it. */
	return room && READ_ONCE(*room) > 0;
}

/* The same as find_storage(), but makes it, all zero, if there is room and the kernel allows it. */
static __always_inline void *make_storage(void *map, const void *sock)
{
	s64 *room;
	void *kept = find_storage(map, sock);

	if (kept)
		return kept;
	room = storage_room();
	if (!has_storage_room(room))
		return NULL;
	kept = socket_storage(map, sock, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (kept && room)
		__sync_fetch_and_add(room, -1);
	return kept;
}

#endif
