"""The short-lived child that compiles, loads and attaches, and hands the descriptors over.

It is a process of its own so that LLVM's memory leaves with it: the daemon never imports bcc. Requests and answers are
JSON objects, one a packet, over the socket whose descriptor is the only argument; descriptors travel beside them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnsprobe.errors import UserError
from dnsprobe.kernel.attach import attach_kprobe, attach_raw_tracepoint
from dnsprobe.kernel.btf import Btf, read_btf
from dnsprobe.kernel.hooks import RUNGS, Rung, kprobes_available
from dnsprobe.kernel.symbols import Symbol, find_functions, read_kallsyms

#: More than any message of either side.
MESSAGE_SIZE = 1 << 20

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
_NOT_THERE = 0xFFFFFFFF

# Where a clone of udp_send_skb may have the port: the flow behind the second argument as in the source, or the port
# itself in a register of its own, as GCC's IPA-SRA passes it. The canaries say which it is.
_PORT_SOURCES = (("PT_REGS_PARM2", True), ("PT_REGS_PARM3", False), ("PT_REGS_PARM2", False), ("PT_REGS_PARM4", False))


def bpf_folder() -> Path:
    """Return the folder of the BPF sources: in the source tree, or where the package installs them."""
    for folder in (Path(__file__).parents[2] / "bpf", Path("/usr/share/dnsprobe/bpf")):
        if (folder / "dnsprobe.bpf.c").exists():
            return folder
    raise UserError(
        "the BPF sources are not installed", "install the package again: /usr/share/dnsprobe/bpf has to be there"
    )


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
    for macro, struct_name, alternatives in _IDENTITY_MEMBERS:
        offsets[macro] = _NOT_THERE
        for names in alternatives:
            with contextlib.suppress(KeyError):
                offsets[macro] = btf.offset(struct_name, *names)
    span = offsets["SKB_DATA"] + 8 - offsets["SKB_PROTOCOL"]
    if not 0 < span <= 128:
        raise UserError(f"struct sk_buff of this kernel is laid out in an unknown way: {offsets}")
    return offsets


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


class Loader:
    """Compiles and attaches on request; remembers what it compiled."""

    def __init__(self, request: dict[str, Any], map_fds: Sequence[int]) -> None:
        self._ports: list[int] = request["ports"]
        self._canary_port: int = request["canary_port"]
        self._maps = dict(zip(request["maps"], map_fds, strict=True))
        self._bcc = self._import_bcc()
        names = frozenset(struct_name for _, struct_name, _ in (*_MEMBERS, *_IDENTITY_MEMBERS))
        self._offsets = member_offsets(read_btf(request["btf"], names))
        self._programs: dict[tuple[str, ...], Any] = {}
        self._kallsyms: bytes | None = None

    @staticmethod
    def _import_bcc() -> Any:
        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
        try:
            import bcc  # noqa: PLC0415 - LLVM is loaded here and nowhere else
        except ImportError as error:
            raise UserError(
                f"the bcc module is missing: {error}",
                "apt-get install python3-bpfcc, and run dnsprobe with /usr/bin/python3 or a virtual environment of it "
                "made with --system-site-packages (PyPI's bcc is another program)",
            ) from error
        if not hasattr(bcc, "BPF"):
            raise UserError(
                f"the bcc module at {bcc.__file__} is not the BPF Compiler Collection",
                "pip uninstall bcc; the right one is Debian's python3-bpfcc",
            )
        return bcc

    def _compile(self, rung: Rung, *defines: str) -> Any:
        key = (rung.name, *defines)
        if key not in self._programs:
            ports = "||".join(f"(port)=={port}" for port in (*self._ports, self._canary_port))
            flags = [
                f"-I{bpf_folder()}",
                "-Wno-unused-function",
                # BCC asks for types and lines of the program, which take a sixth of the time and which nobody reads.
                "-g0",
                f"-DHOOK_{rung.name.upper()}",
                f"-DCANARY_PORT={self._canary_port}",
                f"-DWATCHED_PORT(port)=({ports})",
                *(f"-DMAP_{name}={fd}" for name, fd in self._maps.items()),
                *(f"-D{name}={offset}" for name, offset in self._offsets.items()),
                *(f"-D{define}" for define in defines),
            ]
            try:
                self._programs[key] = self._bcc.BPF(src_file=str(bpf_folder() / "dnsprobe.bpf.c"), cflags=flags)
            except Exception as error:  # BCC raises nothing narrower
                raise UserError(f"the BPF program for {rung.name} does not compile: {error}") from error
        return self._programs[key]

    def _load(self, program: Any, function: str, kind: str) -> int:
        prog_type = self._bcc.BPF.KPROBE if kind == "kprobe" else self._bcc.BPF.RAW_TRACEPOINT
        try:
            # BCC keeps a descriptor of its own for as long as the module lives.
            return os.dup(program.load_func(function, prog_type).fd)
        except Exception as error:  # BCC raises nothing narrower
            raise UserError(f"the kernel refuses the BPF program {function}: {error}") from error

    def attach(
        self, rung: Rung, paths: Sequence[str], attempt: int
    ) -> tuple[list[dict[str, Any]], dict[str, str], list[int]]:
        """Attach ``rung`` for ``paths``, in the ``attempt``-th way that there is.

        Returns the hooks (each with its paths, its symbol and how many descriptors are its), why other paths were
        refused, and all descriptors in order: of each hook those of its programs, then those that keep them attached.
        """
        if rung.kind == "raw_tracepoint":
            return self._attach_tracepoint(rung, paths, attempt)
        hooks, refused, fds = [], {}, []
        for path in paths:
            try:
                symbol, found = self._attach_function(rung, path, attempt)
            except UserError as error:
                refused[path] = error.message
                continue
            hooks.append({"paths": [path], "symbol": symbol, "programs": 1, "links": len(found) - 1})
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
            compiled = self._compile(rung, f"SERVED_FAMILY(family)=({families})")
            for tracepoint in (name, *rung.helpers):
                programs.append(self._load(compiled, f"{tracepoint}_entry", rung.kind))
                links.append(attach_raw_tracepoint(programs[-1], tracepoint))
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

    def _attach_function(self, rung: Rung, path: str, attempt: int) -> tuple[str, list[int]]:
        if not kprobes_available():
            raise UserError("this kernel has no kprobes")
        if self._kallsyms is None:
            self._kallsyms = read_kallsyms()
        function = rung.functions[path]
        ways = attempts(rung, find_functions(self._kallsyms, function), function)
        if attempt >= len(ways):
            raise UserError(f"no other way to attach {function}")
        symbols, defines = ways[attempt]
        program = self._load(self._compile(rung, *defines), f"{function}_entry", rung.kind)
        fds = [program]
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
            else:
                hooks, refused, fds = loader.attach(RUNGS[request["rung"]], request["paths"], request["attempt"])
                answer = {"hooks": hooks, "refused": refused}
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
