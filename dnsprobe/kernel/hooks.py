"""The ladder of hooks: for each path of a query out of the host, the places where it can be seen, best first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dnsprobe.errors import UserError
from dnsprobe.hook_names import Attach, TcpHook, UdpHook
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.kallsyms import Symbol

#: The paths of queries out of the host. Each is proved by canaries of its own.
PATHS = ("udp4", "udp6", "tcp4", "tcp6")
#: The paths of datagrams that a program sends in parts (MSG_MORE, sendfile(2)), or several in one packet (UDP_SEGMENT).
#: Their questions may lie in memory that only the hook at egress can read. dnsprobe works without these paths.
PARTS = ("parts4", "parts6")

#: The paths of answers into the host. dnsprobe counts queries without them, but not what became of the queries.
ANSWERS = ("answers4", "answers6")
#: The same for what else ends the wait of a query: its socket is closed, or an error comes back to it (ICMP). One
#: version of IP is enough: the hooks do not look at the packet.
ENDS = ("closed4", "unreachable4")

#: Macros that add the program for TCP to a compilation: at a function, at a tracepoint, a second one at the tracepoint.
STREAM_FUNCTION, STREAM_TRACEPOINT, STREAM_TWICE = "STREAM_FUNCTION", "STREAM_TRACEPOINT", "STREAM_TWICE"

#: The macro for programs that are attached to functions by fentry: they find the arguments in another place.
ATTACH_FENTRY = "ATTACH_FENTRY"

#: The macro that restricts a program that sees both IP versions to some of them.
SERVED_FAMILY = "SERVED_FAMILY(family)"

#: Where a clone of udp_send_skb() may have the port, as (register, whether it holds the flow that has the port).
#: The second argument in the source is the flow. GCC's IPA-SRA passes the port itself in one of the registers. The
#: canaries find out which it is.
PORT_SOURCES = (("PT_REGS_PARM2", True), ("PT_REGS_PARM3", False), ("PT_REGS_PARM2", False), ("PT_REGS_PARM4", False))

#: The macro for the register in which udp_send_skb() gets the cork, if it has all arguments of the source.
CORK_MACRO = "CORK_ARGUMENT=PT_REGS_PARM3"

#: In the order in which they are attached. Forks come last: a fork adds a process, whose exit must be seen.
LINEAGE_TRACEPOINTS = ("sched_process_exit", "task_rename", "sched_process_fork")

_KPROBE_TYPE = "/sys/bus/event_source/devices/kprobe/type"


@dataclass(frozen=True, slots=True)
class Rung:
    """One kind of hook, and one way to attach to it.

    ``name`` is the name in the configuration and in the metrics; two rungs have the same name if a function can be
    attached to in two ways. ``functions`` has, for each path, the kernel function or tracepoint to attach to, or the
    direction of packets at a control group. ``macro`` adds its programs to a compilation. ``entry`` is the name of the
    program, unless that follows from the function. ``unseen`` is what it does not see, as the end of a sentence;
    docs/how-it-works.md explains it.
    """

    name: str
    attach: Attach
    functions: dict[str, str]
    entry: str = ""
    macro: str = ""
    unseen: str = ""

    def program(self, function: str) -> str:
        """Return the name of the BPF program for a function."""
        return self.entry or f"{function}_entry"

    def place(self, symbol: str) -> str:
        """Return how messages call this hook at a symbol: ``kprobe tcp_sendmsg``, ``cgroup egress``."""
        return f"{self.attach} {symbol}"

    @property
    def title(self) -> str:
        """How messages call this rung: ``ip_send_skb by fentry``. The name alone if there is one way to attach."""
        return f"{self.name} by {self.attach}" if self.attach in {Attach.FENTRY, Attach.KPROBE} else self.name

    @property
    def reads_streams(self) -> bool:
        """True for TCP. Its program calls itself for the next message in a write."""
        return self.macro in {STREAM_FUNCTION, STREAM_TRACEPOINT}


def _at_function(
    name: str, functions: dict[str, str], macro: str, *, unseen: str, entry: str = ""
) -> tuple[Rung, Rung]:
    """Return both ways to attach to a function. fentry comes first: it costs less."""
    ways = (Attach.FENTRY, Attach.KPROBE)
    fentry, kprobe = (Rung(name, attach, functions, macro=macro, entry=entry, unseen=unseen) for attach in ways)
    return fentry, kprobe


def _both(protocol: str, function: str) -> dict[str, str]:
    return {f"{protocol}4": function, f"{protocol}6": function}


#: The last rung for UDP. Where functions serve, it is attached in addition, for datagrams in parts. For TCP, it alone
#: reads what leaves the host: a program can change what it writes until then.
EGRESS = Rung(
    UdpHook.CGROUP_SKB,
    Attach.CGROUP,
    {**_both("udp", "egress"), **_both("parts", "egress"), **_both("tcp", "egress_stream")},
    macro="HOOK_EGRESS",
    unseen="what the firewall of this host drops, and packet sockets",
)
#: Where answers are seen. It is not among RUNGS, because there is no other way.
INGRESS = EGRESS.place("ingress")
_UDP_UNSEEN = "raw sockets and packet sockets"
UDP_LADDER = (
    *_at_function(
        UdpHook.IP_SEND_SKB,
        {"udp4": "ip_send_skb", "udp6": "ip6_send_skb"},
        "HOOK_IP_SEND_SKB",
        unseen=_UDP_UNSEEN,
    ),
    *_at_function(
        UdpHook.UDP_SEND_SKB,
        {"udp4": "udp_send_skb", "udp6": "udp_v6_send_skb"},
        "HOOK_UDP_SEND_SKB",
        unseen=_UDP_UNSEEN,
    ),
    EGRESS,
)
_TCP_UNSEEN = "Multipath TCP, urgent octets, and what a program changes after its write"
#: Inside tcp_sendmsg_locked(), no other thread writes to the socket, so the place of a write in the stream is certain.
TCP_LADDER = (
    EGRESS,
    *_at_function(
        TcpHook.TCP_SENDMSG_LOCKED,
        _both("tcp", "tcp_sendmsg_locked"),
        STREAM_FUNCTION,
        entry="tcp_sendmsg_entry",
        unseen=_TCP_UNSEEN,
    ),
    *_at_function(TcpHook.TCP_SENDMSG, _both("tcp", "tcp_sendmsg"), STREAM_FUNCTION, unseen=_TCP_UNSEEN),
    # Since Linux 6.16: kernel commit 0f08335ade71 ("trace: tcp: Add tracepoint for tcp_sendmsg_locked()").
    Rung(
        TcpHook.TCP_TRACEPOINT,
        Attach.TRACEPOINT,
        _both("tcp", "tcp_sendmsg_locked"),
        macro=STREAM_TRACEPOINT,
        unseen=f"data of a SYN (TCP Fast Open), and {_TCP_UNSEEN}",
    ),
)
#: By name and way to attach.
RUNGS: dict[tuple[str, str], Rung] = {(rung.name, rung.attach): rung for rung in (*UDP_LADDER, *TCP_LADDER)}

#: The function that gives a program the kernel's own struct in place of its context, since Linux 6.2.
CAST_TO_KERNEL = "bpf_cast_to_kern_ctx"
#: The macro with its BTF id, for the program at egress.
CAST_TO_KERNEL_MACRO = "CAST_TO_KERNEL"

#: Where the kernel reports errors that came back to a socket. The function serves before Linux 5.14: "net: sock: add
#: tracers for inet socket errors".
ERROR_TRACEPOINT, ERROR_FUNCTION = "inet_sk_error_report", "sock_def_error_report"

#: The functions that hooks of queries attach to.
FUNCTIONS = frozenset(
    function for rung in RUNGS.values() if rung.attach == Attach.FENTRY for function in rung.functions.values()
)


def whole_path(path: str) -> str:
    """Return the path of the same datagrams if they are not sent in parts: ``udp4`` for ``parts4``."""
    return f"udp{path[-1]}" if path in PARTS else path


def kprobe_type() -> int:
    """Return the type that perf_event_open(2) takes for kprobes; OSError if the kernel has none."""
    with open(_KPROBE_TYPE, encoding="ascii") as file:
        return int(file.read())


def kprobes_available() -> bool:
    """Return whether the kernel has kprobes (CONFIG_KPROBES) and offers them to perf."""
    return os.path.exists(_KPROBE_TYPE)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to attach to a function: at these symbols, with a program compiled with these macros."""

    symbols: tuple[Symbol, ...]
    macros: tuple[str, ...] = ()


