/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's helpers include <uapi/linux/if_packet.h>; nothing in it is used.
 */
