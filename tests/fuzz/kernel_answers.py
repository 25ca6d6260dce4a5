"""Compare what the kernel side makes of answers with the reference parser, on generated answers and streams.

Usage, as root: .venv/bin/python tests/fuzz/kernel_answers.py [DATAGRAMS [STREAMED [SEED]]]

Tries the inputs in tests/fuzz/kernel_corpus/answers first. Then it sends DATAGRAMS (100000) queries over UDP, each with
an answer, and STREAMED (20000) over TCP, whose answers come in streams that are cut into segments at any octet. It
compares the result of each query, and the reason of each answer that fits none, with tests/host/answer_reference.py.

Prints the seed, and how often each result came. At a difference, it prints the input and ends with status 1. With
--keep, inputs of new kinds go into the corpus.
"""

from __future__ import annotations

import bisect
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "host"))

from answer_reference import ANY, Answer, Unreadable, parse_answer
from answer_side import SUFFIX, AnswerSide, Case, Model, Outcome, Stream, running, stream_model
from odd_answers import QTYPES, Answers, Query, names
from reference import LENGTH

_CORPUS = Path(__file__).with_name("kernel_corpus") / "answers"
#: Queries that are compared together, and names that are asked for.
_AT_ONCE, _NAMES = 3000, 300
#: Queries over a connection.
_IN_STREAM, _STREAMS_AT_ONCE = (1, 3, 10, 40, 100), 20
#: Messages that begin in a segment at most, empty ones as well: the programs handle 132.
_IN_SEGMENT = 100
_PROGRESS = 100000
#: Characters of an input that is kept.
_LONGEST_KEPT = 700


class DifferenceError(Exception):
    """The kernel side and the reference differ; the message has the input."""


def model_of(cases: Sequence[Case]) -> Outcome:
    """Return what has to become of cases."""
    model = Model()
    for case in cases:
        model.ask(case.query)
        for answer, is_right in case.answers:
            model.answer(answer, is_right=is_right)
    return Outcome(+model.expected.results, +model.expected.unmatched)


def feature(case: Case) -> tuple[object, ...]:
    """Return what kind of case it is, coarsely: one of each kind is kept."""
    answer, is_right = case.answers[0]
    parsed = parse_answer(answer)
    counts = tuple(min(answer[at + 1], 2) for at in (6, 8, 10)) if len(answer) >= 12 else ()
    if isinstance(parsed, Answer):
        fits = parsed.id == case.query.id and parsed.question.qname == case.query.qname.lower()
        return parsed.result, is_right, fits, case.query.qtype == ANY, *counts
    return isinstance(parsed, Unreadable), len(answer) < 12, *counts


def stream(rng: random.Random, answers: Sequence[bytes]) -> Stream:
    """Return answers in a stream, cut into segments. A few lengths are wrong."""
    whole = bytearray()
    wrong = rng.random() < 0.2
    for answer in answers:
        length = len(answer)
        if wrong and rng.random() < 0.05:
            length = rng.choice((0, 1, 11, 12, 16, 17, length + 1, max(length - 1, 0), length + 300))
        whole += LENGTH.pack(length) + answer
    longest = rng.choice((1, 2, 40, 300, 2000, 8000))
    pieces = []
    starts = _starts(whole)
    at = 0
    while at < len(whole):
        end = at + rng.randrange(longest) + 1
        end = min(end, *starts[bisect.bisect_left(starts, at) + _IN_SEGMENT :][:1], len(whole))
        pieces.append(bytes(whole[at:end]))
        at = end
    return pieces


def _starts(octets: bytes | bytearray) -> list[int]:
    """Return where the messages of a stream begin."""
    starts = [0]
    while (at := starts[-1]) + LENGTH.size <= len(octets):
        starts.append(at + LENGTH.size + int.from_bytes(octets[at : at + LENGTH.size], "big"))
    return starts


