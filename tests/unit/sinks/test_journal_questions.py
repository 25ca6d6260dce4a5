"""The commands of docs/journal.md, run as they are written there on a real journal of made-up queries."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from journal_file import Fields, Journal
from made_up import ANSWERED, HOSTILE, IDENTITY, NXDOMAIN, QUERY, SILENT, TOO_MANY, hostile, query
from questions import follows, questions

from dnsprobe.model import Ancestry, Container, Identity, Process, Rule
from dnsprobe.sinks.journal import ALERT_ID, OVER_LIMIT_ID, RATE_ID, RESULT_ID, fields

PAGE = (Path(__file__).parents[3] / "docs/journal.md").read_text("utf-8")
ASKED = questions(PAGE)

SYSTEMD = Process(1, 1, b"systemd")
NIGHTLY, MAKE, SHELL = Process(11843, 4, b"nightly"), Process(11845, 5, b"make"), Process(11846, 6, b"sh")
WEB = "7a1c" * 16


def below(pid: int, comm: bytes, *parents: Process) -> Ancestry:
    return Ancestry((Process(pid, 9, comm), *parents, SYSTEMD))


def entry(name: str, ancestry: Ancestry, identity: Identity, rule: str = "example.test", **changes: object) -> Fields:
    """Return the fields that dnsprobe writes and those that journald adds."""
    priority = 5 if rule == "miners.test" else 6
    qname = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    made = query(qname=qname, ancestry=ancestry, rule=Rule(1, rule, rule, priority), **changes)
    return of_dnsprobe(fields(made, identity))


def of_dnsprobe(entry: Fields, unit: str = "dnsprobe.service") -> Fields:
    return [*entry, ("_PID", "11802"), ("_UID", "64997"), ("_SYSTEMD_UNIT", unit)]


def log(message: str, *more: tuple[str, str]) -> Fields:
    own = [("MESSAGE", message), ("PRIORITY", "4"), ("SYSLOG_IDENTIFIER", "dnsprobe"), *more]
    return of_dnsprobe(own)


ROOT = Identity(user="root", loginuid=None, unit="backup.service", cgroup="/system.slice/backup.service")
IN_WEB = replace(ROOT, unit=f"docker-{WEB}.scope", container=Container(WEB, "docker", name="web"))

OLD = entry("www.example.test", below(11847, b"dig", SHELL, MAKE, NIGHTLY), ROOT, uid=0)
BY_ADA = entry("www.example.test", below(12001, b"curl", Process(12000, 7, b"bash")), IDENTITY)
BY_UNIT = entry("updates.example.test", below(12002, b"curl", SHELL, MAKE, NIGHTLY), ROOT, uid=0, repeats=4)
WATCHED = entry("pool.miners.test", below(12003, b"miner"), IN_WEB, rule="miners.test", uid=0)
LEFT = entry(
    "www.orphan.test",
    replace(
        below(12004, b"curl"),
        lineage=(Process(12004, 9, b"curl"), replace(SHELL, exited=True), replace(NIGHTLY, exited=True), SYSTEMD),
    ),
    replace(ROOT, unit="nightly.service"),
    rule="orphan.test",
    uid=0,
)
FAILED = entry("no.such.test", below(12010, b"curl"), ROOT, rule="such.test", query_id=1, outcome=NXDOMAIN, uid=0)
SLOW = entry(
    "slow.such.test",
    below(12011, b"curl"),
    ROOT,
    rule="such.test",
    query_id=2,
    outcome=replace(ANSWERED, latency_ns=812_345_678),
    uid=0,
)
NO_ANSWER = entry(
    "silent.such.test", below(12012, b"curl"), ROOT, rule="such.test", query_id=3, outcome=SILENT, is_late=True, uid=0
)
ALERTS = [
    entry("no.such.test", below(12014, b"curl"), ROOT, query_id=5, outcome=NXDOMAIN, alerts=("rcode",)),
    entry("slow.such.test", below(12015, b"curl"), ROOT, query_id=6, outcome=ANSWERED, alerts=("rcode", "latency")),
]
OFTEN = [
    of_dnsprobe(fields(replace(TOO_MANY, tree=tree, queries=queries), Identity()))
    for tree, queries in (("bash;dig", 131), ("cron;curl", 107), ("bash;dig", 120))
]
LIMIT = log("3 entries were not written to the journal: more than 3 in 30 s", ("MESSAGE_ID", OVER_LIMIT_ID))
LOST = log("journal: entries are being lost: FileNotFoundError: No such file or directory")
SUPPRESSED: Fields = [
    ("MESSAGE", "Suppressed 12 messages from system.slice"),
    # SD_MESSAGE_JOURNAL_DROPPED, systemd's src/systemd/sd-messages.h
    ("MESSAGE_ID", "a596d6fe7bfa4994828e72309e95d61e"),
    ("SYSLOG_IDENTIFIER", "systemd-journald"),
    ("_SYSTEMD_UNIT", "systemd-journald.service"),
]
FORGED = of_dnsprobe(fields(query(ancestry=below(12005, b"nobody")), Identity(user="eve")), "session-9.scope")

DAY = 86400
#: One hour from now. Entries of this time are still of "today" if midnight passes while the tests run.
SOON = time.time() + 3600

RECENT = [BY_ADA, BY_UNIT, WATCHED, LEFT, LIMIT, LOST, SUPPRESSED, FORGED]
ALL = [OLD, BY_ADA, BY_UNIT, WATCHED, LEFT, FORGED]


def messages(*entries: Fields) -> list[str]:
    return [dict(entry)["MESSAGE"] for entry in entries]


#: What each command prints, without the date, host and process that journalctl puts in front.
ANSWERS: dict[str, list[list[str]]] = {
    "Who asked for a name since yesterday?": [
        messages(BY_ADA, FORGED),
        [
            "www.example.test\tbash;curl",
            "updates.example.test\tnightly;make;sh;curl",
            "www.example.test\tnobody",
        ],
        messages(OLD, BY_ADA, BY_UNIT, FORGED),
    ],
    "Which names did a unit ask for?": [["updates.example.test", "www.example.test"]],
    "When was a name asked for first?": [
        messages(OLD),
        [
            f"{time.strftime('%FT%TZ', time.gmtime(SOON))}\t{name}"
            for name in ("updates.example.test", "pool.miners.test", "www.orphan.test")
        ],
    ],
    "What happens at a watched domain now?": [messages(WATCHED), messages(WATCHED)],
    "Which process trees ask most?": [
        ["5\tnightly;make;sh;curl", "1\tnightly;make;sh;dig", "1\tbash;curl", "1\tminer", "1\tcurl", "1\tnobody"]
    ],
    "What did a user ask for?": [messages(BY_ADA), messages(BY_ADA), ["      4 root", "      1 eve", "      1 ada"]],
    "What did a container ask for?": [messages(WATCHED), messages(WATCHED)],
    "Which queries come from below a process?": [
        messages(OLD, BY_UNIT),
        messages(OLD, BY_UNIT, LEFT),
        ["www.orphan.test\tnightly;sh;curl"],
    ],
    "What is not in the journal?": [messages(LIMIT), messages(LOST), messages(SUPPRESSED)],
    "Whom to believe": [messages(OLD, BY_ADA, BY_UNIT, WATCHED, LEFT)],
    "JSON": [
        [
            "\t".join(dict(entry).get(f"DNSPROBE_{name}", "-") for name in ("QNAME", "QTYPE", "TREE", "EXE"))
            for entry in ALL
        ],
        [
            # journald returns the values of an entry in the order in which it stored each value first.
            '[{"pid":"11846","comm":"sh"},{"pid":"11845","comm":"make"},{"pid":"11843","comm":"nightly"},'
            '{"pid":"1","comm":"systemd"}]',
            '[{"pid":"1","comm":"systemd"},{"pid":"12000","comm":"bash"}]',
            '[{"pid":"11846","comm":"sh"},{"pid":"11845","comm":"make"},{"pid":"11843","comm":"nightly"},'
            '{"pid":"1","comm":"systemd"}]',
            *['[{"pid":"1","comm":"systemd"}]'] * 3,
        ],
    ],
}

CASES = [
    pytest.param(command, answer, id=f"{heading} {number}")
    for heading, answers in ANSWERS.items()
    for number, (command, answer) in enumerate(zip(ASKED[heading], answers, strict=True))
]


#: Those about results are asked of a journal of their own.
OF_RESULTS = {
    "Which queries had an error, or no answer?": [messages(FAILED), messages(NO_ANSWER)],
    "Which queries were alerts?": [messages(*ALERTS), messages(ALERTS[1])],
    "Which process trees asked too often?": [["131\tbash;dig", "107\tcron;curl"]],
    "Which answers were slow?": [["812\tslow.such.test\t127.0.0.53"]],
    "What was a name resolved to?": [
        ["B.example.test. 300 IN A 192.0.2.7", "www.example.test. 60 IN CNAME b.example.test."]
    ],
}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    made = Journal(tmp_path_factory.mktemp("journal"))
    made.write([(time.time() - 3 * DAY, OLD), *((SOON, entry) for entry in RECENT)])
    return made


def shown_message(line: str) -> str:
    return re.sub(r"^[A-Z][a-z]{2} [ 0-9]{2} [0-9:]{8} host [a-z-]+(\[[0-9]+\])?: ", "", line)


def test_each_question_has_an_answer_here() -> None:
    assert ASKED.keys() == ANSWERS.keys() | OF_RESULTS.keys() | {"Acting on an entry"}


@pytest.mark.parametrize("heading", OF_RESULTS)
def test_answers_about_results(heading: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    resolved = entry("www.example.test", below(12013, b"curl"), ROOT, query_id=4, outcome=ANSWERED)
    journal.write([(SOON, made) for made in (BY_ADA, FAILED, SLOW, NO_ANSWER, resolved)])
    if "alerts" in heading:
        journal.write([(SOON, made) for made in ALERTS])
    journal.write([(SOON, made) for made in OFTEN])
    for command, answer in zip(ASKED[heading], OF_RESULTS[heading], strict=True):
        assert [shown_message(line) for line in journal.run("bash", "-euc", command).splitlines()] == answer


@pytest.mark.parametrize(("command", "answer"), [case for case in CASES if not follows(str(case.values[0]))])
def test_answers(command: str, answer: list[str], journal: Journal) -> None:
    assert [shown_message(line) for line in journal.run("bash", "-euc", command).splitlines()] == answer


def test_follow(tmp_path: Path) -> None:
    """Existing entries are shown, then new ones, but none of a lower priority."""
    journal = Journal(tmp_path)
    journal.write([(SOON, entry) for entry in RECENT])
    (command,) = [command for commands in ASKED.values() for command in commands if follows(command)]
    with subprocess.Popen(
        journal.command("timeout", "60", "bash", "-euc", command),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert shown_message(process.stdout.readline().rstrip("\n")) == messages(WATCHED)[0]
            again = entry("again.miners.test", below(12009, b"miner"), IN_WEB, rule="miners.test")
            journal.write([(SOON, BY_ADA), (SOON, again)])
            assert shown_message(process.stdout.readline().rstrip("\n")) == messages(again)[0]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("raw", HOSTILE)
def test_hostile_names_stay_in_their_line(raw: bytes, tmp_path: Path) -> None:
    """Each answer has as many lines with a hostile process as with another one, and nothing that is not printable."""
    journal = Journal(tmp_path)
    journal.write([(SOON, of_dnsprobe(fields(*hostile(raw))))])
    for heading in ("Which process trees ask most?", "JSON", "What did a user ask for?"):
        command = ASKED[heading][-1 if heading == "What did a user ask for?" else 0]
        (line,) = journal.run("bash", "-euc", command).splitlines()
        assert line.replace("\t", "").isprintable()


def test_the_id_is_that_of_queries() -> None:
    (message_id,) = {value for name, value in fields(QUERY, IDENTITY) if name == "MESSAGE_ID"}
    used = set(re.findall("MESSAGE_ID=([0-9a-f]{32})", PAGE))
    assert used == {message_id, RESULT_ID, ALERT_ID, RATE_ID, OVER_LIMIT_ID, dict(SUPPRESSED)["MESSAGE_ID"]}
