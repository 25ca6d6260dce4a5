/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's copy of bpf.h includes this file for the instruction classes of classic BPF, which no program here
 * names.
 */