class Search:
    """Goes on until enough answers were tried."""

    def __init__(self, side: AnswerSide, rng: random.Random, *, keep: bool) -> None:
        self._side, self._rng, self._keep = side, rng, keep
        self._names = names(rng, SUFFIX, _NAMES)
        self._answers = Answers(rng, [*names(rng, (b"other", *SUFFIX), 100), *names(rng, (b"no", b"rule"), 100)])
        self._number = 0
        #: How often each result came, by its name.
        self.results = Counter[str]()

    def _query(self) -> Query:
        self._number += 1
        return Query(self._number, self._rng.choice(self._names), self._rng.choice(QTYPES))

    def _case(self) -> Case:
        query = self._query()
        answers = [(self._answers.next(query), self._rng.random() >= 0.03)]
        if self._rng.random() < 0.1:
            answers.append((self._rng.choice((answers[0][0], self._answers.plain(query))), True))
        return Case(query, tuple(answers))

    def try_corpus(self) -> int:
        """Try the inputs in the corpus, and return how many there are."""
        cases = [Case.of(line) for line in _CORPUS.read_text("ascii").splitlines()] if _CORPUS.exists() else []
        for version in (4, 6):
            self._compare(version, cases)
        return len(cases)

    def try_datagrams(self, number: int) -> None:
        """Try new answers over UDP."""
        kept = {feature(case): case for case in map(Case.of, _lines())}
        for at in range(0, number, _AT_ONCE):
            cases = [self._case() for _ in range(min(_AT_ONCE, number - at))]
            self._compare(self._rng.choice((4, 6)), cases)
            if at // _PROGRESS < (at + _AT_ONCE) // _PROGRESS:
                print(f"{at + len(cases)} datagrams so far", flush=True)
            for case in cases if self._keep else ():
                if len(case.text) < _LONGEST_KEPT:
                    kept.setdefault(feature(case), case)
        if self._keep:
            _CORPUS.write_text("".join(f"{line}\n" for line in sorted(case.text for case in kept.values())), "ascii")

    def _compare(self, version: int, cases: Sequence[Case]) -> None:
        expected, seen = model_of(cases), self._side.run(version, cases)
        self._note(seen)
        if expected == seen:
            return
        for case in cases:
            alone = model_of([case]), self._side.run(version, [case])
            if alone[0] != alone[1]:
                raise DifferenceError(f"IPv{version} {case.text}\nexpected {alone[0]}\nseen {alone[1]}")
        raise DifferenceError(f"a round of {len(cases)}, but none alone\nexpected {expected}\nseen {seen}")

    def _note(self, seen: Outcome) -> None:
        self.results.update({result.name: times for result, times in seen.results.items()})
        self.results.update({reason.name.lower(): times for reason, times in seen.unmatched.items()})

    def try_streams(self, number: int) -> None:
        """Try new answers over TCP."""
        while number > 0:
            version = self._rng.choice((4, 6))
            rounds = []
            for _ in range(_STREAMS_AT_ONCE):
                queries = [self._query() for _ in range(min(self._rng.choice(_IN_STREAM), number))]
                number -= len(queries)
                if queries:
                    answers = [self._answers.next(query)[:9000] for query in queries]
                    rounds.append((queries, stream(self._rng, answers)))
            self._compare_streams(version, rounds)

    def _compare_streams(self, version: int, rounds: Sequence[tuple[Sequence[Query], Stream]]) -> None:
        expected = Outcome()
        for queries, pieces in rounds:
            one = stream_model(queries, pieces)
            expected.results.update(one.results)
            expected.unmatched.update(one.unmatched)
            self._side.send(version, queries, pieces)
        seen = self._side.take()
        self._note(seen)
        if (+expected.results, +expected.unmatched) == (seen.results, seen.unmatched):
            return
        for queries, pieces in rounds:
            one = stream_model(queries, pieces)
            self._side.send(version, queries, pieces)
            seen = self._side.take()
            if (+one.results, +one.unmatched) != (seen.results, seen.unmatched):
                asked = " ".join(query.message.hex() for query in queries)
                text = " ".join(piece.hex() for piece in pieces)
                raise DifferenceError(f"expected {one}\nseen {seen}\nqueries {asked}\nstream {text}")
        raise DifferenceError(f"a round of {len(rounds)} streams, but none of them alone")


def _lines() -> list[str]:
    return _CORPUS.read_text("ascii").splitlines() if _CORPUS.exists() else []


def main(arguments: list[str]) -> None:
    """Run, and print what came of it."""
    keep = "--keep" in arguments
    numbers = [int(argument) for argument in arguments if argument != "--keep"]
    datagrams, streamed, seed = [*numbers, *(100000, 20000, int(time.time()))[len(numbers) :]]
    print(f"seed {seed}", flush=True)
    with running() as side:
        search = Search(side, random.Random(seed), keep=keep)
        try:
            print(f"corpus: {search.try_corpus()} inputs", flush=True)
            for what, call, number in (
                ("datagrams", search.try_datagrams, datagrams),
                ("streams", search.try_streams, streamed),
            ):
                search.results.clear()
                begin = time.monotonic()
                call(number)
                print(f"{what}: {number} queries in {time.monotonic() - begin:.0f} s: no difference", flush=True)
                for result, times in search.results.most_common():
                    print(f"{times:10} {result}", flush=True)
        except DifferenceError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
