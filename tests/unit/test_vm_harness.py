"""The harness of the virtual machines: its pure parts and its cache, without any machine."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from archive import Source, carried_settings, dependencies, host_sources, parse_deb822, parse_list, sources_for
from children import Children, CommandError, Stopped
from kernels import GUESTS, choose
from machine import Ending, Fate
from products import Cache, PrintLine, Product, read_manifest, recipe, write_manifest
from report import Counts, Result, count, judge, read_counts, summary

DEB822 = """\
# comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm
  bookworm-updates
# inside of a paragraph
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg


Types: deb-src
URIs: http://mirror.test/source
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://mirror.test/disabled
Suites: bookworm
Components: main

types: deb
uris: http://mirror.test/debian-security
suites: bookworm-security
components: main
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
"""

MAIN = Source(("http://mirror.test/debian",), ("bookworm",), ("main",), "/key.gpg")
SECURITY = Source(("http://security.test/",), ("bookworm-security",), ("main",), "/security.gpg")


def test_deb822_yields_enabled_binary_sources() -> None:
    first, second = parse_deb822(DEB822)
    assert first == Source(
        ("http://mirror.test/debian",),
        ("bookworm", "bookworm-updates"),
        ("main", "contrib"),
        "/usr/share/keyrings/debian-archive-keyring.gpg",
    )
    assert second.suites == ("bookworm-security",)
    assert second.signed_by.split("\n") == ["", "-----BEGIN PGP PUBLIC KEY BLOCK-----", ".", "mQINBF"]


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("deb http://m.test/debian sid main", Source(("http://m.test/debian",), ("sid",), ("main",))),
        (
            "deb  [arch=amd64 signed-by=/k.gpg]  http://m.test/debian\tsid  main contrib # comment",
            Source(("http://m.test/debian",), ("sid",), ("main", "contrib"), "/k.gpg"),
        ),
        ("deb-src http://m.test/debian sid main", None),
        ("# deb http://m.test/debian sid main", None),
        ("deb http://m.test/debian", None),
        ("", None),
    ],
)
def test_a_line_of_sources_list_is_parsed(line: str, source: Source | None) -> None:
    assert list(parse_list(line)) == ([source] if source else [])


def test_the_sources_of_the_host_come_from_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.test/debian sid main\n")
    (folder / "b.sources").write_text(DEB822)
    (folder / "c.list").write_text("deb http://c.test/debian sid main\n")
    (folder / "d.list.save").write_text("deb http://d.test/debian sid main\n")
    assert [source.uris[0].split("/")[2] for source in host_sources(tmp_path)] == [
        "a.test",
        "mirror.test",
        "mirror.test",
        "c.test",
    ]


def test_a_stable_release_has_updates_and_security() -> None:
    assert list(parse_deb822(sources_for("trixie", [SECURITY, MAIN]))) == [
        Source(MAIN.uris, ("trixie", "trixie-updates"), ("main",), "/key.gpg"),
        Source(SECURITY.uris, ("trixie-security",), ("main",), "/security.gpg"),
    ]


def test_a_host_without_security_and_keys_gets_the_usual_ones() -> None:
    bare = Source(("http://mirror.test/debian/",), ("stable",), ("main",))
    made = list(parse_deb822(sources_for("bullseye", [bare])))
    assert [source.uris for source in made] == [
        ("http://mirror.test/debian/",),
        ("http://mirror.test/debian-security",),
    ]
    assert {source.signed_by for source in made} == {"/usr/share/keyrings/debian-archive-keyring.gpg"}


def test_sid_has_one_suite() -> None:
    assert list(parse_deb822(sources_for("sid", [MAIN, SECURITY]))) == [
        Source(MAIN.uris, ("sid",), ("main",), "/key.gpg")
    ]


def test_a_key_block_survives_both_ways() -> None:
    main = Source(MAIN.uris, MAIN.suites, MAIN.components, "\n-----BEGIN\n.\nmQ")
    assert next(parse_deb822(sources_for("sid", [main]))).signed_by == main.signed_by


@pytest.mark.parametrize(
    "other",
    [
        Source(("http://packages.test",), ("bookworm",), ("main",)),
        Source(("http://mirror.test/debian",), ("bookworm-backports",), ("main",)),
        Source(("http://packages.test/linux/debian",), ("bookworm",), ("stable",)),
    ],
)
def test_archives_of_other_projects_are_no_mirror_of_debian(other: Source) -> None:
    with pytest.raises(Exception, match=r"sources\.list\.d"):
        sources_for("sid", [other])


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("", []),
        ("linux-image-6.1.0-56-amd64 (= 6.1.192-2)", ["linux-image-6.1.0-56-amd64"]),
        ("kmod, linux-base (>= 4.3~) , initramfs-tools | dracut", ["kmod", "linux-base", "initramfs-tools"]),
        ("python3:any (>= 3.9), g++ [amd64]", ["python3", "g++"]),
    ],
)
def test_dependencies_have_neither_versions_nor_alternatives(field: str, names: list[str]) -> None:
    assert dependencies(field) == names


def test_only_settings_for_the_way_to_the_mirror_are_carried() -> None:
    kept = 'Acquire::http::Proxy "http://proxy.test:3142";\nAcquire::Check-Date "false";\n'
    dump = f'APT::Architecture "amd64";\nAcquire::IndexTargets "";\nAcquire::Languages "none";\n{kept}Dir "/";\n'
    assert carried_settings(dump) == kept


def test_a_recipe_changes_with_each_part(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    recipes = [recipe("a", "b"), recipe("ab"), recipe("a", "b", ""), recipe("b", "a"), recipe("a", file)]
    file.write_text("other")
    recipes.append(recipe("a", file))
    assert len(set(recipes)) == len(recipes)
    assert recipe("a", "b") == recipes[0]
    assert all(len(digits) == 12 for digits in recipes)


class Made:
    """A product that counts how often it was built."""

    def __init__(self) -> None:
        self.times = 0

    def build(self, folder: Path, _print_line: PrintLine) -> None:
        self.times += 1
        (folder / "times").write_text(str(self.times))

    def product(self, digits: str = "aaa") -> Product:
        return Product("thing", digits, self.build)


def times(folder: Path) -> str:
    return (folder / "times").read_text()


def test_a_product_is_built_once(tmp_path: Path) -> None:
    made = Made()
    lines: list[str] = []
    first = Cache(tmp_path).get(made.product(), lines.append)
    assert Cache(tmp_path).get(made.product(), lines.append) == first
    assert (made.times, lines) == (1, ["built in 0 s"])


def test_a_product_stays_while_a_run_uses_it(tmp_path: Path) -> None:
    made = Made()
    other_run = Cache(tmp_path)
    first = other_run.get(made.product(), lambda _: None)
    second = Cache(tmp_path, refresh=True).get(made.product(), lambda _: None)
    assert (times(first), times(second)) == ("1", "2")
    other_run.close()
    third = Cache(tmp_path).get(made.product("bbb"), lambda _: None)
    assert times(third) == "3"
    assert not first.exists()
    assert second.exists()  # by a run that has not closed its cache


def test_a_refreshed_product_replaces_the_old_one(tmp_path: Path) -> None:
    made = Made()
    kept = Cache(tmp_path)
    kept.get(made.product(), lambda _: None)
    Cache(tmp_path, refresh=True).get(made.product(), lambda _: None)
    assert times(Cache(tmp_path).get(made.product(), lambda _: None)) == "2"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path, _print_line: PrintLine) -> None:
        (folder / "half").touch()
        raise CommandError("mke2fs failed")

    with pytest.raises(CommandError):
        Cache(tmp_path).get(Product("thing", "aaa", build), lambda _: None)
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["lock"]


def test_the_next_build_removes_the_rest_of_a_killed_one(tmp_path: Path) -> None:
    left = tmp_path / "thing/building-x"
    left.mkdir(parents=True)
    Cache(tmp_path).get(Made().product(), lambda _: None)
    assert not left.exists()


def test_two_runs_at_once_build_a_product_once(tmp_path: Path) -> None:
    made = Made()
    entered = threading.Event()
    lines: list[str] = []

    def build(folder: Path, print_line: PrintLine) -> None:
        entered.set()
        while not lines:
            time.sleep(0.01)
        made.build(folder, print_line)

    product = Product("thing", "aaa", build)
    thread = threading.Thread(target=Cache(tmp_path).get, args=(product, lambda _: None))
    thread.start()
    entered.wait()
    folder = Cache(tmp_path).get(product, lines.append)
    thread.join()
    assert (made.times, times(folder), lines) == (1, "1", ["waiting for another run that builds it"])


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    facts = {"release": "6.1.0-56-amd64", "linux-image-6.1.0-56-amd64": "6.1.192-2", "odd": "a=b"}
    write_manifest(tmp_path, facts)
    assert read_manifest(tmp_path) == facts


def test_a_failed_command_shows_arguments_status_and_output(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier command\n")
    with pytest.raises(CommandError, match=r"(?s)^sh -c .* failed with status 3:\n    out\n    err$") as raised:
        Children().run(["sh", "-c", "echo out; echo err >&2; exit 3"], log)
    assert "earlier" not in str(raised.value)
    with pytest.raises(CommandError, match="status 4"):
        Children().output(["sh", "-c", "exit 4"])


def test_stop_ends_programs_and_their_children(tmp_path: Path) -> None:
    children = Children(patience=0.1)
    script = 'trap "" TERM; sleep 1000 & echo $! >"$1"; wait'
    child = children.start(
        ["sh", "-c", script, "sh", tmp_path / "pid"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    children.stop()
    children.end(child)
    assert child.returncode in {-signal.SIGKILL, 128 + signal.SIGTERM}
    grandchild = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10  # it got SIGKILL, but takes a moment to die
    while _runs(grandchild):
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(Stopped):
        children.output(["true"])


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_guest_of_each_userland_runs_the_tests_of_systemd() -> None:
    assert sorted(guest.userland for guest in GUESTS if guest.systemd) == sorted({guest.userland for guest in GUESTS})


def test_guests_are_chosen_by_name_in_the_order_of_the_list() -> None:
    assert choose([]) == list(GUESTS)
    assert [guest.name for guest in choose(["sid", "5.10", "5.10"])] == ["5.10", "sid"]
    with pytest.raises(ValueError, match=r"no guest '4.19': choose from 5\.10, "):
        choose(["6.1", "4.19"])
    names = [guest.name for guest in GUESTS]
    assert len(set(names)) == len(names)
    assert os.sep not in "".join(names)


SUITE = '<testsuite name="pytest" errors="{}" failures="{}" skipped="{}" tests="{}"/>'


def test_tests_are_counted_in_all_suites() -> None:
    text = SUITE.format(1, 2, 3, 10)
    assert count(text) == Counts(4, 3, 3)
    assert count(f"<testsuites>{text}{text}</testsuites>") == Counts(8, 6, 6)


def test_the_counts_of_all_boots_are_added(tmp_path: Path) -> None:
    assert read_counts(tmp_path / "absent") == Counts()
    (tmp_path / "junit-0.xml").write_text(SUITE.format(0, 1, 0, 3))
    (tmp_path / "junit-1.xml").write_text(SUITE.format(0, 0, 1, 3))
    (tmp_path / "other.xml").write_text("<")
    assert read_counts(tmp_path) == Counts(4, 1, 1)


@pytest.mark.parametrize("text", ["", "<testsuites>", '<testsuite tests="1"/>', SUITE.format("x", 0, 0, 1)])
def test_an_incomplete_result_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "junit-0.xml").write_text(text)
    with pytest.raises(ValueError, match=r"junit-0\.xml is no result of pytest"):
        read_counts(tmp_path)


@pytest.mark.parametrize(
    ("status", "fate", "junit", "trouble"),
    [
        (0, "", SUITE.format(0, 0, 1, 3), ""),
        (0, "", "", "no test has passed"),
        (0, "", SUITE.format(0, 0, 3, 3), "no test has passed"),
        (0, "", SUITE.format(0, 1, 0, 3), "1 test failed"),
        (1, "", SUITE.format(1, 1, 0, 3), "2 tests failed"),
        (7, "", SUITE.format(0, 0, 0, 3), "the script ended with status 7"),
        (None, "died", SUITE.format(0, 0, 0, 3), "the guest died, in boot 1"),
        (None, "deadline", "", "the guest did not end in time and was ended, in boot 1"),
    ],
)
def test_a_guest_is_judged_by_its_ending_and_its_tests(
    tmp_path: Path, status: int | None, fate: Fate, junit: str, trouble: str
) -> None:
    (tmp_path / "out").mkdir()
    if junit:
        (tmp_path / "out/junit-0.xml").write_text(junit)
    assert judge("5.10", "5.10.0", Ending(status, fate, 2, 9.0), tmp_path).trouble == trouble


def test_the_death_of_a_guest_matters_more_than_an_incomplete_result(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/junit-0.xml").write_text("<")
    assert judge("5.10", "5.10.0", Ending(None, "died", 1, 9.0), tmp_path).trouble.startswith("the guest died")
    assert "is no result of pytest" in judge("5.10", "5.10.0", Ending(0, "", 1, 9.0), tmp_path).trouble


def test_the_summary_begins_with_the_failures() -> None:
    counts = count(
        """<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">
        <testcase classname="test_a" name="test_one"><failure message="short">first line\nlast line</failure></testcase>
        <testcase classname="test_a" name="test_two"><error message="no set-up"/></testcase>
        <testcase classname="test_a" name="test_three"/></testsuite></testsuites>"""
    )
    assert counts.failures == (("test_a::test_one", "first line\nlast line"), ("test_a::test_two", "no set-up"))
    results = [
        Result("6.1", "6.1.0-56-amd64", counts, 9.0, "2 tests failed", Path("/o/6.1")),
        Result("6.12", "6.12.1", Counts(1), 9.0, "", Path("/o/6.12")),
    ]
    assert summary(results).splitlines()[:8] == [
        "6.1: test_a::test_one failed:",
        "    first line",
        "    last line",
        "",
        "6.1: test_a::test_two failed:",
        "    no set-up",
        "",
        "guest  kernel          passed  failed  skipped  seconds",
    ]


def test_the_summary_is_a_table_with_the_reasons_below_it() -> None:
    results = [
        Result("6.1", "6.1.0-56-amd64", Counts(12, 0, 1), 99.6, "", Path("/o/6.1")),
        Result("6.12", "6.12.1", Counts(1, 1), 9.0, "1 test failed", Path("/o/6.12")),
        Result("sid", "", Counts(), 0.0, "it could not be run", None),
    ]
    assert summary(results).splitlines() == [
        "guest  kernel          passed  failed  skipped  seconds",
        "6.1    6.1.0-56-amd64      12       0        1      100  ok",
        "6.12   6.12.1               1       1        0        9  FAILED",
        "sid                         0       0        0        0  FAILED",
        "6.12: 1 test failed; see console.log, journal.log and output.log in /o/6.12",
        "sid: it could not be run",
    ]
