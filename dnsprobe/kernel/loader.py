"""The short-lived child that compiles, loads and attaches, and hands the descriptors over.

It is a process of its own so that LLVM's memory leaves with it: the daemon never imports bcc. Requests and answers are
JSON objects, one a packet, over the socket whose descriptor is the only argument; descriptors travel beside them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnsprobe.errors import UserError
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.abi import TICK_NS
from dnsprobe.kernel.attach import attach_kprobe, attach_raw_tracepoint
from dnsprobe.kernel.btf import Btf, read_btf
from dnsprobe.kernel.hooks import (
    MESSAGE_SIZE,
    RUNGS,
    STREAM_FUNCTION,
    STREAM_TRACEPOINT,
    STREAM_TWICE,
    Rung,
    kprobes_available,
)
from dnsprobe.kernel.kallsyms import Symbol, find_functions, read_kallsyms
from dnsprobe.kernel.programs import CANARY_MARK, Program, Store, digest

# What the programs read, as (macro, struct, members). start_boottime is called so since Linux 5.5 (kernel commit
# cf25e24db61c); sk_protocol has 16 bits since 5.6 (bf9765145b85). Debian's oldest kernel here is 5.10.
_MEMBERS = (
    ("SKB_PROTOCOL", "sk_buff", ("protocol",)),
    ("SKB_TRANSPORT_HEADER", "sk_buff", ("transport_header",)),
    ("SKB_NETWORK_HEADER", "sk_buff", ("network_header",)),
    ("SKB_END", "sk_buff", ("end",)),
    ("SKB_HEAD", "sk_buff", ("head",)),
    ("SKB_DATA", "sk_buff", ("data",)),
    ("SKB_LEN", "sk_buff", ("len",)),
    ("SKB_SK", "sk_buff", ("sk",)),
    ("SKB_DEV", "sk_buff", ("dev",)),
    ("SKB_REFDST", "sk_buff", ("_skb_refdst",)),
    ("DST_DEV", "dst_entry", ("dev",)),
    ("DEVICE_FLAGS", "net_device", ("flags",)),
    ("SHINFO_GSO_SIZE", "skb_shared_info", ("gso_size",)),
    ("SOCK_PROTOCOL", "sock", ("sk_protocol",)),
    ("SOCK_NET", "sock", ("__sk_common", "skc_net", "net")),
    ("DEVICE_NET", "net_device", ("nd_net", "net")),
    ("NEIGHBOUR_ARP_QUEUE", "neighbour", ("arp_queue",)),
    ("SKB_HEAD_PREV", "sk_buff_head", ("prev",)),
    ("FLOWI4_DPORT", "flowi4", ("uli", "ports", "dport")),
    ("FLOWI6_DPORT", "flowi6", ("uli", "ports", "dport")),
    ("TASK_GROUP_LEADER", "task_struct", ("group_leader",)),
    ("TASK_REAL_PARENT", "task_struct", ("real_parent",)),
    ("TASK_TGID", "task_struct", ("tgid",)),
    ("TASK_START_BOOTTIME", "task_struct", ("start_boottime",)),
    ("TASK_COMM", "task_struct", ("comm",)),
    ("TASK_SELF_EXEC_ID", "task_struct", ("self_exec_id",)),
)

# What identities are made of, with the names that a member has or had. A fact whose member is not there is not known;
# queries are counted all the same.
_IDENTITY_MEMBERS: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("TASK_CGROUPS", "task_struct", (("cgroups",),)),
    ("CSS_SET_DFL_CGRP", "css_set", (("dfl_cgrp",),)),
    ("CGROUP_KN", "cgroup", (("kn",),)),
    ("KERNFS_NAME", "kernfs_node", (("name",),)),
    # Since Linux 6.15 (kernel commit 633488947ef6) it is read under RCU.
    ("KERNFS_PARENT", "kernfs_node", (("parent",), ("__parent",))),
    ("TASK_MM", "task_struct", (("mm",),)),
    ("MM_ARG_START", "mm_struct", (("arg_start",),)),
    ("MM_ARG_END", "mm_struct", (("arg_end",),)),
    ("MM_EXE_FILE", "mm_struct", (("exe_file",),)),
    ("FILE_PATH_MNT", "file", (("f_path", "mnt"),)),
    ("FILE_PATH_DENTRY", "file", (("f_path", "dentry"),)),
    ("DENTRY_NAME", "dentry", (("d_name", "name"),)),
    ("DENTRY_PARENT", "dentry", (("d_parent",),)),
    ("VFSMOUNT_ROOT", "vfsmount", (("mnt_root",),)),
    ("MOUNT_MNT", "mount", (("mnt",),)),
    ("MOUNT_PARENT", "mount", (("mnt_parent",),)),
    ("MOUNT_MOUNTPOINT", "mount", (("mnt_mountpoint",),)),
    ("TASK_LOGINUID", "task_struct", (("loginuid",),)),
    ("TASK_NSPROXY", "task_struct", (("nsproxy",),)),
    ("NSPROXY_MNT_NS", "nsproxy", (("mnt_ns",),)),
    ("MNT_NS_INUM", "mnt_namespace", (("ns", "inum"),)),
    ("NET_INUM", "net", (("ns", "inum"),)),
    ("TASK_THREAD_PID", "task_struct", (("thread_pid",),)),
    ("PID_LEVEL", "pid", (("level",),)),
    ("PID_NUMBERS", "pid", (("numbers",),)),
    ("UPID_NS", "upid", (("ns",),)),
    ("PID_NS_INUM", "pid_namespace", (("ns", "inum"),)),
)
# What lineages are followed by. Without, they are not, and all else works.
_LINEAGE_MEMBERS: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("TASK_SIGNAL", "task_struct", (("signal",),)),
    ("SIGNAL_LIVE", "signal_struct", (("live",),)),
)
_OPTIONAL_MEMBERS = (*_IDENTITY_MEMBERS, *_LINEAGE_MEMBERS)
#: In the order in which they are attached: forks last, for who is added has to be seen to end.
LINEAGE_TRACEPOINTS = ("sched_process_exit", "task_rename", "sched_process_fork")
_NOT_THERE = 0xFFFFFFFF

# What the program for TCP reads, with the names that a member has or had: the pieces of a write are behind iter.__iov
# since Linux 6.4 (kernel commit de4f5fed3f23), and its kind is in iter_type since 5.14 (8cd54c1c8480).
_STREAM_MEMBERS: tuple[tuple[str, str, tuple[tuple[str, ...], ...]], ...] = (
    ("SOCK_COMMON", "sock", (("__sk_common",),)),
    ("SOCK_DPORT", "sock_common", (("skc_dport",),)),
    ("SOCK_FAMILY", "sock_common", (("skc_family",),)),
    ("SOCK_DADDR", "sock_common", (("skc_daddr",),)),
    ("SOCK_V6_DADDR", "sock_common", (("skc_v6_daddr",),)),
    ("SOCK_SOCKET", "sock", (("sk_socket",),)),
    ("SOCKET_INODE", "socket_alloc", (("vfs_inode", "i_ino"),)),
    ("TCP_WRITE_SEQ", "tcp_sock", (("write_seq",),)),
    ("TCP_SND_UNA", "tcp_sock", (("snd_una",),)),
    ("TCP_BYTES_ACKED", "tcp_sock", (("bytes_acked",),)),
    ("MSG_ITER", "msghdr", (("msg_iter",),)),
    ("ITER_TYPE", "iov_iter", (("iter_type",), ("type",))),
    ("ITER_OFFSET", "iov_iter", (("iov_offset",),)),
    ("ITER_COUNT", "iov_iter", (("count",),)),
    ("ITER_DATA", "iov_iter", (("__iov",), ("iov",))),
    ("ITER_NR_SEGS", "iov_iter", (("nr_segs",),)),
)
# What tells of a write that opens its connection (TCP Fast Open). Without, such writes are not seen.
_OPENING_MEMBERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("SOCK_STATE", "sock_common", ("skc_state",)),
    ("TCP_SEGS_OUT", "tcp_sock", ("segs_out",)),
    ("MSG_NAME", "msghdr", ("msg_name",)),
    ("MSG_FLAGS", "msghdr", ("msg_flags",)),
    ("NET_TCP_FASTOPEN", "net", ("ipv4", "sysctl_tcp_fastopen")),
)
_ITER_KINDS = ("ITER_UBUF", "ITER_IOVEC", "ITER_KVEC")
# The guard that tracepoints are run under where that leaves preemption on: include/linux/tracepoint.h of Linux 7.
_PREEMPTIBLE = "class_srcu_fast_notrace_t"
_BTF_READER = str(Path(__file__).with_name("btf.py"))

# Where a clone of udp_send_skb may have the port: the flow behind the second argument as in the source, or the port
# itself in a register of its own, as GCC's IPA-SRA passes it. The canaries say which it is.
_PORT_SOURCES = (("PT_REGS_PARM2", True), ("PT_REGS_PARM3", False), ("PT_REGS_PARM2", False), ("PT_REGS_PARM4", False))


def bpf_folder() -> Path:
    """Return the folder of the BPF sources: beside the Python package, or in the virtual environment that has both."""
    # The source tree and the Debian package have them beside it, a wheel below the prefix. Nowhere else: there may be
    # those of another version.
    folders = (Path(__file__).parents[2] / "bpf", Path(sys.prefix) / "share/dnsprobe/bpf")
    for folder in folders:
        if (folder / "dnsprobe.bpf.c").exists():
            return folder
    raise UserError("the BPF sources are not installed", f"install dnsprobe again: {folders[-1]} has to be there")


def member_offsets(btf: Btf) -> dict[str, int]:
    """Return the offset behind each macro of the BPF sources."""
    offsets = {}
    for macro, struct_name, path in _MEMBERS:
        try:
            offsets[macro] = btf.offset(struct_name, *path)
        except KeyError:
            raise UserError(
                f"this kernel has no {struct_name}.{'.'.join(path)}",
                f"kernel {os.uname().release} is older or newer than what dnsprobe knows: it takes Linux 5.10 or later",
            ) from None
    for macro, struct_name, alternatives in _OPTIONAL_MEMBERS:
        offsets[macro] = _first(btf, struct_name, alternatives)
    span = offsets["SKB_DATA"] + 8 - offsets["SKB_PROTOCOL"]
    if not 0 < span <= 128:
        raise UserError(f"struct sk_buff of this kernel is laid out in an unknown way: {offsets}")
    return offsets


def _first(btf: Btf, struct_name: str, alternatives: Sequence[Sequence[str]]) -> int:
    for names in alternatives:
        with contextlib.suppress(KeyError):
            return btf.offset(struct_name, *names)
    return _NOT_THERE


def stream_values(btf: Btf) -> dict[str, int | str]:
    """Return the value behind each macro of ``bpf/tcp/``; UserError where this kernel lacks one of them."""
    values: dict[str, int | str] = {}
    for macro, struct_name, alternatives in _STREAM_MEMBERS:
        offset = _first(btf, struct_name, alternatives)
        if offset == _NOT_THERE:
            raise UserError(f"this kernel has no {struct_name}.{'.'.join(alternatives[0])}")
        values[macro] = offset
    for kind in _ITER_KINDS:
        try:
            values[kind] = btf.enumerator("iter_type", kind)
        except KeyError:
            values[kind] = _NOT_THERE  # ITER_UBUF came with Linux 6.0 (kernel commit fcb14cb1bdac)
    if values["ITER_IOVEC"] == _NOT_THERE:
        raise UserError("this kernel has no enumerator ITER_IOVEC")
    # Before iter_type, the lowest two bits of the number said other things (include/linux/uio.h of Linux 5.10).
    octet = _first(btf, "iov_iter", [["iter_type"]]) != _NOT_THERE
    values["ITER_KIND(type)"] = "((type)&255)" if octet else "((type)&~3U)"
    with contextlib.suppress(KeyError):
        values |= {macro: btf.offset(name, *path) for macro, name, path in _OPENING_MEMBERS}
    spanned = ("SOCK_DPORT", "SOCK_FAMILY", "SOCK_DADDR", "SOCK_STATE")
    end = max(int(values.get(macro, 0)) for macro in spanned) + 4
    if end > 64:
        raise UserError("struct sock_common of this kernel is laid out in an unknown way")
    values["SOCK_COMMON_SPAN"] = (end + 7) // 8 * 8
    return values


def _content(path: str) -> bytes:
    """Return what is in a file, nothing where it cannot be read: whoever needs it says so."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _no_bcc(why: str) -> UserError:
    return UserError(
        f"the bcc module is missing: {why}",
        "apt-get install python3-bpfcc, and run dnsprobe with /usr/bin/python3 or a virtual environment of it "
        "made with --system-site-packages (PyPI's bcc is another program)",
    )


