/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Stand-in: BCC's ring buffer macro names the size of a page.
 */
#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
