"""Passwords: each is compared once, in fair turns, in bounded memory."""

from __future__ import annotations

import asyncio

import pytest
from async_http import PATIENCE, run, until
from watched_bcrypt import WatchedBcrypt, hashed

from dnsprobe.web import passwords
from dnsprobe.web.passwords import FairQueue, Verdict, Verifier
from dnsprobe.web.peers import network


def emptied(queue: FairQueue) -> list[bytes]:
    """Return all keys in the order of their turns."""
    return list(iter(queue.next, None))


def test_clients_take_turns() -> None:
    queue = FairQueue()
    for client, key in (("a", b"a1"), ("a", b"a2"), ("a", b"a3"), ("b", b"b1"), ("c", b"c1"), ("b", b"b2")):
        assert queue.add(client, key) is None
    assert emptied(queue) == [b"a1", b"b1", b"c1", b"a2", b"b2", b"a3"]
    assert queue.clients == 0


@pytest.mark.parametrize(
    ("waiting", "client", "removed"),
    [
        ("aab", "a", b"new"),  # the limit for one client
        ("ab", "a", None),
        ("aabb", "c", b"a1"),  # the first of those with the most keys
        ("abbc", "a", b"new"),  # it would have as many as the longest
        ("abbc", "d", b"b1"),
        ("abcd", "a", b"new"),
    ],
)
def test_a_full_queue_takes_a_place_from_the_longest(waiting: str, client: str, removed: bytes | None) -> None:
    queue = FairQueue(limit=4, limit_per_client=2)
    for index, each in enumerate(waiting):
        assert queue.add(each, f"{each}{waiting[:index].count(each)}".encode()) is None
    assert queue.add(client, b"new") == removed
    assert (b"new" in emptied(queue)) is (removed != b"new")


def test_in_a_full_queue_of_single_keys_a_random_client_loses() -> None:
    removed = set()
    for _ in range(200):
        queue = FairQueue(limit=3)
        for client in "abc":
            queue.add(client, client.encode())
        removed.add(queue.add("d", b"d"))
    assert removed == {b"a", b"b", b"c"}


def verdicts(verifier: Verifier, of: dict[bytes, bytes], *asked: tuple[bytes, bytes, str]) -> list[Verdict]:
    """Verify several names and passwords at the same time; return the verdicts in the order of the answers."""

    async def ask_all() -> list[Verdict]:
        done: asyncio.Queue[Verdict] = asyncio.Queue()
        for name, password, address in asked:
            verifier.verify(of, name, password, address, done.put_nowait)
        return [await done.get() for _ in asked]

    async def bounded() -> list[Verdict]:
        async with asyncio.timeout(PATIENCE):
            return await ask_all()

    return asyncio.run(bounded())


def test_an_unknown_name_takes_as_long_as_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)
    bcrypt.go_on.set()
    of = {b"ada": hashed("secret").encode(), b"bob": hashed("other", 5).encode()}
    verifier = Verifier()
    # One of these is the password of the user whose hash is compared.
    asked = [(b"nobody", password, "192.0.2.1") for password in (b"secret", b"other", b"third")]
    assert verdicts(verifier, of, *asked) == [Verdict.BAD] * 3
    assert [password for password, _ in bcrypt.compared] == [b"secret", b"other", b"third"]
    hashes = {hashed for _, hashed in bcrypt.compared}
    assert len(hashes) == 1
    assert hashes <= set(of.values())
    verifier.close()


def test_the_same_password_is_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)
    bcrypt.go_on.set()
    of = {b"ada": hashed("secret").encode()}
    verifier = Verifier()
    assert verdicts(verifier, of, *[(b"ada", b"secret", f"192.0.2.{at}") for at in range(50)]) == [Verdict.GOOD] * 50
    assert verdicts(verifier, of, (b"ada", b"wrong", "192.0.2.1")) == [Verdict.BAD]
    for _ in range(3):
        assert verdicts(verifier, of, (b"ada", b"wrong", "192.0.2.1")) == [Verdict.BAD]
        assert verdicts(verifier, of, (b"ada", b"secret", "192.0.2.1")) == [Verdict.GOOD]
    assert len(bcrypt.compared) == 2
    # A new hash needs a new comparison, and a user who was removed is refused.
    assert verdicts(verifier, {b"ada": hashed("new").encode()}, (b"ada", b"secret", "192.0.2.1")) == [Verdict.BAD]
    assert verdicts(verifier, {b"bob": of[b"ada"]}, (b"ada", b"secret", "192.0.2.1")) == [Verdict.BAD]
    verifier.close()


