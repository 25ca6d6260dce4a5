"""Where the members of kernel structs lie, as macros for the BPF sources.

dnsprobe compiles without kernel headers. Instead, each member that a BPF program reads has a macro, whose value comes
from the kernel's own type information (BTF). The version of the kernel does not matter: a member that was renamed is
looked up by each of its names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dnsprobe.errors import UserError
from dnsprobe.files import read_file
from dnsprobe.kernel import btf as btf_module
from dnsprobe.kernel.btf import MAX_BTF, Btf, read_btf
from dnsprobe.kernel.hooks import CAST_TO_KERNEL, ERROR_FUNCTION, FUNCTIONS
from dnsprobe.kernel.program_cache import ProgramCache, digest

#: The type information of the running kernel. Only the BTF ids in it are those that the kernel takes.
KERNEL_BTF = "/sys/kernel/btf/vmlinux"

# Each member: the macro, the struct, then the names that the member has or had. A name with dots leads through embedded
# structs.

# All hooks need these. Debian's oldest kernel here is 5.10.
_REQUIRED = (
    ("SKB_PROTOCOL", "sk_buff", "protocol"),
    ("SKB_TRANSPORT_HEADER", "sk_buff", "transport_header"),
    ("SKB_NETWORK_HEADER", "sk_buff", "network_header"),
    ("SKB_TAIL", "sk_buff", "tail"),
    ("SKB_END", "sk_buff", "end"),
    ("SKB_HEAD", "sk_buff", "head"),
    ("SKB_DATA", "sk_buff", "data"),
    ("SKB_DATA_LEN", "sk_buff", "data_len"),
    ("SKB_SK", "sk_buff", "sk"),
    ("SKB_ROUTE", "sk_buff", "_skb_refdst"),
    ("SHINFO_GSO_SIZE", "skb_shared_info", "gso_size"),
    ("CORK_GSO_SIZE", "inet_cork", "gso_size"),
    # 16 bits wide since Linux 5.6: kernel commit bf9765145b85 ("sock: Make sk_protocol a 16-bit value").
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("SOCK_NET", "sock", "__sk_common.skc_net.net"),
    ("SOCK_NUM", "sock", "__sk_common.skc_num"),
    ("SOCK_PEER_PORT", "sock", "__sk_common.skc_dport"),
    ("SOCK_ERR", "sock", "sk_err"),
    # 16 bits wide since Linux 5.6, as sk_protocol.
    ("SOCK_TYPE", "sock", "sk_type"),
    ("FLOWI4_DPORT", "flowi4", "uli.ports.dport"),
    ("FLOWI6_DPORT", "flowi6", "uli.ports.dport"),
    ("TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("TASK_REAL_PARENT", "task_struct", "real_parent"),
    ("TASK_TGID", "task_struct", "tgid"),
    # Since Linux 5.5: kernel commit cf25e24db61c ("time: Rename tsk->real_start_time to ->start_boottime").
    ("TASK_START_BOOTTIME", "task_struct", "start_boottime"),
    ("TASK_COMM", "task_struct", "comm"),
    ("TASK_CRED", "task_struct", "cred"),
    ("CRED_UID", "cred", "uid"),
    ("CRED_GID", "cred", "gid"),
    ("TASK_SELF_EXEC_ID", "task_struct", "self_exec_id"),
)

# The errors that came back to a socket, for a program that asks for them. Without a member, it is not known which
# datagram they are about.
_ERRORS = (
    ("SOCK_LAST_ERROR", "sock", "sk_error_queue.prev"),
    ("SKB_CB", "sk_buff", "cb"),
    ("EXTENDED_ERROR_ORIGIN", "sock_exterr_skb", "ee.ee_origin"),
    ("EXTENDED_ERROR_ADDRESS", "sock_exterr_skb", "addr_offset"),
    ("EXTENDED_ERROR_PORT", "sock_exterr_skb", "port"),
)

# Facts about a process beside its tree. A fact whose member is missing stays unknown; queries are counted all the same.
_IDENTITY = (
    ("TASK_CGROUPS", "task_struct", "cgroups"),
    ("CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp"),
    ("CGROUP_KN", "cgroup", "kn"),
    ("KERNFS_NAME", "kernfs_node", "name"),
    # Since Linux 6.15: kernel commit 633488947ef6 ("kernfs: Use RCU to access kernfs_node::parent.").
    ("KERNFS_PARENT", "kernfs_node", "parent", "__parent"),
    ("TASK_MM", "task_struct", "mm"),
    ("MM_ARG_START", "mm_struct", "arg_start"),
    ("MM_ARG_END", "mm_struct", "arg_end"),
    ("MM_EXE_FILE", "mm_struct", "exe_file"),
    ("FILE_PATH_MNT", "file", "f_path.mnt"),
    ("FILE_PATH_DENTRY", "file", "f_path.dentry"),
    ("DENTRY_NAME", "dentry", "d_name.name"),
    ("DENTRY_PARENT", "dentry", "d_parent"),
    ("VFSMOUNT_ROOT", "vfsmount", "mnt_root"),
    ("MOUNT_MNT", "mount", "mnt"),
    ("MOUNT_PARENT", "mount", "mnt_parent"),
    ("MOUNT_MOUNTPOINT", "mount", "mnt_mountpoint"),
    ("TASK_LOGINUID", "task_struct", "loginuid"),
    ("TASK_NSPROXY", "task_struct", "nsproxy"),
    ("NSPROXY_MNT_NS", "nsproxy", "mnt_ns"),
    ("MNT_NS_INUM", "mnt_namespace", "ns.inum"),
    ("NET_INUM", "net", "ns.inum"),
    ("TASK_THREAD_PID", "task_struct", "thread_pid"),
    ("PID_LEVEL", "pid", "level"),
    ("PID_NUMBERS", "pid", "numbers"),
    ("UPID_NS", "upid", "ns"),
    ("PID_NS_INUM", "pid_namespace", "ns.inum"),
    ("USER_NS_INUM", "user_namespace", "ns.inum"),
    ("MOUNT_MNT_NS", "mount", "mnt_ns"),
    ("MNT_NS_USER_NS", "mnt_namespace", "user_ns"),
)

# Fair shares: who is responsible for a process. Without the members of namespaces, that is its user; without those of
# control groups, all processes of root have one share.
_SHARE = (
    ("TASK_REAL_CRED", "task_struct", "real_cred"),
    ("CRED_USER_NS", "cred", "user_ns"),
    ("USER_NS_LEVEL", "user_namespace", "level"),
    ("USER_NS_PARENT", "user_namespace", "parent"),
    ("USER_NS_OWNER", "user_namespace", "owner"),
    ("KERNFS_ID", "kernfs_node", "id"),
)

# Lineage tracking needs these to recognize the exit of the last thread. Without them, only lineage tracking is off.
_LINEAGE = (
    ("TASK_SIGNAL", "task_struct", "signal"),
    ("SIGNAL_LIVE", "signal_struct", "live"),
)

# The program for TCP needs these. Without them, TCP is not watched.
_TCP = (
    ("SOCK_COMMON", "sock", "__sk_common"),
    ("SOCK_DPORT", "sock_common", "skc_dport"),
    ("SOCK_FAMILY", "sock_common", "skc_family"),
    ("SOCK_DADDR", "sock_common", "skc_daddr"),
    ("SOCK_V6_DADDR", "sock_common", "skc_v6_daddr"),
    ("SOCK_SADDR", "sock_common", "skc_rcv_saddr"),
    ("SOCK_V6_SADDR", "sock_common", "skc_v6_rcv_saddr"),
    ("SOCK_ROUTE", "sock", "sk_dst_cache"),
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCKET_INODE", "socket_alloc", "vfs_inode.i_ino"),
    ("TCP_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("TCP_SND_UNA", "tcp_sock", "snd_una"),
    ("TCP_SND_NXT", "tcp_sock", "snd_nxt"),
    ("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("TCP_RCV_WUP", "tcp_sock", "rcv_wup"),
    ("TCP_RCV_WND", "tcp_sock", "rcv_wnd"),
    ("TCP_STATE", "sock", "__sk_common.skc_state"),
    ("SOCK_LOCK_OWNED", "sock", "sk_lock.owned"),
    ("MSG_ITER", "msghdr", "msg_iter"),
    # Since Linux 5.14: kernel commit 8cd54c1c8480 ("iov_iter: separate direction from flavour").
    ("ITER_TYPE", "iov_iter", "iter_type", "type"),
    ("ITER_OFFSET", "iov_iter", "iov_offset"),
    ("ITER_COUNT", "iov_iter", "count"),
    # Since Linux 6.4: kernel commit de4f5fed3f23 ("iov_iter: add iter_iovec() helper").
    ("ITER_DATA", "iov_iter", "__iov", "iov"),
    ("ITER_NR_SEGS", "iov_iter", "nr_segs"),
)

# These recognize a write that opens its connection (TCP Fast Open). Without one of them, such writes are not seen.
_TCP_FAST_OPEN = (
    ("SOCK_STATE", "sock_common", "skc_state"),
    ("TCP_SEGS_OUT", "tcp_sock", "segs_out"),
    ("MSG_NAME", "msghdr", "msg_name"),
    ("MSG_FLAGS", "msghdr", "msg_flags"),
    ("NET_TCP_FASTOPEN", "net", "ipv4.sysctl_tcp_fastopen"),
)

# Whether a server is on this host. Without the flags of routes, each server counts as remote.
_ROUTE = (
    ("ROUTE4_FLAGS", "rtable", "rt_flags"),
    ("ROUTE6_FLAGS", "rt6_info", "rt6i_flags"),
    # Without these, the flags are read for each counted query.
    ("SKB_DEVICE", "sk_buff", "dev"),
    ("DEVICE_PRIVATE_FLAGS", "net_device", "priv_flags"),
)

# A hook behind the firewall needs these to find the destination that NAT replaced.
_NAT = (
    # Since Linux 4.11: kernel commit a9e419dc7be6 ("netfilter: merge ctinfo into nfct pointer storage area").
    ("SKB_NFCT", "sk_buff", "_nfct"),
    ("CONNECTION_KEYS", "nf_conn", "tuplehash"),
    ("KEY_TUPLE", "nf_conntrack_tuple_hash", "tuple"),
    ("TUPLE_SOURCE", "nf_conntrack_tuple", "src"),
    ("TUPLE_DESTINATION", "nf_conntrack_tuple", "dst"),
)

#: Their values on all 64-bit kernels since 4.11, for a kernel whose BTF lacks them because conntrack is a module. The
#: BPF program uses nothing of a connection that does not fit the packet, so wrong values would only mean that NAT is
#: not undone. The key of the other direction follows after KEY_SIZE octets.
_NAT_FALLBACK = {"CONNECTION_KEYS": 16, "KEY_TUPLE": 16, "TUPLE_SOURCE": 0, "TUPLE_DESTINATION": 20, "KEY_SIZE": 56}

# A hook behind the firewall needs these to tell the asker from a firewall in user space (NFQUEUE).
_ASKER = (
    ("TASK_FLAGS", "task_struct", "flags"),
    ("TASK_FILES", "task_struct", "files"),
    ("FILES_FDT", "files_struct", "fdt"),
    ("FILES_NEXT_FD", "files_struct", "next_fd"),
    ("FDTABLE_FD", "fdtable", "fd"),
    ("FDTABLE_MAX_FDS", "fdtable", "max_fds"),
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCKET_FILE", "socket", "file"),
    ("SOCKET_SK", "socket", "sk"),
    ("FILE_PRIVATE_DATA", "file", "private_data"),
    ("SOCK_FAMILY_AT", "sock", "__sk_common.skc_family"),
)

# It does without these. A kernel without one of the lists of firewall rules is taken to have rules.
_ASKER_FURTHER = (
    ("NET_HOOKS_IPV4", "net", "nf.hooks_ipv4"),
    ("NET_HOOKS_IPV6", "net", "nf.hooks_ipv6"),
    ("TASK_IO_URING", "task_struct", "io_uring"),
)

# It needs these to find the socket of a program for a connection of Multipath TCP.
_MULTIPATH = (
    ("TCP_IS_MPTCP", "tcp_sock", "is_mptcp"),
    ("ICSK_ULP_DATA", "inet_connection_sock", "icsk_ulp_data"),
    ("SUBFLOW_CONN", "mptcp_subflow_context", "conn"),
)

# It needs these to find the asker of a query that the firewall sends on.
_WAITERS = (
    # Since Linux 6.13: kernel commit 90ee6ed776c0 ("fs: port files to file_ref").
    ("FILE_COUNT", "file", "f_count", "f_ref.refcnt"),
    ("FILES_COUNT", "files_struct", "count"),
    ("SOCK_WQ", "sock", "sk_wq"),
    ("SOCKET_WQ_WAIT", "socket_wq", "wait"),
    ("WAIT_HEAD", "wait_queue_head", "head"),
    ("WAIT_ENTRY", "wait_queue_entry", "entry"),
    ("WAIT_PRIVATE", "wait_queue_entry", "private"),
    ("POLL_FILE", "poll_table_entry", "filp"),
    ("POLL_WAIT", "poll_table_entry", "wait"),
    ("POLL_TASK", "poll_wqueues", "polling_task"),
)

_OPTIONAL = (*_ERRORS, *_IDENTITY, *_SHARE, *_LINEAGE, *_ROUTE, *_NAT, *_ASKER, *_ASKER_FURTHER, *_MULTIPATH, *_WAITERS)
_STRUCTS = frozenset(member[1] for member in (*_REQUIRED, *_OPTIONAL, *_TCP, *_TCP_FAST_OPEN))

_FUNCTIONS = FUNCTIONS | {CAST_TO_KERNEL, ERROR_FUNCTION}

#: Kinds of buffers that a write can come in. ITER_UBUF exists since Linux 6.0: kernel commit fcb14cb1bdac ("new
#: iov_iter flavour - ITER_UBUF").
_ITER_KINDS = ("ITER_UBUF", "ITER_IOVEC", "ITER_KVEC")

#: The value of a macro whose member this kernel does not have. The BPF sources compare with it.
MISSING = 0xFFFFFFFF

#: Tracepoints that run with preemption enabled use this guard: include/linux/tracepoint.h of Linux 7.
_PREEMPTIBLE_GUARD = "class_srcu_fast_notrace_t"

#: The BPF programs copy these parts of the structs to their stack, which has 512 octets in all.
_SKB_SPAN_LIMIT, _SOCK_COMMON_SPAN_LIMIT = 128, 64


@dataclass(frozen=True, slots=True)
class Layout:
    """What the BPF programs have to know about this kernel.

    ``macros`` has the value of each macro of the BPF sources. ``tcp_problem`` is the reason why TCP cannot be watched
    on this kernel, ``lineage_problem`` the reason why lineage cannot be tracked; each is empty if there is no such
    reason. ``preemptible_tracepoints`` is True if programs at tracepoints can be preempted. ``functions`` has the BTF
    ids of the functions that this kernel has, of hooks.FUNCTIONS, CAST_TO_KERNEL and ERROR_FUNCTION.
    """

    macros: dict[str, int | str]
    tcp_problem: str
    lineage_problem: str
    preemptible_tracepoints: bool
    functions: dict[str, int]


def read_layout(btf_path: str, cache: ProgramCache) -> Layout:
    """Return the layout that the BTF at ``btf_path`` describes, from the cache if it is there.

    Raises UserError if the BTF cannot be read, or describes a kernel that dnsprobe does not know.
    """
    sources = (btf_path, __file__, btf_module.__file__)
    key = f"layout-{digest(*map(_content, sources), *(name.encode() for name in sorted(_FUNCTIONS)))}"
    if (cached := cache.get(key)) is not None:
        return Layout(**cached)
    layout = layout_of(read_btf(btf_path, _STRUCTS | {"iter_type", "bpf_func_id"} | _FUNCTIONS))
    cache.put(key, asdict(layout))
    return layout


def read_functions(cache: ProgramCache) -> dict[str, int]:
    """Return the BTF ids of functions in the running kernel, none if it has no BTF."""
    try:
        return read_layout(KERNEL_BTF, cache).functions
    except UserError:
        return {}


def _content(path: str) -> bytes:
    """Return the content of a file, or nothing if it cannot be read: :func:`read_btf` reports the error."""
    try:
        return read_file(path, MAX_BTF)
    except OSError:
        return b""


def layout_of(btf: Btf) -> Layout:
    """Return the layout that ``btf`` describes; UserError if a required member is missing."""
    macros: dict[str, int | str] = {**_required_macros(btf)}
    if _has_helper(btf, "get_current_task_btf"):
        macros["HAS_TASK_BTF"] = 1
    for member in _OPTIONAL:
        macros[member[0]] = _offset(btf, member)
    macros |= _nat_macros(btf)
    macros |= _asker_macros(btf)
    tcp_problem = ""
    try:
        macros |= _tcp_macros(btf)
    except UserError as error:
        tcp_problem = error.message
    preemptible = btf.has_name(_PREEMPTIBLE_GUARD)
    return Layout(macros, tcp_problem, _first_missing(btf, _LINEAGE), preemptible, btf.functions)


def _has_helper(btf: Btf, name: str) -> bool:
    """Return whether the kernel has a BPF helper."""
    try:
        btf.enumerator("bpf_func_id", f"BPF_FUNC_{name}")
    except KeyError:
        return False
    return True


def _offset(btf: Btf, member: tuple[str, ...]) -> int:
    """Return the offset of a member in octets, MISSING if the kernel has it under none of its names."""
    _macro, struct, *names = member
    for name in names:
        try:
            return btf.offset(struct, *name.split("."))
        except KeyError:
            continue
    return MISSING


def _first_missing(btf: Btf, members: Iterable[tuple[str, ...]]) -> str:
    """Return what is wrong if the kernel lacks one of the members, else an empty text."""
    for member in members:
        if _offset(btf, member) == MISSING:
            return f"this kernel has no {member[1]}.{member[2]}"
    return ""


def _required_macros(btf: Btf) -> dict[str, int]:
    if problem := _first_missing(btf, _REQUIRED):
        raise UserError(problem, f"dnsprobe needs Linux 5.10 or later and does not know kernel {os.uname().release}")
    macros = {member[0]: _offset(btf, member) for member in _REQUIRED}
    span = macros["SKB_DATA"] + 8 - macros["SKB_PROTOCOL"]
    if not 0 < span <= _SKB_SPAN_LIMIT:
        raise UserError(
            f"struct sk_buff of this kernel has an unknown layout: protocol to data are {span} octets",
            "report this to the authors of dnsprobe, with the output of uname -r",
        )
    return macros


def _nat_macros(btf: Btf) -> dict[str, int]:
    """Return the macros of what conntrack notes of a connection."""
    if _first_missing(btf, _NAT):
        return _NAT_FALLBACK
    return {"KEY_SIZE": btf.size("nf_conntrack_tuple_hash")}


def _asker_macros(btf: Btf) -> dict[str, int]:
    """Return the macros that depend on what the kernel knows about open files."""
    macros = {
        "KNOWS_OPEN_FILES": int(not _first_missing(btf, _ASKER)),
        "KNOWS_WAITERS": int(not _first_missing(btf, _WAITERS)),
    }
    # What the member FILE_COUNT holds for a file with one reference. It was the number of references; file_ref_t of
    # include/linux/file_ref.h begins with 0.
    macros["FILE_COUNT_OF_ONE"] = int(_offset(btf, ("", "file", "f_count")) != MISSING)
    return macros


def _tcp_macros(btf: Btf) -> dict[str, int | str]:
    """Return the macros of the program for TCP; UserError if it cannot work on this kernel."""
    if problem := _first_missing(btf, _TCP):
        raise UserError(problem)
    macros: dict[str, int | str] = {member[0]: _offset(btf, member) for member in _TCP}
    for kind in _ITER_KINDS:
        try:
            macros[kind] = btf.enumerator("iter_type", kind)
        except KeyError:
            macros[kind] = MISSING
    if macros["ITER_IOVEC"] == MISSING:
        raise UserError("this kernel has no enumerator ITER_IOVEC")
    # Before iter_type, the lowest two bits of the number had other meanings (include/linux/uio.h of Linux 5.10).
    is_octet = _offset(btf, ("", "iov_iter", "iter_type")) != MISSING
    macros["ITER_KIND(type)"] = "((type)&255)" if is_octet else "((type)&~3U)"
    if not _first_missing(btf, _TCP_FAST_OPEN):
        macros |= {member[0]: _offset(btf, member) for member in _TCP_FAST_OPEN}
    copied = ("SOCK_DPORT", "SOCK_FAMILY", "SOCK_DADDR", "SOCK_STATE")
    end = max(int(macros.get(macro, 0)) for macro in copied) + 4
    if end > _SOCK_COMMON_SPAN_LIMIT:
        raise UserError(f"struct sock_common of this kernel has an unknown layout: its addresses end at octet {end}")
    macros["SOCK_COMMON_SPAN"] = (end + 7) // 8 * 8
    return macros
