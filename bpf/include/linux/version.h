/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's helpers compare versions. No code of dnsprobe depends on the version, so any that has all helpers
 * will do.
 */
#ifndef DNSPROBE_VERSION_H
#define DNSPROBE_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)

#endif
