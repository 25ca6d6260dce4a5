"""Sends queries and answers over loopback, and reads back what became of them, as fast as possible.

A model of the notes says what has to become of them: tests/host/answer_reference.py says what an answer is, and the
model which query it fits.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from answer_reference import Answer, Bare, parse_answer
from kernel_side import ADDRESSES, FAMILIES, enter_network_namespace, own_control_group
from odd_answers import Query
from reference import LENGTH, STREAM_PART, Question, wire

from dnsprobe.config.main import AnswersConfig, Config
from dnsprobe.hook_names import Attach
from dnsprobe.kernel import libbpf
from dnsprobe.kernel.abi import SOCKET_NOTES, Result, Unmatched
from dnsprobe.kernel.loader_protocol import ANSWERS
from dnsprobe.pipeline.session import Session

SUFFIX = (b"fuzz", b"test")
_SUFFIX = wire(SUFFIX)
_PORT = 53
#: No query is given up before it is time.
_NEVER = 1 << 62
#: The most queries that wait at a time; one user may have half of it.
_QUERIES = 16384
#: Results of queries without an answer: which of both depends on what a socket remembers.
_UNANSWERED = (Result.TIMEOUT, Result.CLOSED)

#: What a note is for: the id and the question of its query.
_Key = tuple[int, Question]
#: The octets of a stream in segments.
Stream = Sequence[bytes]


@dataclass(frozen=True)
class Case:
    """A query, and what comes for it: messages, each from the right server or from another one."""

    query: Query
    answers: tuple[tuple[bytes, bool], ...]

    @property
    def text(self) -> str:
        """The case as a line of the corpus."""
        words = (f"{'' if is_right else '!'}{answer.hex() or '-'}" for answer, is_right in self.answers)
        return " ".join((str(self.query.id), self.query.qname.hex(), str(self.query.qtype), *words))

    @classmethod
    def of(cls, text: str) -> Case:
        """Return the case of a line of the corpus."""
        id_, qname, qtype, *words = text.split()
        answers = tuple((bytes.fromhex(word.lstrip("!-")), not word.startswith("!")) for word in words)
        return cls(Query(int(id_) // 2, bytes.fromhex(qname), int(qtype)), answers)


@dataclass
class Outcome:
    """Queries by their result, and answers that fit none, by the reason."""

    results: Counter[Result] = field(default_factory=Counter)
    unmatched: Counter[Unmatched] = field(default_factory=Counter)


class Model:
    """What has to become of queries and answers of one socket."""

    def __init__(self) -> None:
        self.expected = Outcome()
        self._waiting: set[_Key] = set()
        self._answered: set[_Key] = set()
        self._latest: deque[_Key] = deque(maxlen=SOCKET_NOTES)

    def ask(self, query: Query) -> None:
        """Note a query."""
        key = query.id, Question(query.qname.lower(), query.qtype, 1)
        self._waiting.add(key)
        self._answered.discard(key)
        self._latest.append(key)
        self.expected.results[Result.TIMEOUT] += 1

    def answer(self, payload: bytes, visible: int | None = None, *, is_right: bool = True) -> None:
        """Count an answer."""
        answer = parse_answer(payload, visible)
        if isinstance(answer, Answer):
            self._fit(answer, is_right=is_right)
        elif isinstance(answer, Bare) and is_right and (key := self._only_one(answer.id)):
            self._end(key, answer.result)
        elif answer is not None:
            self.expected.unmatched[Unmatched.UNREADABLE] += 1

    def _only_one(self, id_: int) -> _Key | None:
        """Return the only one of the latest queries that has an id and still waits."""
        found = {key for key in self._latest if key[0] == id_ and key in self._waiting}
        return found.pop() if len(found) == 1 else None

    def _end(self, key: _Key, result: Result) -> None:
        self._waiting.discard(key)
        self._answered.add(key)
        self.expected.results[Result.TIMEOUT] -= 1
        self.expected.results[result] += 1

    def _fit(self, answer: Answer, *, is_right: bool) -> None:
        key = answer.id, answer.question
        unmatched = self.expected.unmatched
        if is_right and key in self._waiting:
            self._end(key, answer.result)
        elif is_right and key in self._answered:
            unmatched[Unmatched.DUPLICATE] += 1
        # Octets of the suffix inside of a label: the kernel side cannot tell, and a rule may match.
        elif answer.question.qname.endswith(_SUFFIX):
            is_forged = any(latest in self._waiting for latest in self._latest)
            unmatched[Unmatched.FORGED if is_forged else Unmatched.UNSOLICITED] += 1


def stream_model(queries: Sequence[Query], pieces: Stream) -> Outcome:
    """Return what has to become of the queries of a connection, whose answers come in these segments."""
    model = Model()
    for query in queries:
        model.ask(query)
    octets = b"".join(pieces)
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    at = 0
    while at + LENGTH.size <= len(octets):
        (length,) = LENGTH.unpack_from(octets, at)
        begin = at + LENGTH.size
        whole = octets[begin : begin + length]
        part = whole[:STREAM_PART]
        found = parse_answer(part)
        if isinstance(found, Answer | Bare):
            # Records are read in the segment that has the end of the question.
            behind = begin + 12 + (len(found.question.qname) + 4 if isinstance(found, Answer) else 0)
            model.answer(whole, next(end for end in ends if end >= behind) - begin)
        elif found is None and part:
            pass
        elif len(part) < min(length, STREAM_PART):
            break
        else:
            model.expected.unmatched[Unmatched.UNREADABLE] += 1
        at = begin + length
    return model.expected


class AnswerSide:
    """A session that follows answers, and sockets over loopback. Use :func:`running`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._clients: dict[int, socket.socket] = {}
        self._servers: dict[tuple[int, bool], socket.socket] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._results, self._unmatched = self._read()

    def open(self) -> None:
        """Open the sockets, in the network namespace of the caller."""
        for version, address in ADDRESSES.items():
            self._clients[version] = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
            self._clients[version].bind((address, 0))
            for is_right in (True, False):
                server = self._servers[version, is_right] = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
                # Answers of another port that is not watched are none: the other server has another address.
                server.bind((address if is_right else {4: "127.0.0.2", 6: "fd00::2"}[version], _PORT))
            self._listeners[version] = socket.create_server((address, _PORT), family=FAMILIES[version])

    def _read(self) -> tuple[Counter[Result], Counter[Unmatched]]:
        answers = self._session.answers
        assert answers is not None
        self._session.collect()
        results = Counter[Result]()
        for sums in answers.collected.values():
            results.update(dict(zip(Result, sums.results, strict=True)))
            results[Result.TIMEOUT] += sums.waiting
        return results, Counter({Unmatched[name.upper()]: times for name, times in answers.unmatched().items()})

    def run(self, version: int, cases: Sequence[Case]) -> Outcome:
        """Send the queries and answers of cases, one after the other."""
        client = self._clients[version]
        ask, address = client.sendto, (ADDRESSES[version], _PORT)
        right, other = self._servers[version, True].sendto, self._servers[version, False].sendto
        to = client.getsockname()
        for case in cases:
            ask(case.query.message, address)
            for answer, is_right in case.answers:
                (right if is_right else other)(answer, to)
        return self.take()

    def send(self, version: int, queries: Sequence[Query], pieces: Stream) -> None:
        """Send the queries over a new connection, and their answers, one segment for each piece."""
        address = ADDRESSES[version], _PORT
        with socket.create_connection(address) as client, self._listeners[version].accept()[0] as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for query in queries:
                client.sendall(LENGTH.pack(len(query.message)) + query.message)
                # So the next one leaves in a segment of its own: the programs at egress count them all.
                server.recv(1 << 10)
            for piece in pieces:
                server.sendall(piece)
                with contextlib.suppress(BlockingIOError):
                    client.recv(1 << 20, socket.MSG_TRUNC | socket.MSG_DONTWAIT)

    def take(self) -> Outcome:
        """Return what became of all that was sent since the last call. Queries that wait are given up."""
        before, unmatched_before = self._results, self._unmatched
        self._results, self._unmatched = self._read()
        self._session.sweep_if_due()
        grown = Counter({result: self._results[result] - before[result] for result in Result})
        grown[Result.TIMEOUT] += grown.pop(Result.CLOSED)
        unmatched = Counter({one: self._unmatched[one] - unmatched_before[one] for one in Unmatched})
        for client in self._clients.values():
            with contextlib.suppress(BlockingIOError):
                while client.recv(1, socket.MSG_DONTWAIT | socket.MSG_TRUNC):
                    pass
        return Outcome(+grown, +unmatched)

    def close(self) -> None:
        """Close the sockets."""
        for one in (*self._clients.values(), *self._servers.values(), *self._listeners.values()):
            one.close()


