/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC includes this file before all others. The real one brings in the configuration of a built kernel;
 * dnsprobe asks BTF instead, and BCC needs one of its symbols.
 */
#ifndef DNSPROBE_KCONFIG_H
#define DNSPROBE_KCONFIG_H

#define CONFIG_BPF_SYSCALL 1

#endif
