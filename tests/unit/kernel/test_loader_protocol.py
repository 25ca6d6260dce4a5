"""The messages between the daemon and the loader child."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from dnsprobe.kernel import loader_protocol
from dnsprobe.kernel.hooks import Hook

Channels = tuple[socket.socket, socket.socket]


@pytest.fixture
def channels() -> Iterator[Channels]:
    """Yield both ends of a connection."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


def test_hooks_come_back_with_their_descriptors(channels: Channels) -> None:
    pipes = [os.pipe() for _ in range(3)]
    fds = [fd for pair in pipes for fd in pair]
    hooks = [
        Hook("ip_send_skb", "fentry", ("udp4",), "ip_send_skb", fds[:1], fds[1:3]),
        Hook("tcp_tracepoint", "tracepoint", ("tcp4", "tcp6"), "tcp_sendmsg_locked", fds[3:5], fds[5:]),
    ]
    message = {"hooks": loader_protocol.describe(hooks), "refused": {}}
    loader_protocol.send(channels[0], message, loader_protocol.descriptors(hooks))
    answer, received = loader_protocol.receive(channels[1])
    assert answer is not None
    restored = loader_protocol.restore(answer["hooks"], received)
    try:
        assert [(hook.rung, hook.attach, hook.paths, hook.symbol) for hook in restored] == [
            (hook.rung, hook.attach, hook.paths, hook.symbol) for hook in hooks
        ]
        files = [[os.fstat(fd).st_ino for fd in (*hook.programs, *hook.links)] for hook in (*hooks, *restored)]
        assert files[:2] == files[2:]
        assert [len(hook.programs) for hook in restored] == [1, 2]
    finally:
        for hook in (*hooks, *restored):
            hook.close()


def test_without_hooks_there_are_no_descriptors(channels: Channels) -> None:
    loader_protocol.send(channels[0], {"hooks": loader_protocol.describe([])})
    assert loader_protocol.receive(channels[1]) == ({"hooks": []}, [])


def test_a_closed_connection_has_no_message(channels: Channels) -> None:
    channels[0].close()
    assert loader_protocol.receive(channels[1]) == (None, [])
    with pytest.raises(BrokenPipeError):
        loader_protocol.send(channels[1], {})