def _find_bcc() -> list[bytes]:
    """Return what tells one BCC from another, without its LLVM; UserError where there is none."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        raise _no_bcc("there is none for this Python")
    files = [Path(found.origin).with_name(name) for name in ("__init__.py", "libbcc.py", "version.py")]
    try:
        return [f"{path} {path.stat().st_mtime_ns} {path.stat().st_size}".encode() for path in files]
    except FileNotFoundError:
        raise UserError(
            f"the bcc module at {found.origin} is not the BPF Compiler Collection",
            "pip uninstall bcc; the right one is Debian's python3-bpfcc",
        ) from None


def _run_compiler(flags: Sequence[str]) -> dict[str, Program]:
    """Return the program of each function. BCC raises what it likes."""
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    try:
        import bcc  # noqa: PLC0415 - LLVM is loaded here and nowhere else
    except ImportError as error:
        raise _no_bcc(str(error)) from error
    module = bcc.BPF(src_file=str(bpf_folder() / "dnsprobe.bpf.c"), cflags=[f"-I{bpf_folder()}", *flags])
    names = [bcc.lib.bpf_function_name(module.module, at) for at in range(bcc.lib.bpf_num_functions(module.module))]
    return {name.decode(): Program.of(module.dump_func(name)) for name in names}


def _any_of(ports: Sequence[int | str]) -> str:
    return "||".join(f"(port)=={port}" for port in ports) or "0"


def attempts(rung: Rung, found: Sequence[Symbol], function: str) -> list[tuple[Sequence[Symbol], Sequence[str]]]:
    """Return the ways to attach to the entries of a function, best first: symbols, and macros for the program.

    Parts that the compiler split off come after whole functions, never together with them: the one calls the other.
    Raises UserError where there is no entry.
    """
    if not found:
        raise UserError(f"/proc/kallsyms has no {function}, under no name that a compiler gives")
    whole = [symbol for symbol in found if not symbol.is_part]
    parts = [symbol for symbol in found if symbol.is_part]
    choices = [choice for choice in (whole, parts) if choice]
    if rung.name != "udp_send_skb":
        return [(choice, ()) for choice in choices]
    renamed = any(symbol.name != function for symbol in found)
    return [
        (choice, (f"PORT_ARGUMENT={register}", f"PORT_IN_FLOW={int(in_flow)}"))
        for choice in choices
        for register, in_flow in (_PORT_SOURCES if renamed else _PORT_SOURCES[:1])
    ]


def _by_function(rung: Rung, paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each function that paths are seen at, with those paths."""
    for function in dict.fromkeys(rung.functions[path] for path in paths):
        yield function, [path for path in paths if rung.functions[path] == function]


