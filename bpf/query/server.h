/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Which server is asked, in the key of a counter: a number for each address and port. Without the macro BY_SERVER, it
 * is OTHER_SERVER for each.
 */
#ifndef DNSPROBE_QUERY_SERVER_H
#define DNSPROBE_QUERY_SERVER_H

#include "maps.h"
#include "scratch.h"
#include "process/share.h"

#ifdef BY_SERVER
#define TELLS_SERVERS true
#define SERVER_OF(s) ((s)->server.number)

/* Completes the part of `asked` that is a struct server. */
static __always_inline void set_family(struct asked *asked, u8 family)
{
	asked->family = family;
}

/* Sets the number of a server. False if it has none yet: then the second program gives it one. */
static __always_inline bool look_up_server(const struct asked *asked, u32 *number)
{
	const struct numbered_server *known = bpf_map_lookup_elem(MAP(SERVERS), (void *)asked->server);

	if (!known)
		return false;
	*number = known->number;
	return true;
}

/* Gives a server a number. User space has put those that are free into MAP(FREE_SERVERS). False if there is no room, or
 * if another CPU was first. */
static __always_inline bool add_server(struct scratch *s)
{
	struct numbered_server *server = &s->server;

	if (!take_room(s->share, RESOURCE_SERVERS, 1))
		return false;
	server->share = s->share;
	if (map_pop(MAP(FREE_SERVERS), &server->number) == 0) {
		if (bpf_map_update_elem(MAP(SERVERS), &s->asked_server, server, BPF_NOEXIST) == 0)
			return true;
		map_push(MAP(FREE_SERVERS), &server->number, 0);
	}
	give_back(s->share, RESOURCE_SERVERS, 1);
	return false;
}

/* Sets SERVER_OF(s) to the number of the server in s->to. */
static __always_inline void number_server(struct scratch *s)
{
	struct server *server;
	const struct numbered_server *known;

	/* As in handle_segment_message(). */
	HIDE(s);
	server = &s->asked_server;
	__builtin_memcpy(server->address, s->to.server, sizeof(server->address));
	server->port = s->to.port;
	server->family = s->to.family;
	known = bpf_map_lookup_elem(MAP(SERVERS), server);
	if (!known && !add_server(s)) {
		known = bpf_map_lookup_elem(MAP(SERVERS), server);
		if (!known) {
			s->server.number = OTHER_SERVER;
			count_statistic(STAT_SERVERS_FULL);
		}
	}
	if (known)
		s->server.number = known->number;
	HIDE(s);
}
#else
#define TELLS_SERVERS false
#define SERVER_OF(s) OTHER_SERVER

static __always_inline void set_family(struct asked *asked, u8 family)
{
}

static __always_inline bool look_up_server(const struct asked *asked, u32 *number)
{
	*number = OTHER_SERVER;
	return true;
}

static __always_inline void number_server(struct scratch *s)
{
}
#endif

#endif