@contextlib.contextmanager
def _in_own_control_group(session: Session) -> Iterator[None]:
    """Let the programs see the queries and answers of this process only: those of other programs would count, too."""
    ingress = session.probe.answers.hooks[ANSWERS]
    places = [(ingress, libbpf.CGROUP_INET_INGRESS)]
    places += [(hook, libbpf.CGROUP_INET_EGRESS) for hook in session.probe.prover.hooks if hook.attach == Attach.CGROUP]
    with own_control_group() as group:
        for hook, place in places:
            # Behind the array of the programs that are called is what attaches.
            while len(hook.links) > 1:
                os.close(hook.links.pop())
            hook.links.append(libbpf.create_link(hook.programs[0], group, place))
        yield


@contextlib.contextmanager
def running() -> Iterator[AnswerSide]:
    """Start a session with a rule for SUFFIX, and enter a network namespace."""
    config = Config(answers=AnswersConfig(timeout_ns=_NEVER, queries=_QUERIES))
    rule = ".".join(label.decode() for label in SUFFIX)
    with contextlib.closing(Session(config, [(rule, rule, 6)])) as session:
        session.start()
        assert session.answers is not None
        assert session.probe.answers.unproved == {}
        # Each query that still waits when it is time is given up.
        session.answers._timeout_ns = -_NEVER
        enter_network_namespace()
        with _in_own_control_group(session), contextlib.closing(AnswerSide(session)) as side:
            side.open()
            yield side
