"""The page in Debian's Chromium, served by the real program, with queries of processes that have hostile names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import IN_OWN_NET, PATIENCE, Service, free_ports
from playwright.sync_api import Browser, BrowserContext, Dialog, Locator, Page, expect, sync_playwright
from reference import message, wire

from dnsprobe.names.wire import to_text
from dnsprobe.text import printable

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: run scripts/test")

RULE_NAME = "</script><img src=x onerror=alert(1)><!--"
HEBREW = "\u05d0\u05d1\u05d2"
#: The daemon sees the queries of all tests on this host, so other tests send queries for fresh.test only.
CONFIGURATION = (
    "domains:\n- watched.test\n"
    f"- {{pattern: hostile.test, name: {json.dumps(RULE_NAME)}}}\n"
    f"- {{pattern: silent.test, name: {HEBREW}}}\n"
    "journal: {repeat: 0}\nmetrics: {last_queries: always}\n"
)

#: As prctl(2) takes them, each of at most 15 octets.
COMMS = [
    b"<script>alert(1",
    b"</script><b>x",
    b"<!--",
    b'"onload="x',
    b"'><i>&amp;",
    "\u202egnp.exe\u2066".encode(),
    HEBREW.encode(),
    b"\x1b[31mred\x07",
    b"\xff\xfe\n\t\\",
    b"(other)",
    b"__proto__",
    b"",
    b" ",
    b"a;b",
]

#: Labels below hostile.test.
NAMES = [
    [b"<script>alert(1)</script>"],
    [b'"><img src=x onerror=alert(1)>', b"'"],
    ["\u202eexe.\u2066".encode(), HEBREW.encode()],
    [b"\x1b[2J", b"\x00\n", b"\xff"],
    [b"a" * 63, b"b" * 63, b"c" * 63, b"\xff" * 48],
]

# Forks one process for each comm of a chain; the last one sends the queries.
SENDER = """
import ctypes, json, os, socket, sys

def descend(chain, messages):
    ctypes.CDLL(None).prctl(15, bytes.fromhex(chain[0]), 0, 0, 0)
    if chain[1:]:
        child = os.fork()
        if child == 0:
            descend(chain[1:], messages)
            os._exit(0)
        os.waitpid(child, 0)
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for each in messages:
            sender.sendto(bytes.fromhex(each), ("127.0.0.1", 53))

for chain, messages in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        descend(chain, messages)
        os._exit(0)
    os.waitpid(child, 0)