def attempts(rung: Rung, found: Sequence[Symbol], function: str) -> list[Attempt]:
    """Return the ways to attach a kprobe to the entries of a function, best first.

    ``found`` are the symbols that the function has in this kernel. Parts that the compiler split off come after whole
    functions and never together with them, because a whole function may call its part. Raises UserError if there is no
    symbol.
    """
    if not found:
        raise UserError(f"/proc/kallsyms has neither {function} nor a variant of it that a compiler made")
    whole = tuple(symbol for symbol in found if not symbol.is_part)
    parts = tuple(symbol for symbol in found if symbol.is_part)
    choices = [choice for choice in (whole, parts) if choice]
    if rung.name != UdpHook.UDP_SEND_SKB:
        return [Attempt(choice) for choice in choices]
    if all(symbol.name == function for symbol in found):
        register, in_flow = PORT_SOURCES[0]
        macros = (*port_macros(register, in_flow=in_flow), CORK_MACRO)
        return [Attempt(choice, macros) for choice in choices]
    return [
        Attempt(choice, port_macros(register, in_flow=in_flow))
        for choice in choices
        for register, in_flow in PORT_SOURCES
    ]


def port_macros(register: str, *, in_flow: bool) -> tuple[str, ...]:
    """Return the macros for one of PORT_SOURCES."""
    return f"PORT_ARGUMENT={register}", f"PORT_IN_FLOW={int(in_flow)}"