@dataclass(frozen=True, slots=True)
class _Module:
    """What one run of the compiler made, by the names of the functions, and the array by which that for TCP calls
    itself."""

    programs: dict[str, Program]
    again: libbpf.Map


class Loader:
    """Compiles and attaches on request; remembers what it compiled."""

    def __init__(self, request: dict[str, Any], map_fds: Sequence[int]) -> None:
        self._ports: list[int] = request["ports"]
        self._encrypted_ports: list[int] = request["encrypted_ports"]
        self._canary_port: int = request["canary_port"]
        self._maps: list[str] = [*request["maps"], "AGAIN"]
        self._map_fds = map_fds
        # systemd.exec(5): of the folders of CacheDirectory=, which are separated by colons.
        self._store = Store(os.environ.get("CACHE_DIRECTORY", "").partition(":")[0])
        #: Why what was compiled could not be kept.
        self.unkept = ""
        self._bcc = _find_bcc()
        self._values, self._no_streams, self._twice = self._layout(request["btf"])
        self._modules: dict[tuple[str, ...], _Module] = {}
        self._kallsyms: bytes | None = None

    def _layout(self, path: str) -> tuple[dict[str, int | str], str, bool]:
        """Return the value behind each macro, why TCP cannot be read, and whether tracepoints are preemptible."""
        key = f"layout-{digest(*map(_content, (path, __file__, _BTF_READER)))}"
        if kept := self._store.get(key):
            return kept[0], kept[1], kept[2]
        tables = (*_MEMBERS, *_OPTIONAL_MEMBERS, *_STREAM_MEMBERS, *_OPENING_MEMBERS)
        names = {struct_name for _, struct_name, _ in tables}
        btf = read_btf(path, frozenset(names | {"iter_type"}))
        values: dict[str, int | str] = {**member_offsets(btf)}
        no_streams = ""
        try:
            values |= stream_values(btf)
        except UserError as error:
            no_streams = error.message
        layout = values, no_streams, btf.has_name(_PREEMPTIBLE)
        self._keep(key, layout)
        return layout

    def _keep(self, key: str, value: Any) -> None:
        try:
            self._store.put(key, value)
        except OSError as error:
            self.unkept = str(error)

    def _compile(self, rung: Rung, *defines: str) -> _Module:
        """Compile what a rung needs, and along with a UDP rung what TCP will most likely need: each run of the compiler
        takes long, whatever it compiles."""
        tracepoint = (STREAM_TRACEPOINT, *((STREAM_TWICE,) if self._twice else ()))
        if rung.reads_streams:
            for macros, module in self._modules.items():
                if rung.macro in macros:
                    return module
            macros = tracepoint if rung.macro == STREAM_TRACEPOINT else (rung.macro,)
        else:
            streams = (STREAM_FUNCTION,) if kprobes_available() else tracepoint
            macros = (rung.macro, *defines, *(() if self._no_streams else streams))
        if macros not in self._modules:
            self._modules[macros] = self._build(rung.name, macros)
        return self._modules[macros]

    def _build(self, name: str, macros: Sequence[str]) -> _Module:
        again = libbpf.Map(libbpf.PROG_ARRAY, "again", 4, 4, 2)
        flags = [
            "-Wno-unused-function",
            # BCC asks for types and lines of the program, which take a sixth of the time and which nobody reads.
            "-g0",
            # BCC optimizes what clang gives it, so that clang need not: it takes a quarter less time.
            "-Xclang",
            "-disable-llvm-passes",
            f"-DCANARY_MARK={CANARY_MARK}",
            f"-DWATCHED_PORT(port)=({_any_of([*self._ports, 'CANARY_PORT'])})",
            f"-DTICK_NS={TICK_NS}",
            f"-DENCRYPTED_PORT(port)=({_any_of(self._encrypted_ports)})",
            *(f"-DMAP_{name}={number}" for number, name in enumerate(self._maps)),
            *(f"-D{name}={value}" for name, value in self._values.items()),
            *(f"-D{macro}" for macro in macros),
        ]
        sources = [path.read_bytes() for path in sorted(bpf_folder().rglob("*.[ch]"))]
        key = f"programs-{digest(*self._bcc, *(flag.encode() for flag in flags), *sources)}"
        if kept := self._store.get(key):
            return _Module({function: Program.from_json(program) for function, program in kept.items()}, again)
        try:
            programs = _run_compiler(flags)
        except UserError:
            raise
        except Exception as error:  # BCC raises nothing narrower
            raise UserError(f"the BPF program for {name} does not compile: {error}") from error
        self._keep(key, {function: program.to_json() for function, program in programs.items()})
        return _Module(programs, again)

    def _load(self, module: _Module, function: str, kind: str) -> int:
        program_type = libbpf.KPROBE if kind == "kprobe" else libbpf.RAW_TRACEPOINT
        instructions = module.programs[function].bound([*self._map_fds, module.again.fd], self._canary_port)
        try:
            return libbpf.load_program(program_type, function, instructions)
        except libbpf.RefusedError as error:
            print(error.log, file=sys.stderr, flush=True)
            raise UserError(f"the kernel refuses the BPF program {function}: {error.strerror}") from error

    def attach(
        self, rung: Rung, paths: Sequence[str], attempt: int
    ) -> tuple[list[dict[str, Any]], dict[str, str], list[int]]:
        """Attach ``rung`` for ``paths``, in the ``attempt``-th way that there is.

        Returns the hooks (each with its paths, its symbol and how many descriptors are its), why other paths were
        refused, and all descriptors in order: of each hook those of its programs, then those that keep them attached.
        """
        if rung.reads_streams and self._no_streams:
            return [], dict.fromkeys(paths, self._no_streams), []
        if rung.kind == "raw_tracepoint":
            return self._attach_tracepoint(rung, paths, attempt)
        hooks: list[dict[str, Any]] = []
        refused: dict[str, str] = {}
        fds: list[int] = []
        for function, group in _by_function(rung, paths):
            try:
                symbol, found = self._attach_function(rung, function, attempt)
            except UserError as error:
                refused |= dict.fromkeys(group, error.message)
                continue
            hooks.append({"paths": group, "symbol": symbol, "programs": 1, "links": len(found) - 1})
            fds += found
        return hooks, refused, fds

    def _attach_tracepoint(
        self, rung: Rung, paths: Sequence[str], attempt: int
    ) -> tuple[list[dict[str, Any]], dict[str, str], list[int]]:
        name = rung.functions[paths[0]]
        if attempt > 0:
            return [], dict.fromkeys(paths, f"no other way to attach {name}"), []
        families = "||".join(f"(family)=={path[-1]}" for path in paths)
        programs: list[int] = []
        links: list[int] = []
        try:
            module = self._compile(rung, f"SERVED_FAMILY(family)=({families})")
            for tracepoint in (name, *rung.helpers):
                programs.append(self._load(module, rung.program(tracepoint), rung.kind))
                links.append(attach_raw_tracepoint(programs[-1], tracepoint))
            if rung.reads_streams and self._twice:
                programs.append(self._load(module, f"{name}_again_entry", rung.kind))
                links.append(attach_raw_tracepoint(programs[-1], tracepoint))
            links += self._run_again(rung, module, programs)
        except UserError as error:
            reason = error.message
        except OSError as error:
            reason = f"cannot attach to the tracepoint {tracepoint}: {error.strerror}"
        else:
            hook = {"paths": list(paths), "symbol": name, "programs": len(programs), "links": len(links)}
            return [hook], {}, programs + links
        for fd in programs + links:
            os.close(fd)
        return [], dict.fromkeys(paths, reason), []

    @staticmethod
    def _run_again(rung: Rung, module: _Module, programs: Sequence[int]) -> list[int]:
        """Let programs for TCP call themselves for the next message. As long as the descriptor is open, they can."""
        if not rung.reads_streams:
            return []
        for at, program in enumerate(programs):
            module.again.set(struct.pack("=I", at), struct.pack("=I", program))
        return [os.dup(module.again.fd)]

    def attach_lineage(self) -> tuple[dict[str, Any], list[int]]:
        """Attach what follows who starts whom, out of what was compiled for a rung.

        Returns how many descriptors are programs and how many keep them attached, or why there are none.
        """
        for macro, struct_name, alternatives in _LINEAGE_MEMBERS:
            if self._values[macro] == _NOT_THERE:
                return {"refused": f"this kernel has no {struct_name}.{'.'.join(alternatives[0])}"}, []
        module = next(reversed(self._modules.values()))
        programs: list[int] = []
        links: list[int] = []
        try:
            for tracepoint in LINEAGE_TRACEPOINTS:
                programs.append(self._load(module, f"{tracepoint}_entry", "raw_tracepoint"))
                links.append(attach_raw_tracepoint(programs[-1], tracepoint))
        except UserError as error:
            reason = error.message
        except OSError as error:
            reason = f"cannot attach to the tracepoint {tracepoint}: {error.strerror}"
        else:
            return {"programs": len(programs), "links": len(links)}, programs + links
        for fd in programs + links:
            os.close(fd)
        return {"refused": reason}, []

    def _attach_function(self, rung: Rung, function: str, attempt: int) -> tuple[str, list[int]]:
        if not kprobes_available():
            raise UserError("this kernel has no kprobes")
        if self._kallsyms is None:
            self._kallsyms = read_kallsyms()
        ways = attempts(rung, find_functions(self._kallsyms, function), function)
        if attempt >= len(ways):
            raise UserError(f"no other way to attach {function}")
        symbols, defines = ways[attempt]
        module = self._compile(rung, *defines)
        program = self._load(module, rung.program(function), rung.kind)
        fds = [program, *self._run_again(rung, module, [program])]
        for symbol in symbols:
            try:
                fds.append(attach_kprobe(program, symbol))
            except OSError as error:
                for fd in fds:
                    os.close(fd)
                raise UserError(f"cannot attach a kprobe to {symbol.name}: {error.strerror}") from error
        return ",".join(symbol.name for symbol in symbols), fds


def serve(channel: socket.socket) -> None:
    """Answer requests until the other side closes. The first names the maps and brings their descriptors."""
    loader: Loader | None = None
    while True:
        data, received, _flags, _address = socket.recv_fds(channel, MESSAGE_SIZE, 64)
        if not data:
            return
        request = json.loads(data)
        fds: list[int] = []
        try:
            if loader is None:
                loader = Loader(request, received)
                answer: dict[str, Any] = {"ready": True}
            elif "lineage" in request:
                answer, fds = loader.attach_lineage()
            else:
                hooks, refused, fds = loader.attach(RUNGS[request["rung"]], request["paths"], request["attempt"])
                answer = {"hooks": hooks, "refused": refused, "unkept": loader.unkept}
        except UserError as error:
            answer = {"error": error.message, "hint": error.hint}
        socket.send_fds(channel, [json.dumps(answer).encode()], fds)
        for fd in fds:
            os.close(fd)


def main() -> None:
    """Serve on the descriptor that the command line names; end when the parent does."""
    pr_set_pdeathsig, sigkill = 1, 9
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill)
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel)
    # LLVM's destructors take long and free what the exit frees anyway.
    os._exit(0)


if __name__ == "__main__":
    main()