"""


def name(*labels: bytes) -> bytes:
    return wire([*labels, b"test"])


def send(*senders: tuple[Sequence[bytes], Sequence[bytes]]) -> None:
    """Start each chain of processes; the last one sends a query for each of its names."""
    chains = [([comm.hex() for comm in chain], [message(each).hex() for each in names]) for chain, names in senders]
    command = [*IN_OWN_NET, sys.executable, "-I", "-S", "-c", SENDER, json.dumps(chains)]
    subprocess.run(command, check=True, timeout=PATIENCE)


def in_tree(comm: bytes) -> str:
    text = printable(comm, also=";") or r"\x00"
    return f"\\x{ord(text[0]):02x}{text[1:]}" if text == "(other)" else text


WWW = name(b"www", b"watched")
HOSTILE = [name(*labels, b"hostile") for labels in NAMES]
#: With their ancestors, nearly as deep as a tree can be.
DEEP = [b"under%02d" % depth for depth in range(25)]
TOTAL = 60 + 1 + len(COMMS) * len(HOSTILE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service that has counted queries of a shop with two trees and of hostile processes."""
    service = Service(CONFIGURATION, tmp_path_factory.mktemp("service"))
    try:
        send(
            ([b"shop", b"buyer", b"curl"], [WWW] * 30),
            ([b"shop", b"seller", b"curl"], [WWW] * 20),
            ([b"shop", b"seller", b"wget"], [WWW] * 10),
            (DEEP, [WWW]),
            *(([b"hostile", comm], HOSTILE) for comm in COMMS),
        )
        until = time.monotonic() + PATIENCE
        while len(service.entries()) < TOTAL and time.monotonic() < until:
            time.sleep(0.02)
        yield service
    finally:
        service.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium refuses to run as root with its sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A tab that shows the page. It records errors, dialogs and requests."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = f"http://{url}/"
        self.problems: list[str] = []
        self.requests: list[str] = []
        context.set_default_timeout(PATIENCE * 1000)
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(f"console: {message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        context.on("request", lambda request: self.requests.append(request.url))
        # The browser runs this script despite the policy of the page.
        self.page.add_init_script(
            "window.violations = [];"
            "addEventListener('securitypolicyviolation', (event) => window.violations.push(event.violatedDirective));"
        )
        self.page.goto(self.url)

    def _dismiss(self, dialog: Dialog) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def violations(self) -> list[str]:
        return list(self.page.evaluate("window.violations"))

    def box(self, label: str) -> Locator:
        """Return the box of the graph with this path's last names, such as ``shop;curl``."""
        return self.page.locator(f'.node[data-path$="{label}"]')

    def box_names(self) -> list[str]:
        return self.page.locator(".node").all_text_contents()

    def share(self, label: str) -> float:
        """Return the width of a box in relation to that of the graph."""
        return float(self.box(label).evaluate("(box) => parseFloat(box.style.width) / 100"))

    def fits(self) -> bool:
        """Return whether there is nothing to scroll to at the sides."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


Open = Callable[..., Any]


@pytest.fixture
def open_tab(browser: Browser, service: Service) -> Open:
    """Return a context manager for a tab with the page. At its end, no error may have been recorded."""

    @contextmanager
    def opened(url: str = "", **options: Any) -> Iterator[Tab]:
        context = browser.new_context(**options)
        try:
            tab = Tab(context, url or service.url)
            yield tab
            if options.get("java_script_enabled", True):
                assert tab.violations() == []
            assert tab.problems == []
            # The empty icon is a data URL in the page.
            assert set(tab.requests) <= {tab.url, "data:,"}
        finally:
            context.close()

    return opened


def test_the_graph_adds_up(open_tab: Open) -> None:
    with open_tab() as tab:
        assert tab.box("shop").get_attribute("aria-label") == f"shop: 60 queries, {shown_share(60)}"
        assert "30 queries" in tab.box("shop;buyer;curl").get_attribute("aria-label")
        assert tab.share("shop;seller") == pytest.approx(tab.share("shop") / 2, rel=1e-3)
        expect(tab.page.locator("#summary strong")).to_have_text(str(TOTAL))
        assert tab.box_names()[0] == "all"


def shown_share(part: int) -> str:
    return f"{100 * part / TOTAL:.1f} %"


def test_zoom_by_click_and_back(open_tab: Open) -> None:
    with open_tab() as tab:
        back = tab.page.get_by_role("button", name="Show all")
        expect(back).to_be_disabled()
        tab.box("shop;seller").click()
        assert tab.share("shop;seller") == 1
        assert tab.share("shop;seller;curl") == pytest.approx(2 / 3, rel=1e-3)
        assert tab.share("shop") == 1  # the ancestors stay, as a way back
        expect(tab.box("shop;buyer")).to_have_count(0)
        expect(tab.box("hostile")).to_have_count(0)
        tab.box("shop").click()
        expect(tab.box("shop;buyer")).to_have_count(1)
        back.click()
        expect(tab.box("hostile")).to_have_count(1)
        expect(back).to_be_disabled()


def test_zoom_by_keyboard_and_back(open_tab: Open) -> None:
    with open_tab() as tab:
        tab.page.locator("#search").focus()
        tab.page.keyboard.press("Tab")  # past "Show all", which is disabled
        focused = tab.page.locator(":focus")
        expect(focused).to_have_text("all")
        depth = int(tab.box(";hostile").get_attribute("aria-level") or 0)
        for _ in range(depth - 1):
            tab.page.keyboard.press("ArrowDown")
        expect(focused).to_have_text("hostile")
        tab.page.keyboard.press("ArrowRight")
        expect(focused).to_have_text("shop")
        tab.page.keyboard.press("ArrowDown")
        tab.page.keyboard.press("ArrowRight")
        tab.page.keyboard.press("ArrowLeft")
        expect(focused).to_have_text("buyer")
        expect(tab.page.locator("#details")).to_contain_text(f"shop;buyer 30 queries, {shown_share(30)}")
        tab.page.keyboard.press("Enter")
        assert tab.share("shop;buyer") == 1
        expect(focused).to_have_text("buyer")
        tab.page.keyboard.press("ArrowUp")
        tab.page.keyboard.press(" ")
        assert tab.share("shop") == 1
        expect(tab.box("shop;seller")).to_have_count(1)
        tab.page.keyboard.press("Escape")
        expect(focused).to_have_text("shop")
        assert tab.share("shop") < 1
        tab.page.keyboard.press("Home")
        expect(focused).to_have_text("all")


def test_search_adds_up_what_it_finds(open_tab: Open) -> None:
    with open_tab() as tab:
        found, search = tab.page.locator("#found"), tab.page.get_by_label("Search")
        search.fill("CURL")
        expect(found).to_have_text(f"50 queries of {TOTAL} ({shown_share(50)}) in 2 places")
        assert tab.page.locator(".node.match").all_text_contents() == ["curl", "curl"]
        search.fill("sell")  # seller: the processes below it are not counted twice
        expect(found).to_have_text(f"30 queries of {TOTAL} ({shown_share(30)}) in 1 place")
        search.fill("<script>")
        expect(found).to_contain_text(f"5 queries of {TOTAL}")
        search.fill("nothing like it")
        expect(found).to_contain_text(f"0 queries of {TOTAL}")
        search.press("Escape")
        expect(found).to_have_text("")
        expect(tab.page.locator(".node.match")).to_have_count(0)


def test_a_refresh_keeps_zoom_and_search(open_tab: Open, start: Callable[..., Service]) -> None:
    service = start("domains: [fresh.test]\nmetrics: {last_queries: always}")
    fresh = name(b"www", b"fresh")
    chain = [b"shop", b"buyer", b"curl"]
    send((chain, [fresh] * 3), ([b"other"], [fresh]))
    with open_tab(service.url) as tab:
        tab.box("shop;buyer").click()
        tab.page.get_by_label("Search").fill("curl")
        expect(tab.page.locator("#found")).to_contain_text("3 queries of 4")
        expect(tab.page.locator("#details")).to_contain_text("shop;buyer 3 queries, 75.0 %")
        tab.page.locator("#as-list summary").click()
        send((chain, [fresh] * 4), ([b"other"], [name(b"later", b"fresh")]), ([b"another"], [fresh]))
        expect(tab.page.locator("#found")).to_contain_text("7 queries of 10", timeout=PATIENCE * 1000)
        expect(tab.page.locator("#details")).to_contain_text("shop;buyer 7 queries, 70.0 %")
        assert tab.share("shop;buyer") == 1
        expect(tab.box("another")).to_have_count(0)
        expect(tab.page.locator("#summary strong")).to_have_text("10")
        expect(tab.page.locator("#last")).to_contain_text("later.fresh.test")
        expect(tab.page.locator("#list")).to_contain_text("another")
        expect(tab.page.locator("#as-list")).to_have_attribute("open", "")
        tab.page.get_by_role("button", name="Show all").click()
        expect(tab.box("another")).to_have_count(1)


#: Answers each query by its first label until its input ends: "good", "gone" (NXDOMAIN), "bad" (SERVFAIL) or "silent".
RESOLVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
codes = {b"gone": 3, b"bad": 2}
for line in sys.stdin:
    chain, kind, times = line.split()
    import ctypes, os
    child = os.fork()
    if child == 0:
        names = chain.split(";")
        for name in names[:-1]:
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
            if pid := os.fork():
                os.waitpid(pid, 0)
                os._exit(0)
        ctypes.CDLL(None).prctl(15, names[-1].encode(), 0, 0, 0)
        asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asker.connect(("127.0.0.1", 53))
        question = bytes([len(kind)]) + kind.encode() + b"\\5fresh\\4test\\0\\0\\x01\\0\\x01"
        for number in range(int(times)):
            asker.send(number.to_bytes(2, "big") + bytes.fromhex("0100000100000000 0000") + question)
            query, client = server.recvfrom(512)
            code = codes.get(query[13:13 + query[12]], 0)
            answers = 0 if code else 1
            record = bytes.fromhex("c00c 0001 0001 0000003c 0004 c0000207") * answers
            if kind != "silent":
                head = query[:2] + bytes([0x81, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0])
                server.sendto(head + query[12:] + record, client)
                asker.recv(512)
        print("done", flush=True)
        sys.stdin.read() if kind == "silent" else None
        os._exit(0)
    if kind != "silent":
        os.waitpid(child, 0)
"""


class Resolver:
    """Processes that ask a resolver in a network namespace of their own."""

    def __init__(self) -> None:
        command = [*IN_OWN_NET, sys.executable, "-I", "-S", "-c", RESOLVER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, chain: str, kind: str, times: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{chain} {kind} {times}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)


def test_failures_are_shown_and_follow_the_queries(open_tab: Open, start: Callable[..., Service]) -> None:
    service = start("domains: [fresh.test]\nanswers: {timeout: 500ms}\nmetrics: {last_queries: always}")
    resolver = Resolver()
    resolver.ask("shop;buyer", "good", 90)
    resolver.ask("shop;buyer", "bad", 10)
    resolver.ask("shop;seller", "gone", 50)
    with open_tab(service.url) as tab:
        buyer, seller = tab.box("shop;buyer"), tab.box("shop;seller")
        expect(buyer).to_have_class(re.compile(r"\bfailing\b"))
        expect(seller).not_to_have_class(re.compile(r"\bfailing\b"))
        label = "shop: 150 queries, 100.0 %, 6.7 % failed (90 NOERROR, 50 NXDOMAIN, 10 SERVFAIL)"
        assert tab.box("shop").get_attribute("aria-label") == label
        expect(tab.page.locator("#summary")).to_contain_text("6.7 % failed, 33.3 % negative")
        expect(tab.page.locator("#rules td:last-child")).to_have_text("6.7 % failed")
        assert results(tab) == {"NOERROR": 90, "NXDOMAIN": 50, "SERVFAIL": 10}
        # The resolver dies: the next queries get no answer. Of all queries, they are few.
        resolver.ask("shop;seller", "silent", 3)
        expect(seller).to_have_class(re.compile(r"\bfailing recent\b"), timeout=PATIENCE * 1000)
        expect(seller).to_have_attribute(
            "aria-label",
            re.compile(
                r"seller: 53 queries, .* 5\.7 % failed, in the last \d+ s 100\.0 % of 3 \(50 NXDOMAIN, 3 timeout\)"
            ),
        )
        strip = "(box) => parseFloat(getComputedStyle(box, '::after').width) / box.clientWidth"
        assert seller.evaluate(strip) == pytest.approx(1, abs=0.01)
        assert buyer.evaluate(strip) == pytest.approx(0.1, abs=0.03)
        assert results(tab) == {"NOERROR": 90, "NXDOMAIN": 50, "SERVFAIL": 10, "timeout": 3}
        assert tab.fits()
    resolver.close()


def results(tab: Tab) -> dict[str, int]:
    """Return the results of queries that the page shows, without those that are 0."""
    rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#results tbody tr").all()]
    return {name: int(number) for name, _, number, _ in rows if number != "0"}


def test_a_daemon_that_begins_to_track_answers_has_the_page_loaded_again(open_tab: Open, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    services = []

    def restart(answers: str) -> Service:
        folder = tmp_path / answers[:3]
        folder.mkdir()
        services.append(Service(f"domains: [fresh.test]\nanswers: {answers}", folder, listen=f"127.0.0.1:{port}"))
        return services[-1]

    try:
        service = restart("off")
        with open_tab(service.url) as tab:
            expect(tab.page.locator("#results")).to_have_count(0)
            assert service.stop() == 0
            restart("{timeout: 1s}")
            expect(tab.page.locator("#results")).to_have_count(1, timeout=PATIENCE * 1000)
            tab.problems.clear()  # the browser logs each failed request
    finally:
        for service in services:
            service.kill()


def test_pause_stops_requests(open_tab: Open) -> None:
    with open_tab() as tab:
        tab.page.clock.install()
        tab.page.reload()
        pause = tab.page.get_by_role("button", name="Pause")
        pause.click()
        expect(pause).to_have_attribute("aria-pressed", "true")
        asked = len(tab.requests)
        tab.page.clock.run_for(60_000)
        assert len(tab.requests) == asked
        with tab.page.expect_request(tab.url):
            pause.click()


def test_the_page_reports_that_the_daemon_does_not_answer(open_tab: Open, start: Callable[..., Service]) -> None:
    service = start(CONFIGURATION)
    with open_tab(service.url) as tab:
        state = tab.page.get_by_role("status").and_(tab.page.locator("#state"))
        expect(state).to_contain_text("Refreshes every")
        assert service.stop() == 0
        expect(state).to_contain_text("so the numbers are old", timeout=PATIENCE * 1000)
        expect(tab.page.locator("body")).to_have_class("stale")
        # The browser logs each failed request.
        assert all("ERR_CONNECTION_REFUSED" in problem for problem in tab.problems)
        tab.problems.clear()


@pytest.mark.parametrize("script", [True, False])
def test_hostile_values_are_text(open_tab: Open, script: bool) -> None:
    with open_tab(java_script_enabled=script) as tab:
        page: Page = tab.page
        assert page.locator("body :is(b, i, img, iframe, object, svg)").count() == 0
        assert page.locator("script").count() == 2
        if script:
            tab.box("hostile").click()
            below = page.locator('.node[data-path*="hostile;"]').all_text_contents()
            assert sorted(below) == sorted(map(in_tree, COMMS))
        trees = page.locator("#last td:nth-child(3)").all_text_contents()
        names = page.locator("#last td:nth-child(4)").all_text_contents()
        newest = [to_text(each.lower()) for each in reversed(HOSTILE)]
        assert names[: len(HOSTILE)] == newest
        assert trees[0].endswith(f"hostile;{in_tree(COMMS[-1])}")
        assert {tree.rpartition("hostile;")[2] for tree in trees if ";hostile;" in tree} == set(map(in_tree, COMMS))
        assert page.locator("#rules td:first-child").all_text_contents() == ["watched.test", RULE_NAME, HEBREW]
        assert page.locator("#rules td:last-child").all_text_contents() == ["61", str(len(COMMS) * len(HOSTILE)), "0"]
        text = page.locator("body").text_content() or ""
        assert [char for char in set(text) if not char.isprintable() and char != "\n"] == []


def test_text_from_right_to_left_stays_in_its_place(open_tab: Open) -> None:
    """The number still follows the name in its line."""
    with open_tab(java_script_enabled=False) as tab:
        item = tab.page.locator("#list li", has=tab.page.locator(f'bdi:text-is("{HEBREW}")')).last
        name_box, number_box = item.locator("bdi").bounding_box(), item.locator("span").bounding_box()
        assert name_box
        assert number_box
        assert name_box["x"] + name_box["width"] <= number_box["x"]


def test_without_javascript_all_but_the_graph_is_shown(open_tab: Open, service: Service) -> None:
    with open_tab(java_script_enabled=False) as tab:
        page: Page = tab.page
        expect(page.locator("#graph")).to_be_hidden()
        expect(page.locator("#refresh")).to_be_hidden()
        shop = page.locator("#list li", has_text="shop").last
        expect(shop).to_be_visible()
        for part in ("last", "rules", "paths", "losses"):
            expect(page.locator(f"#{part} table")).to_be_visible()
        paths = [row.split("\t") for row in page.locator("#paths tbody tr").all_inner_texts()]
        hooks = [labels for labels, _ in service.samples("dnsprobe_hook_info")]
        assert paths == [[hook["path"], hook["hook"], hook["attach"], hook["symbol"], "proved"] for hook in hooks]


def test_every_loss_is_listed(open_tab: Open, service: Service) -> None:
    losses = re.findall(
        r"^(dnsprobe_\w+(?:lost|unattributed|unparsed|undecided|dropped|folded)_total)"
        r"(?:\{reason=\"(\w+)\"\})? (\d+)\.0$",
        service.get("/metrics"),
        re.MULTILINE,
    )
    assert len(losses) >= 17
    with open_tab() as tab:
        rows = [row.locator("td").all_text_contents() for row in tab.page.locator("#losses tbody tr").all()]
        shown = {(metric, reason): int(lost.replace(",", "")) for metric, reason, _, lost in rows}
        assert shown.keys() == {(metric, reason) for metric, reason, _ in losses}
        assert len(shown) == len(rows)
        # No loss decreases. The page is a moment later.
        assert all(shown[metric, reason] >= int(lost) for metric, reason, lost in losses)
        assert all(meaning for _, _, meaning, _ in rows)


@pytest.mark.parametrize("script", [True, False])
@pytest.mark.parametrize("width", [320, 600, 1280])
def test_the_page_needs_no_horizontal_scrolling(open_tab: Open, script: bool, width: int) -> None:
    with open_tab(java_script_enabled=script, viewport={"width": width, "height": 640}) as tab:
        if script:
            tab.page.locator("#as-list summary").click()
            expect(tab.page.locator("#list").get_by_text("under24", exact=True)).to_be_visible()
            tab.box("hostile").click()
            tab.page.get_by_label("Search").fill("x" * 100)
            expect(tab.page.locator("#found")).not_to_be_empty()
        assert tab.fits()


@pytest.mark.parametrize(("theme", "bright"), [("light", True), ("dark", False)])
def test_both_themes_have_readable_contrast(open_tab: Open, theme: str, bright: bool) -> None:
    with open_tab(color_scheme=theme, reduced_motion="reduce") as tab:
        tab.page.get_by_label("Search").fill("curl")
        for place in ("body", ".node:not(.match):not(.root)", ".node.root"):
            assert (luminance(tab, place, "backgroundColor") > 0.4) is bright
        for place in ("body", "#losses th", "#summary .good", "footer a", ".node.match", ".note"):
            assert contrast(tab, place) >= 4.5, place
        assert tab.page.locator(".node").first.evaluate("(box) => getComputedStyle(box).transitionDuration") == "0s"


def luminance(tab: Tab, place: str, what: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    colour = tab.page.locator(place).first.evaluate(
        """(element, what) => {
            for (let at = element; at; at = at.parentElement) {
                const colour = getComputedStyle(at)[what];
                if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
        }""",
        what,
    )
    values = [int(value) / 255 for value in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]  # type: ignore[union-attr]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(tab: Tab, place: str) -> float:
    low, high = sorted(luminance(tab, place, what) for what in ("color", "backgroundColor"))
    return (high + 0.05) / (low + 0.05)


def test_the_policy_is_in_force(open_tab: Open) -> None:
    """The browser neither runs, loads nor requests anything that is not part of the page."""
    with open_tab() as tab:
        done = tab.page.evaluate(
            """async () => {
                const script = document.createElement("script");
                script.textContent = "window.ran = true";
                document.body.append(script);
                const image = document.createElement("img");
                image.setAttribute("onerror", "window.ran = true");
                image.src = "/metrics";
                document.body.append(image);
                const style = document.createElement("style");
                style.textContent = "body { display: none }";
                document.body.append(style);
                const asked = await fetch("http://elsewhere.invalid/").catch((error) => error.name);
                return [window.ran, getComputedStyle(document.body).display, asked];
            }"""
        )
        assert done == [None, "block", "TypeError"]
        assert {directive.removesuffix("-elem") for directive in tab.violations()} >= {
            "script-src",
            "style-src",
            "img-src",
            "connect-src",
        }
        tab.page.evaluate("window.violations = []")
        # The browser reports the request before it applies the policy.
        tab.requests.remove(f"{tab.url}metrics")
        assert all("Content Security Policy" in problem for problem in tab.problems), tab.problems
        tab.problems.clear()


def test_the_page_can_be_switched_off(start: Callable[..., Service]) -> None:
    service = start("domains: [watched.test]\nmetrics: {page: false}")
    with pytest.raises(urllib.error.HTTPError) as raised:
        service.get("/")
    assert raised.value.code == 404
    assert "dnsprobe_build_info" in service.get("/metrics")


def test_only_the_last_queries_are_shown(open_tab: Open, start: Callable[..., Service]) -> None:
    service = start("domains: [fresh.test]\nmetrics: {last_queries: always}")
    numbered = [name(b"n%d" % number, b"fresh") for number in range(150)]
    send(([b"counter"], numbered))
    service.wait_for("n149.fresh.test")
    with open_tab(service.url) as tab:
        names = tab.page.locator("#last td:nth-child(4)").all_text_contents()
        assert names == [f"n{number}.fresh.test" for number in range(149, 49, -1)]


def test_the_last_queries_are_not_shown_to_everyone(start: Callable[..., Service]) -> None:
    service = start("domains: [fresh.test]")
    send(([b"shy"], [name(b"secret", b"fresh")]))
    service.wait_for("secret.fresh.test")
    page = service.get("/")
    assert "shy" in page
    assert "secret.fresh.test" not in page
    assert "metrics.last_queries" in page