def family_macro(versions: Sequence[str]) -> str:
    """Return the macro that restricts a program that sees both IP versions to some of them: ``4``, ``6`` or both."""
    families = "||".join(f"(family)=={version}" for version in versions)
    return f"{SERVED_FAMILY}=({families})"


def by_function(rung: Rung, paths: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each function where paths are seen, with those paths."""
    for function in dict.fromkeys(rung.functions[path] for path in paths):
        yield function, [path for path in paths if rung.functions[path] == function]


@dataclass(slots=True, eq=False)
class Hook:
    """An attached hook: its rung, the paths that it sees, its symbols joined by commas, and its descriptors.

    ``rung`` and ``attach`` are the key of the rung in RUNGS. ``programs`` are those that the kernel calls, not those
    that they call. ``links`` has the array of those first, if there is one. A hook is attached as long as its
    descriptors are open, so nothing stays behind when the process dies. ``attempt`` is the number of the way in which
    it was attached, from 0.
    """

    rung: str
    attach: str
    paths: tuple[str, ...]
    symbol: str
    programs: list[int]
    links: list[int]
    attempt: int = 0

    def missed_runs(self) -> int:
        """Return how often the kernel did not run the programs, because it had interrupted a BPF program."""
        missed = [libbpf.program_runs(program).missed for program in self.programs]
        if not missed:
            return 0
        rung = RUNGS.get((self.rung, self.attach))
        # If TCP has two programs, each sees all writes. A write is lost only if both miss it.
        return min(missed) if rung is not None and rung.reads_streams else sum(missed)

    def close(self) -> None:
        """Detach.

        What attaches the programs is closed first, and the array with the programs that they call last: the kernel
        empties it when its last descriptor is closed, and a run without its second program reads nothing.
        """
        for fd in (*reversed(self.links), *self.programs):
            os.close(fd)
        self.links, self.programs = [], []
