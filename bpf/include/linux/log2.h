/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's helpers include <linux/log2.h>; nothing in it is used.
 */
