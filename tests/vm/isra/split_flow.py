"""Turn ``udp_send_skb`` of a Linux 6.1 source tree into the clone that GCC's IPA-SRA makes of it elsewhere.

``split_flow.py SOURCE_TREE PORT_ARGUMENT`` edits ``net/ipv4/udp.c``: instead of a ``struct flowi4 *`` the function
takes the members that it reads, and its symbol is ``udp_send_skb.isra.51``. The destination port is its third argument
if both addresses share one argument, or its fourth if each address has its own. The function is found by its text, not
by line numbers. If the source is not as expected, the exit status is 1 and the file stays unchanged.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SYMBOL = "udp_send_skb.isra.51"

_HEAD = re.compile(
    r"^static int udp_send_skb\(struct sk_buff \*skb, struct flowi4 \*fl4,\s+struct inet_cork \*cork\)\n\{\n",
    re.MULTILINE,
)
_TAIL = re.compile(r"^\}\n", re.MULTILINE)
_CALL = re.compile(r"\budp_send_skb\(skb, fl4, ")
_CALLS = 2  # of udp_sendmsg() and udp_push_pending_frames()
_MEMBERS = ("saddr", "daddr", "fl4_dport")

# What replaces the flow, by the number of the argument that has the port: parameters, arguments, first declarations.
_LAYOUTS = {
    3: (
        "u64 addresses, __be16 dport",
        "(__force u64)fl4->daddr << 32 | (__force u32)fl4->saddr, fl4->fl4_dport",
        "\tconst __be32 saddr = (__force __be32)addresses;\n"
        "\tconst __be32 daddr = (__force __be32)(addresses >> 32);\n",
    ),
    # As GCC 12 does if the source allows it: each member in its own register, in the order of the struct.
    4: ("__be32 saddr, __be32 daddr, __be16 dport", "fl4->saddr, fl4->daddr, fl4->fl4_dport", ""),
}


class UnexpectedSourceError(Exception):
    """The source is not as expected."""


def split_flow(source: str, port_argument: int) -> str:
    """Return ``udp.c`` with the flow split. Raises UnexpectedSourceError if it is not as in Linux 6.1."""
    heads = list(_HEAD.finditer(source))
    if len(heads) != 1:
        raise UnexpectedSourceError(
            f"udp_send_skb(struct sk_buff *, struct flowi4 *, struct inet_cork *) is there {len(heads)} times, not once"
        )
    tail = _TAIL.search(source, heads[0].end())
    if tail is None:
        raise UnexpectedSourceError("the definition of udp_send_skb has no end")
    parameters, arguments, declarations = _LAYOUTS[port_argument]
    signature = f"udp_send_skb(struct sk_buff *skb, {parameters}, struct inet_cork *cork)"
    # Without noipa, GCC would inline the function or make a clone of the clone.
    head = f'static int {signature} __asm__("{SYMBOL}");\n\nstatic int __attribute__((__noipa__))\n{signature}\n{{\n'
    body = declarations + _without_flow(source[heads[0].end() : tail.start()])
    call = f"udp_send_skb(skb, {arguments}, "
    before, calls_before = _CALL.subn(call, source[: heads[0].start()])
    after, calls_after = _CALL.subn(call, source[tail.start() :])
    if calls_before + calls_after != _CALLS:
        raise UnexpectedSourceError(
            f"udp_send_skb(skb, fl4, ...) is called {calls_before + calls_after} times, not {_CALLS}"
        )
    return before + head + body + after


def _without_flow(body: str) -> str:
    for member in _MEMBERS:
        body, reads = re.subn(rf"\bfl4->{member}\b(?!\s*=[^=])", member.removeprefix("fl4_"), body)
        if reads == 0:
            raise UnexpectedSourceError(f"udp_send_skb does not read fl4->{member}")
    if more := re.search(r".*\bfl4\b.*", body):
        raise UnexpectedSourceError(
            f"udp_send_skb does more with fl4 than read {', '.join(_MEMBERS)}: {more[0].strip()}"
        )
    return body


def main() -> int:
    """Edit the tree that the command line names; return the exit status."""
    path = Path(sys.argv[1]) / "net/ipv4/udp.c"
    try:
        path.write_text(split_flow(path.read_text(encoding="utf-8"), int(sys.argv[2])), encoding="utf-8")
    except OSError as error:
        print(f"split_flow.py: {path}: {error.strerror}; give it the folder of a Linux source", file=sys.stderr)
        return 1
    except UnexpectedSourceError as error:
        print(f"split_flow.py: {path}: {error}; compare it with Linux 6.1 and change split_flow.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
