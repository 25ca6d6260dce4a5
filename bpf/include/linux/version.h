/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's helpers compare versions. Nothing of dnsprobe depends on one, so any version that has all helpers
 * does.
 */
#ifndef DNSPROBE_VERSION_H
#define DNSPROBE_VERSION_H

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)

#endif
