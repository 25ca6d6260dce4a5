"""Compare the parser of the kernel side with the reference parser on generated and mutated messages and streams.

Usage, as root: .venv/bin/python tests/fuzz/kernel_parser.py [DATAGRAMS [STREAMED [SEED]]]

Tries the inputs in tests/fuzz/kernel_corpus first. Then it gives DATAGRAMS (100000) messages to the programs at egress
as UDP, and a twentieth of that in packets of several (UDP_SEGMENT). It sends STREAMED (100000) messages in TCP streams
that are cut into segments at any octet. Each goes over IPv4 or IPv6. Compares all events and statistics with
tests/host/reference.py. In a part of the rounds, a rule matches only some of the names: then the program finds most
names in place, without a copy of the packet.

Prints the seed, and how often each outcome came. At a difference, it prints the input and ends with status 1. With
--keep, inputs of new kinds go into the corpus.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from kernel_side import LONGEST, RULE, TCP, UDP, KernelSide, Outcome, Seen, running
from odd_messages import ODD_LENGTHS, Messages
from reference import HEADER, LENGTH, Question, Refusal, parse, parse_stream, wire
from test_kernel_parser import ALL_NAMES, STATISTICS

from dnsprobe.kernel.abi import Kind, Statistic
from dnsprobe.names.ruleset import TrieEntry

_CORPUS = Path(__file__).with_name("kernel_corpus")
_DATAGRAMS, _STREAMS = _CORPUS / "datagrams", _CORPUS / "streams"
_SUFFIX = wire([b"fuzz", b"test"])
#: Messages that are compared together, and how many of them are made from one other message by small changes.
_AT_ONCE, _MUTANTS = 3000, 7
#: Messages that begin in one segment at most. The programs handle more, but not for certain with an event each.
_IN_SEGMENT = 18
#: Messages of a stream, and characters of one that is kept.
_IN_STREAM, _LONGEST_KEPT = (4, 10, 120, 120, 120, 200), 2500
_STREAMS_AT_ONCE = 20
#: Datagrams of one packet at most, for the same reason: one that is not read takes two of 32 runs.
_IN_PACKET = 12

#: Messages between two lines about the progress.
_PROGRESS = 100000

Stream = list[tuple[bytes, bool]]
_Result = Question | Refusal


class DifferenceError(Exception):
    """The kernel side and the reference differ; the message has the input."""


class Expectation:
    """What the programs do with messages, under one set of rules. ``some`` is True if the rule is for _SUFFIX only."""

    def __init__(self, *, some: bool) -> None:
        self.some = some
        self.rules = [TrieEntry(_SUFFIX, 2, RULE, RULE)] if some else [ALL_NAMES]

    def kind(self, name: bytes) -> Kind | None:
        """Return the kind of the event of a query, None if it causes none."""
        if not self.some:
            return Kind.QUERY
        if not name.endswith(_SUFFIX):
            return None
        at = 0
        while at < len(name) - len(_SUFFIX):
            at += 1 + name[at]
        # Inside a label are the octets of the suffix: user space decides.
        return Kind.QUERY if at == len(name) - len(_SUFFIX) else Kind.UNDECIDED

    def of(self, results: Sequence[_Result], transport: int, version: int) -> Outcome:
        """Return the outcome of messages, by the results of the reference."""
        events: list[Seen] = []
        statistics = Counter[Statistic]()
        for result in results:
            if isinstance(result, Question):
                kind = self.kind(result.qname)
                if kind is not None:
                    events.append(Seen((kind, result.qtype, result.qclass, transport, version, result.qname)))
            elif result.counted:
                statistic = STATISTICS[result.counted]
                statistics[statistic] += 1
                # No server answers a response over UDP.
                if statistic != Statistic.OTHER_RESPONSE or transport == TCP:
                    events.append(Seen((Kind.UNREAD, statistic, 0, transport, version, b"")))
        if events:
            statistics[Statistic.EVENTS] = len(events)
        return Outcome(events, statistics)


def mutant(rng: random.Random, message: bytes, longest: int = LONGEST) -> bytes:
    """Return a message, or a stream, with one to three changes. It is quicker than Messages.mutated()."""
    changed = bytearray(message)
    rand = rng.random
    for _ in range(1 + int(rand() * 3)):
        at = int(rand() * (len(changed) + 1))
        kind = int(rand() * 8)
        if at >= len(changed) or kind == 0:
            changed[at:at] = ODD_LENGTHS[int(rand() * len(ODD_LENGTHS))].to_bytes(1 + (rand() < 0.5), "big")
        elif kind <= 2:
            changed[at] ^= 1 << int(rand() * 8)
        elif kind == 3:
            changed[at] = ODD_LENGTHS[int(rand() * len(ODD_LENGTHS))]
        elif kind == 4:
            changed[at : at + 2] = bytes((0xC0 | int(rand() * 1.05), int(rand() * min(len(changed) + 4, 256))))
        elif kind == 5:
            del changed[at : at + 1 + int(rand() * 4)]
        elif kind == 6:
            changed[at] = int(rand() * 256)
        else:
            changed[at:at] = changed[at : at + 1 + int(rand() * 40)]
    # Most changes of the flags only make it another kind of message.
    if rand() < 0.8:
        changed[2 : HEADER.size] = message[2 : HEADER.size]
    return bytes(changed[:longest])


def messages(rng: random.Random, number: int) -> list[bytes]:
    """Return new messages: generated ones, and several mutants of each."""
    source = Messages(rng)
    found: list[bytes] = []
    while len(found) < number:
        message = source.next()[:LONGEST]
        found.append(message)
        found += [mutant(rng, message) for _ in range(_MUTANTS)]
    return found[:number]


def packet(rng: random.Random, payloads: Sequence[bytes]) -> tuple[bytes, int]:
    """Return a packet of several datagrams, and the size of each but the last."""
    size = rng.choice((rng.randrange(1, 40), *(len(payload) or 1 for payload in payloads)))
    *first, last = (payload[:size] for payload in payloads)
    return b"".join(payload.ljust(size, b"\0") for payload in first) + (last or b"\0"), size


def cut(whole: bytes, size: int) -> list[bytes]:
    """Return the datagrams of a packet."""
    return [whole[at : at + size] for at in range(0, len(whole), size)]


def octets(stream: Stream) -> bytes:
    """Return the octets of a stream that a server reads."""
    return b"".join(piece for piece, is_urgent in stream if not is_urgent)


def stream(rng: random.Random, payloads: Sequence[bytes]) -> Stream:
    """Return a stream with these messages, cut into segments. A few lengths are wrong; an octet may be urgent."""
    whole = bytearray()
    wrong = rng.random() < 0.2
    for payload in payloads:
        padded = payload + bytes(rng.randrange(600)) if rng.random() < 0.02 else payload
        length = len(padded)
        if wrong and rng.random() < 0.05:
            length = rng.choice((0, 1, 11, 12, 16, 17, length + 1, max(length - 1, 0), length + 300))
        whole += LENGTH.pack(length) + padded
    if rng.random() < 0.1:
        whole = bytearray(mutant(rng, bytes(whole), len(whole)))
    starts = [at for at, _ in parse_stream(bytes(whole))]
    pieces: Stream = []
    longest = rng.choice((2, 40, 300, 2000, 2000, 8000, 8000))
    at = number = 0
    while at < len(whole):
        end = at + rng.randrange(longest) + 1
        if rng.random() < 0.3:
            end = rng.choice(starts[number : number + _IN_SEGMENT] or [end]) + rng.randrange(-1, 4)
        if number + _IN_SEGMENT < len(starts):
            end = min(end, starts[number + _IN_SEGMENT])
        end = max(min(end, len(whole)), at + 1)
        pieces.append((bytes(whole[at:end]), False))
        at = end
        while number < len(starts) and starts[number] < at:
            number += 1
    if rng.random() < 0.1:
        pieces.insert(rng.randrange(len(pieces) + 1), (rng.randbytes(1), True))
    return pieces


def feature(payload: bytes, result: _Result) -> tuple[object, ...]:
    """Return what kind of message it is, coarsely: one of each kind is kept."""
    pointers, forward = 0, False
    at = HEADER.size
    while at + 1 < len(payload) and pointers < 8:
        if payload[at] >= 0xC0:
            target = (payload[at] - 0xC0) * 256 + payload[at + 1]
            pointers, forward = pointers + 1, forward or target > at
            at = target
        elif payload[at]:
            at += payload[at] + 1
        else:
            break
    if isinstance(result, Question):
        return "question", pointers, forward, len(result.qname).bit_length(), len(result.qname) >= 254
    return result.counted, result.reason[:12], pointers, forward


def _stream_feature(pieces: Stream) -> tuple[object, ...]:
    """Return what kind of stream it is, as feature() does."""
    counted = {getattr(result, "counted", "question") for _, result in parse_stream(octets(pieces))}
    return len(counted), "question" in counted, len(pieces).bit_length(), any(is_urgent for _, is_urgent in pieces)


def _differ(expected: Outcome, seen: Outcome) -> bool:
    return expected.events != seen.events or expected.statistics != seen.statistics


def _compare_datagrams(
    kernel: KernelSide, expectation: Expectation, version: int, payloads: Sequence[bytes], results: Sequence[_Result]
) -> None:
    expected, seen = expectation.of(results, UDP, version), kernel.run(version, payloads)
    # The name is new only once; whether there was room for it is not the matter.
    if not _differ(expected, seen):
        return
    for payload, result in zip(payloads, results, strict=True):
        expected, seen = expectation.of([result], UDP, version), kernel.run(version, [payload])
        if _differ(expected, seen):
            raise DifferenceError(f"datagram {payload.hex()}\n{result}\nexpected {expected}\nseen {seen}")
    raise DifferenceError(f"a round of {len(payloads)} datagrams, but none of them alone")


def _compare_streams(
    kernel: KernelSide, expectation: Expectation, version: int, streams: Sequence[Stream]
) -> list[_Result]:
    results = [[result for _, result in parse_stream(octets(pieces))] for pieces in streams]
    for pieces in streams:
        kernel.send(version, pieces)
    every = list(itertools.chain.from_iterable(results))
    if not _differ(expectation.of(every, TCP, version), kernel.take()):
        return every
    for pieces, some in zip(streams, results, strict=True):
        expected = expectation.of(some, TCP, version)
        kernel.send(version, pieces)
        seen = kernel.take()
        if _differ(expected, seen):
            raise DifferenceError(f"stream {_text(pieces)}\nexpected {expected}\nseen {seen}")
    raise DifferenceError(f"a round of {len(streams)} streams, but none of them alone")


def _text(pieces: Stream) -> str:
    return " ".join(("!" if is_urgent else "") + piece.hex() for piece, is_urgent in pieces)


def _pieces(text: str) -> Stream:
    return [(bytes.fromhex(word.lstrip("!")), word.startswith("!")) for word in text.split()]


def _lines(path: Path) -> list[str]:
    return path.read_text("ascii").splitlines() if path.exists() else []


class Search:
    """Goes on until enough messages were tried. ``keep``: inputs of new kinds go into the corpus."""

    def __init__(self, kernel: KernelSide, rng: random.Random, *, keep: bool) -> None:
        self._kernel, self._rng, self._keep = kernel, rng, keep
        self.expectation = Expectation(some=False)
        self.outcomes: dict[str, Counter[str]] = {"datagrams": Counter(), "packets": Counter(), "streams": Counter()}

    def try_corpus(self) -> int:
        """Try the inputs in the corpus, and return how many there are."""
        payloads = [bytes.fromhex(line) for line in _lines(_DATAGRAMS)]
        streams = [_pieces(line) for line in _lines(_STREAMS)]
        for some in (True, False):
            self._use(Expectation(some=some))
            for version in (4, 6):
                _compare_datagrams(self._kernel, self.expectation, version, payloads, [parse(one) for one in payloads])
                _compare_streams(self._kernel, self.expectation, version, streams)
        return len(payloads) + len(streams)

    def try_datagrams(self, number: int) -> None:
        """Try new messages as datagrams."""
        kept = {feature(payload, parse(payload)): payload for payload in map(bytes.fromhex, _lines(_DATAGRAMS))}
        for turn, size in enumerate(_rounds(number, _AT_ONCE)):
            self._change_rules(turn)
            payloads = messages(self._rng, size)
            results = [parse(payload) for payload in payloads]
            if self.expectation.some:
                # The second time, the program finds the outcome of the first.
                payloads, results = payloads * 2, results * 2
            _compare_datagrams(self._kernel, self.expectation, self._rng.choice((4, 6)), payloads, results)
            self._note("datagrams", results[:size])
            if self._keep and turn % 20 == 0:
                for payload, result in zip(payloads, results, strict=True):
                    found = feature(payload, result)
                    if len(payload) < len(kept.get(found, payload + b"x")):
                        kept[found] = payload
        if self._keep:
            _write(_DATAGRAMS, sorted(payload.hex() for payload in kept.values()))

    def try_packets(self, number: int) -> None:
        """Try new messages in packets of several datagrams."""
        for turn, size in enumerate(_rounds(number, _AT_ONCE)):
            self._change_rules(turn)
            source = iter(messages(self._rng, size))
            while payloads := list(itertools.islice(source, self._rng.randrange(2, _IN_PACKET))):
                whole, segment = packet(self._rng, payloads)
                datagrams = cut(whole[:LONGEST], segment)[:_IN_PACKET]
                version, results = self._rng.choice((4, 6)), [parse(datagram) for datagram in datagrams]
                whole = b"".join(datagrams)
                expected = self.expectation.of(results, UDP, version)
                seen = self._kernel.run(version, [whole], segment)
                if _differ(expected, seen):
                    raise DifferenceError(f"packet {segment} {whole.hex()}\nexpected {expected}\nseen {seen}")
                self._note("packets", results)

    def try_streams(self, number: int) -> None:
        """Try new messages in streams."""
        kept = {_stream_feature(pieces): pieces for pieces in map(_pieces, _lines(_STREAMS))}
        left = number
        for turn in itertools.count():
            if left <= 0:
                break
            self._change_rules(turn // 8)
            sizes = [self._rng.choice(_IN_STREAM) for _ in range(_STREAMS_AT_ONCE)]
            left -= sum(sizes)
            streams = [stream(self._rng, messages(self._rng, size)) for size in sizes]
            self._note("streams", _compare_streams(self._kernel, self.expectation, self._rng.choice((4, 6)), streams))
            for pieces in streams if self._keep else ():
                if len(_text(pieces)) < _LONGEST_KEPT:
                    kept.setdefault(_stream_feature(pieces), pieces)
        if self._keep:
            _write(_STREAMS, sorted(map(_text, kept.values())))

    def _note(self, what: str, results: Sequence[_Result]) -> None:
        before = self.outcomes[what].total() // _PROGRESS
        self.outcomes[what].update(map(_reason, results))
        if self.outcomes[what].total() // _PROGRESS > before:
            print(f"{what}: {self.outcomes[what].total()} so far", flush=True)

    def _change_rules(self, turn: int) -> None:
        if self.expectation.some != (turn % 4 == 3):
            self._use(Expectation(some=turn % 4 == 3))

    def _use(self, expectation: Expectation) -> None:
        self.expectation = expectation
        self._kernel.probe.set_rules(expectation.rules)


def _rounds(number: int, most: int) -> Iterator[int]:
    for at in range(0, number, most):
        yield min(most, number - at)


def _reason(result: _Result) -> str:
    return "question" if isinstance(result, Question) else result.reason


def _write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "ascii")


def _report(what: str, outcomes: Counter[str], begin: float) -> None:
    print(f"{what}: {outcomes.total()} messages in {time.monotonic() - begin:.0f} s: no difference", flush=True)
    kinds = Counter[str]()
    for outcome, times in outcomes.items():
        kinds[re.sub(r"\d+", "N", outcome)] += times
    for outcome, times in kinds.most_common():
        print(f"{times:10} {outcome}", flush=True)


def main(arguments: list[str]) -> None:
    """Run, and print what came of it."""
    keep = "--keep" in arguments
    numbers = [int(argument) for argument in arguments if argument != "--keep"]
    datagrams, streamed, seed = [*numbers, *(100000, 100000, int(time.time()))[len(numbers) :]]
    print(f"seed {seed}", flush=True)
    with running([ALL_NAMES]) as kernel:
        search = Search(kernel, random.Random(seed), keep=keep)
        parts = (
            ("datagrams", search.try_datagrams, datagrams),
            ("packets", search.try_packets, datagrams // 20),
            ("streams", search.try_streams, streamed),
        )
        try:
            print(f"corpus: {search.try_corpus()} inputs", flush=True)
            for what, call, number in parts:
                begin = time.monotonic()
                call(number)
                _report(what, search.outcomes[what], begin)
        except DifferenceError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
