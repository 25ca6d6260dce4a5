/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC includes this file before all others. The real one has the configuration of a built kernel. dnsprobe
 * reads BTF instead, and BCC needs one symbol.
 */
#ifndef DNSPROBE_KCONFIG_H
#define DNSPROBE_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

#endif