def test_wrong_passwords_do_not_displace_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_MAX_REMEMBERED", 4)
    bcrypt = WatchedBcrypt(monkeypatch)
    bcrypt.go_on.set()
    of = {b"ada": hashed("secret").encode()}
    verifier = Verifier()
    assert verdicts(verifier, of, (b"ada", b"secret", "192.0.2.1")) == [Verdict.GOOD]
    for at in range(10):
        assert verdicts(verifier, of, (b"ada", b"%d" % at, "192.0.2.1")) == [Verdict.BAD]
    assert len(verifier._bad.keys) == 4
    before = len(bcrypt.compared)
    assert verdicts(verifier, of, (b"ada", b"secret", "192.0.2.1")) == [Verdict.GOOD]
    assert len(bcrypt.compared) == before
    verifier.close()


def test_in_a_full_queue_a_network_with_fewer_passwords_gets_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)
    of = {b"ada": hashed("secret").encode()}
    verifier = Verifier()
    verifier._queue = FairQueue(limit=6)

    async def test() -> None:
        results: dict[bytes, Verdict] = {}

        def put(password: bytes, address: str) -> None:
            verifier.verify(of, b"ada", password, address, lambda verdict: results.update({password: verdict}))

        put(b"at work", "192.0.2.9")
        for at in range(6):
            put(b"a%d" % at, "192.0.2.1")
        assert results == {}
        put(b"b0", "192.0.2.2")
        assert results == {b"a5": Verdict.BUSY}
        put(b"b1", "192.0.2.2")
        put(b"secret", "192.0.2.3")
        assert results == {b"a5": Verdict.BUSY, b"a4": Verdict.BUSY, b"a3": Verdict.BUSY}
        put(b"b2", "192.0.2.2")
        assert results[b"b2"] is Verdict.BUSY
        bcrypt.go_on.set()
        await until(lambda: len(results) == 11)
        assert [password for password, _ in bcrypt.compared] == [
            b"at work",
            b"a0",
            b"b0",
            b"secret",
            b"a1",
            b"b1",
            b"a2",
        ]
        assert results[b"secret"] is Verdict.GOOD
        assert not verifier._checks
        assert verifier._queue.clients == 0

    run(test)
    verifier.close()


def test_many_networks_do_not_keep_out_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)
    of = {b"ada": hashed("secret").encode()}
    verifier = Verifier()

    async def test() -> None:
        results: list[tuple[bytes, Verdict]] = []

        def put(password: bytes, address: str) -> None:
            verifier.verify(of, b"ada", password, address, lambda verdict: results.append((password, verdict)))

        for at in range(1 + passwords._MAX_WAITING):
            put(b"%d" % at, f"192.0.2.{at}")
        assert results == []
        put(b"secret", "198.51.100.1")
        ((removed, verdict),) = results
        assert (removed != b"secret", verdict) == (True, Verdict.BUSY)
        bcrypt.go_on.set()
        await until(lambda: len(results) == passwords._MAX_WAITING + 2)
        assert results[-1] == (b"secret", Verdict.GOOD)

    run(test)
    verifier.close()


def test_clients_that_leave_again_and_again_use_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)
    of = {b"ada": hashed("secret").encode()}
    verifier = Verifier()

    async def test() -> None:
        for address in ("192.0.2.9", *["192.0.2.1"] * 1000):
            password = b"at work" if address == "192.0.2.9" else b"guessed"
            verifier.verify(of, b"ada", password, address, lambda _: None, lambda: False)
        assert sum(len(check.requests) for check in verifier._checks.values()) <= 3
        bcrypt.go_on.set()
        await until(lambda: not verifier._checks)

    run(test)
    verifier.close()


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_client_counts_as_its_network(address: str, client: str) -> None:
    assert network(address) == client
