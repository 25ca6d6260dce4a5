"""TLS, passwords and their reload, with real certificates, real clients, and hostile clients."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from async_http import PATIENCE, Answer, read_answer, run, until
from certificates import authority, certificate
from watched_bcrypt import WatchedBcrypt, hashed

from dnsprobe.sinks.metrics import Registry, Snapshot
from dnsprobe.web import passwords, peers
from dnsprobe.web.page import Page
from dnsprobe.web.protection import Protection, parse_basic
from dnsprobe.web.server import Server

TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key"
MUTUAL = TLS + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two authorities and certificates of both; the server trusts only the first."""
    folder = tmp_path_factory.mktemp("certificates")
    ca, stranger = authority(folder, "ca"), authority(folder, "stranger")
    certificate(folder, "server", ca, "DNS:localhost,IP:127.0.0.1", "serverAuth")
    certificate(folder, "renewed", ca, "DNS:localhost,IP:127.0.0.1", "serverAuth")
    names = "DNS:prometheus.test,email:ada@monitor.test,URI:spiffe://monitor.test/p,IP:2001:db8::7"
    certificate(folder, "client", ca, names, "clientAuth")
    certificate(folder, "nameless", ca, "DNS:other.test", "clientAuth")
    certificate(folder, "wrong", stranger, names, "clientAuth")
    certificate(folder, "misused", ca, names, "serverAuth")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy of this folder, which the test may change."""
    for path in made.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def users(**of: str) -> str:
    return "\nbasic_auth_users:\n" + "".join(f"  {name}: '{text}'\n" for name, text in of.items())


def written(folder: Path, text: str) -> Path:
    """Write a web configuration beside the old one, and rename it."""
    new = folder / "web.yml.new"
    new.write_text(text, encoding="utf-8")
    return new.rename(folder / "web.yml")


@asynccontextmanager
async def serving(folder: Path, text: str, connections: int = 128) -> AsyncIterator[Server]:
    protection = Protection(str(written(folder, text)))
    registry = Registry(lambda: Snapshot(events=7, web_config_good=protection.good))
    server = Server(registry, lambda: "", connections, Page, protection)
    server.bind("127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        await server.stop()


def context(folder: Path, client: str = "", ca: str = "ca") -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=folder / f"{ca}.pem")
    if client:
        made.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    return made


def basic(name: str, password: str) -> str:
    return f"Authorization: Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}\r\n"


async def ask(
    server: Server, tls: ssl.SSLContext | None, path: str = "/metrics", more: str = "", source: str = "127.0.0.1"
) -> Answer:
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(
        *server.address, ssl=tls, server_hostname=name, local_addr=(source, 0)
    )
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        return await read_answer(reader)
    finally:
        writer.transport.abort()


async def refused(server: Server, tls: ssl.SSLContext) -> bool:
    """Return whether the server closes a connection without an answer. With TLS 1.3, that is after the handshake."""
    try:
        answer = await ask(server, tls)
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return True
    assert answer.status == 200
    return False


def test_metrics_are_served_over_https(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            answer = await ask(server, context(folder))
            assert answer.status == 200
            assert b"\ndnsprobe_events_total 7.0\n" in answer.body
            assert server.protection.scheme == "https"
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(server, context(folder, ca="stranger"))

    run(test)


def test_plain_http_gets_an_answer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100 + b"\r\n")
            received = await reader.read()
            assert received == b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
            writer.close()
            assert (await ask(server, context(folder))).status == 200

    run(test)
    assert not caplog.records


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 100, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"a" * 70000, b"\x80\x80", b"x"],
)
def test_garbage_is_closed_and_not_logged(folder: Path, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(garbage)
            writer.write_eof()
            with suppress(ConnectionResetError):
                assert b"HTTP" not in await reader.read()
            writer.close()
            await until(lambda: not server._clients.connected)
            assert (await ask(server, context(folder))).status == 200

    run(test)
    assert not caplog.records


def hello() -> bytes:
    """Return the ClientHello of a TLS client."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def test_unfinished_handshakes_delay_nobody(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server, AsyncExitStack() as stack:
            half = hello()
            for number in range(300):
                hanging = await asyncio.open_connection(*server.address)
                stack.callback(hanging[1].transport.abort)
                hanging[1].write((b"", half[:7], half, half[:5])[number % 4])
            answers = await asyncio.gather(*(ask(server, context(folder)) for _ in range(20)))
            assert [answer.status for answer in answers] == [200] * 20
            assert len(server._clients.idle) + len(server._clients.busy) <= 128

    run(test)


def test_an_unfinished_handshake_is_closed_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnsprobe.web.server._REQUEST_TIMEOUT", 0.05)

    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(hello()[:20])
            assert await reader.read() == b""
            writer.close()

    run(test)


def test_a_client_that_leaves_at_once_harms_nothing(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            for _ in range(20):
                with closing(socket.create_connection(server.address)) as left:
                    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends a reset
                    left.send(hello())
            assert (await ask(server, context(folder))).status == 200
            await until(lambda: not server._clients.connected)

    run(test)


@pytest.mark.parametrize(
    ("more", "client", "lets_in"),
    [
        (MUTUAL, "client", True),
        (MUTUAL, "nameless", True),
        (MUTUAL, "", False),
        (MUTUAL, "wrong", False),
        (MUTUAL, "misused", False),
        (TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem", "", True),
        (TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem", "client", True),
        (TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem", "wrong", False),
        (TLS + ", client_auth_type: NoClientCert", "wrong", True),
        (MUTUAL + ", client_allowed_sans: [prometheus.test]", "client", True),
        (MUTUAL + ", client_allowed_sans: [x.test, 'ada@monitor.test']", "client", True),
        (MUTUAL + ", client_allowed_sans: ['spiffe://monitor.test/p']", "client", True),
        (MUTUAL + ", client_allowed_sans: ['2001:DB8:0::7']", "client", True),
        (MUTUAL + ", client_allowed_sans: [prometheus.test]", "nameless", False),
        (MUTUAL + ", client_allowed_sans: [test, PROMETHEUS, '*.test']", "client", False),
        (MUTUAL + ", client_allowed_sans: []", "client", False),
        (MUTUAL + ", client_allowed_sans: [prometheus.test]", "wrong", False),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_client_certificates_are_verified(
    folder: Path, more: str, client: str, lets_in: bool, version: ssl.TLSVersion
) -> None:
    async def test() -> None:
        async with serving(folder, more + "}") as server:
            tls = context(folder, client)
            tls.minimum_version = tls.maximum_version = version
            assert await refused(server, tls) is not lets_in

    run(test)


def s_client(server: Server, folder: Path, *more: str, stdin: bytes = b"") -> str:
    host, port = server.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(folder / "ca.pem"), *more]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


OLD = ("-cipher", "ALL:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("more", "options", "line"),
    [
        ("", ("-tls1_3", "-alpn", "h2,http/1.1"), "ALPN protocol: http/1.1"),
        ("", ("-alpn", "h2"), "No ALPN negotiated"),
        ("", ("-tls1_2",), "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("", ("-tls1_1", *OLD), "New, (NONE), Cipher is (NONE)"),
        ("", ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"), "New, (NONE), Cipher is (NONE)"),
        ("min_version: TLS11", ("-tls1_1", *OLD), "Protocol  : TLSv1.1"),
        ("min_version: TLS10", ("-tls1", *OLD), "Protocol  : TLSv1"),
        ("min_version: TLS13", ("-tls1_2",), "New, (NONE), Cipher is (NONE)"),
        ("max_version: TLS12", ("-tls1_3",), "New, (NONE), Cipher is (NONE)"),
        ("max_version: TLS12", (), "New, TLSv1.2, "),
        (
            "cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]",
            ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"),
            "New, TLSv1.2, Cipher is ECDHE-ECDSA-CHACHA20-POLY1305",
        ),
        (
            "prefer_server_cipher_suites: false, "
            "cipher_suites: [TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]",
            ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305"),
            "New, TLSv1.2, Cipher is ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
        (
            "cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA]",
            ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
            "New, (NONE), Cipher is (NONE)",
        ),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", ("-tls1_2",), "New, (NONE), Cipher is (NONE)"),
        ("cipher_suites: [TLS_AES_128_GCM_SHA256]", ("-tls1_3",), "New, TLSv1.3, "),
        ("curve_preferences: [CurveP384]", (), "Server Temp Key: ECDH, secp384r1, 384 bits"),
        ("", ("-groups", "X25519"), "Server Temp Key: X25519, 253 bits"),
        ("curve_preferences: [CurveP521]", ("-groups", "P-256"), "New, (NONE), Cipher is (NONE)"),
    ],
)
def test_versions_suites_and_curves_are_those_of_the_file(
    folder: Path, more: str, options: tuple[str, ...], line: str
) -> None:
    async def test() -> None:
        async with serving(folder, TLS + (f", {more}" if more else "") + "}") as server:
            shown = await asyncio.to_thread(s_client, server, folder, *options)
            # Since OpenSSL 3.5, "Server Temp Key" is "Peer Temp Key".
            assert line.replace("Server Temp", "Temp") in shown.replace("Server Temp", "Temp").replace(
                "Peer Temp", "Temp"
            )

    run(test)


def test_renegotiation_is_refused(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            shown = await asyncio.to_thread(s_client, server, folder, "-tls1_2", stdin=b"R\n")
            assert "RENEGOTIATING" in shown
            assert "no renegotiation" in shown
            # This is also the default of OpenSSL today.
            loaded = server.protection._loaded
            assert loaded is not None
            assert loaded.context is not None
            assert loaded.context.options & ssl.OP_NO_RENEGOTIATION
            assert (await ask(server, context(folder))).status == 200

    run(test)


def test_names_of_clients_are_checked_in_resumed_sessions(folder: Path) -> None:
    """A client does not send its certificate again when it resumes a session."""

    def connect(server: Server, tls: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSocket]:
        wrapped = tls.wrap_socket(
            socket.create_connection(server.address), server_hostname="localhost", session=session
        )
        wrapped.sendall(b"GET /-/healthy HTTP/1.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"healthy\n"):
            answer += wrapped.recv(4096)
        return answer, wrapped

    async def test() -> None:
        async with serving(folder, MUTUAL + ", client_allowed_sans: [prometheus.test]}") as server:
            tls = context(folder, "client")
            answer, first = await asyncio.to_thread(connect, server, tls, None)
            assert answer.endswith(b"healthy\n")
            answer, second = await asyncio.to_thread(connect, server, tls, first.session)
            assert answer.endswith(b"healthy\n")
            assert second.session_reused
            for wrapped in (first, second):
                wrapped.close()

    run(test)


def test_curl_gets_in_with_certificate_and_password(folder: Path) -> None:
    async def test() -> None:
        text = MUTUAL + "}" + users(ada=hashed("secret"))
        async with serving(folder, text) as server:
            url = f"https://127.0.0.1:{server.address[1]}/metrics"
            files = ("--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key")
            command = ["curl", "-sS", "--user", "ada:secret", *files, url]
            done = await asyncio.to_thread(
                subprocess.run, command, cwd=folder, capture_output=True, timeout=PATIENCE, check=False
            )
            assert done.stderr == b""
            assert b"\ndnsprobe_events_total 7.0\n" in done.stdout

    run(test)


def test_configured_headers_are_sent(folder: Path) -> None:
    async def test() -> None:
        chosen = (
            "{X-Frame-Options: deny, Strict-Transport-Security: max-age=60, Content-Security-Policy: default-src *}"
        )
        text = f"http_server_config: {{http2: true, headers: {chosen}}}"
        async with serving(folder, text) as server:
            answer = await ask(server, None)
            assert answer.headers["x-frame-options"] == "deny"
            assert answer.headers["strict-transport-security"] == "max-age=60"
            assert answer.headers["content-security-policy"] == "default-src *"
            page = await ask(server, None, "/")
            assert "default-src 'none'" in page.headers["content-security-policy"]  # the policy of the page is stricter

    run(test)


# Names and passwords


@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/-/ready", "/nothing"])
def test_every_path_requires_the_password(folder: Path, path: str) -> None:
    async def test() -> None:
        async with serving(folder, users(ada=hashed("secret"))) as server:
            answer = await ask(server, None, path)
            assert (answer.status, answer.body) == (401, b"unauthorized\n")
            assert answer.headers["www-authenticate"] == 'Basic realm="dnsprobe", charset="UTF-8"'
            expected = 404 if path == "/nothing" else 200
            assert (await ask(server, None, path, basic("ada", "secret"))).status == expected

    run(test)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (basic("ada", "secret"), 200),
        (basic("ada", "secret").replace("Basic", "bASIC"), 200),
        (basic("zoë", "pässwörd:with:colons"), 200),
        (basic("long", "x" * 100), 200),
        (basic("ada", "Secret"), 401),
        (basic("ada", ""), 401),
        (basic("Ada", "secret"), 401),
        (basic("", "secret"), 401),
        (basic("nobody", "secret"), 401),
        (basic("zoe\u0308", "pässwörd:with:colons"), 401),
        (basic("ada", "secret\0"), 401),
        (basic("ada", "x" * 5000), 401),
        ("Authorization: Basic YWRh\r\n", 401),
        ("Authorization: Basic\r\n", 401),
        ("Authorization: Basic !!!!\r\n", 401),
        ("Authorization: Basic YWRhOnNlY3JldA\r\n", 401),
        ("Authorization: Bearer YWRhOnNlY3JldA==\r\n", 401),
        ("Authorization: Basic \xff\xfe\r\n", 401),
        (basic("ada", "secret") * 2, 401),
        (basic("ada", "wrong") + basic("ada", "secret"), 401),
    ],
)
def test_only_a_right_name_and_password_gets_in(folder: Path, header: str, status: int) -> None:
    text = users(ada=hashed("secret"), zoë=hashed("pässwörd:with:colons"), long=hashed("x" * 72))

    async def test() -> None:
        async with serving(folder, text) as server:
            for _ in range(2):  # the second result is remembered
                assert (await ask(server, None, more=header)).status == status

    run(test)


@pytest.mark.parametrize("prefix", ["$2a$", "$2b$", "$2y$"])
def test_each_prefix_of_hashes_is_accepted(folder: Path, prefix: str) -> None:
    async def test() -> None:
        async with serving(folder, users(ada=prefix + hashed("secret")[4:])) as server:
            assert (await ask(server, None, more=basic("ada", "secret"))).status == 200
            assert (await ask(server, None, more=basic("ada", "wrong"))).status == 401

    run(test)


def test_parse_basic_returns_name_and_password() -> None:
    assert parse_basic("Basic " + base64.b64encode(b"\xff:\xfe:").decode()) == (b"\xff", b"\xfe:")
    assert parse_basic("Basic  " + base64.b64encode(b":").decode()) == (b"", b"")
    assert parse_basic("") is None
    assert parse_basic("Basic YQ==") is None


def test_a_flood_of_wrong_passwords_delays_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While bcrypt returns nothing at all, the loop runs, and clients that were verified before are served."""
    bcrypt = WatchedBcrypt(monkeypatch)
    # All clients of this test have the same user, so they differ by their addresses.
    monkeypatch.setattr(peers, "name_of", lambda _, address: address)

    async def test() -> None:
        async with (
            serving(folder, users(ada=hashed("secret"), bob=hashed("other"))) as server,
            AsyncExitStack() as stack,
        ):
            bcrypt.go_on.set()
            assert (await ask(server, None, more=basic("ada", "secret"))).status == 200
            bcrypt.go_on.clear()
            flood = [asyncio.create_task(ask(server, None, more=basic("ada", f"wrong{at}"))) for at in range(100)]
            stack.callback(bcrypt.go_on.set)
            await until(lambda: sum(task.done() for task in flood) == 100 - 1 - passwords._MAX_WAITING_PER_NETWORK)
            assert {task.result().status for task in flood if task.done()} == {429}
            for _ in range(20):
                assert (await ask(server, None, more=basic("ada", "secret"))).status == 200
                assert (await ask(server, None)).status == 401
            # A new client of another network does not wait for the whole flood.
            new = asyncio.create_task(ask(server, None, more=basic("bob", "other"), source="127.0.0.2"))
            await until(lambda: server.protection._verifier._queue.clients == 2)
            bcrypt.go_on.set()
            assert (await new).status == 200
            order = [password for password, _ in bcrypt.compared]
            assert order.index(b"other") <= 3
            answers = await asyncio.gather(*flood)
            assert sorted({answer.status for answer in answers}) == [401, 429]

    run(test)


def test_passwords_of_clients_that_left_are_not_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bcrypt = WatchedBcrypt(monkeypatch)

    async def test() -> None:
        async with serving(folder, users(ada=hashed("secret"))) as server:
            first = asyncio.create_task(ask(server, None, more=basic("ada", "first")))
            await until(lambda: len(bcrypt.compared) == 1)
            left = asyncio.create_task(ask(server, None, more=basic("ada", "left")))
            await until(lambda: len(server._clients.busy) == 2)
            left.cancel()
            await until(lambda: len(server._clients.busy) == 1)
            bcrypt.go_on.set()
            assert (await first).status == 401
            assert (await ask(server, None, more=basic("ada", "secret"))).status == 200
            assert [password for password, _ in bcrypt.compared] == [b"first", b"secret"]

    run(test)


# Files that change


def serial(pem: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.read_text())


async def shown(server: Server, tls: ssl.SSLContext) -> bytes:
    """Return the certificate that the server sends."""
    _, writer = await asyncio.open_connection(*server.address, ssl=tls, server_hostname="localhost")
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    assert isinstance(certificate, bytes)
    return certificate


def put(folder: Path, source: str, target: str) -> None:
    shutil.copy(folder / source, folder / "new")
    (folder / "new").rename(folder / target)


def test_a_new_certificate_is_loaded(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            tls = context(folder)
            old, new = serial(folder / "server.pem"), serial(folder / "renewed.pem")
            assert await shown(server, tls) == old
            reader, writer = await asyncio.open_connection(*server.address, ssl=tls, server_hostname="localhost")
            put(folder, "renewed.key", "server.key")
            assert await shown(server, tls) == old  # until certificate and key belong together
            assert not server.protection.good
            put(folder, "renewed.pem", "server.pem")
            assert await shown(server, tls) == new
            assert server.protection.good
            writer.write(b"GET /-/healthy HTTP/1.1\r\n\r\n")  # the old connection stays open
            assert (await read_answer(reader)).status == 200
            writer.transport.abort()

    run(test)


def test_a_new_client_authority_is_loaded(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, MUTUAL + "}") as server:
            assert not await refused(server, context(folder, "client"))
            put(folder, "stranger.pem", "ca.pem")
            tls = context(folder, "client")
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            assert await refused(server, tls)
            tls.load_cert_chain(folder / "wrong.pem", folder / "wrong.key")
            assert not await refused(server, tls)

    run(test)


def test_new_users_are_loaded(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, users(ada=hashed("secret"))) as server:
            reader, writer = await asyncio.open_connection(*server.address)

            async def status(name: str, password: str) -> int:
                writer.write(f"GET / HTTP/1.1\r\n{basic(name, password)}\r\n".encode())
                return (await read_answer(reader)).status

            assert await status("ada", "secret") == 200
            written(folder, users(ada=hashed("new"), bob=hashed("other")))
            assert await status("ada", "secret") == 401
            assert await status("ada", "new") == 200
            assert await status("bob", "other") == 200
            written(folder, users(bob=hashed("other")))
            assert await status("ada", "new") == 401
            writer.transport.abort()

    run(test)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (": ", "web.yml:1: not valid YAML"),
        ("basic_auth_users: {ada: x}", "basic_auth_users.ada: not a bcrypt hash"),
        ("", "basic_auth_users no longer has a user"),
        ("http_server_config: {}", "basic_auth_users no longer has a user"),
        (None, "web.yml: cannot be read: No such file or directory"),
        (TLS + "}" + users(ada=hashed("secret")), "TLS cannot be turned on while running"),
    ],
)
def test_an_invalid_file_leaves_the_previous_one_in_force(
    folder: Path, bad: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        good = users(ada=hashed("secret"))
        async with serving(folder, good) as server:
            if bad is None:
                (folder / "web.yml").unlink()
            else:
                written(folder, bad)
            for _ in range(3):
                assert (await ask(server, None)).status == 401
                answer = await ask(server, None, more=basic("ada", "secret"))
                assert b"\ndnsprobe_web_config_last_reload_successful 0.0\n" in answer.body
            (record,) = caplog.records
            assert record.levelname == "ERROR"
            assert message in record.getMessage()
            assert "the previous one stays in force" in record.getMessage()
            written(folder, good + "http_server_config: {headers: {X-Frame-Options: deny}}")
            answer = await ask(server, None, more=basic("ada", "secret"))
            assert b"\ndnsprobe_web_config_last_reload_successful 1.0\n" in answer.body
            assert answer.headers["x-frame-options"] == "deny"
            assert [each.getMessage() for each in caplog.records[1:]] == ["the web configuration was reloaded"]

    run(test)


def test_a_temporary_error_is_followed_by_another_attempt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(_name: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            protection = server.protection
            before = protection._loaded
            written(folder, TLS + ", min_version: TLS13}")
            with monkeypatch.context() as patched:
                patched.setattr(os, "memfd_create", none_left)
                for _ in range(3):
                    protection.refresh()
                    assert (protection._loaded, protection.good) == (before, False)
            (record,) = caplog.records
            assert "Too many open files" in record.getMessage()
            protection.refresh()
            assert protection.good
            assert protection._loaded != before

    run(test)


def test_a_pipe_in_place_of_the_file_does_not_block(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, users(ada=hashed("secret"))) as server:
            (folder / "web.yml").unlink()
            os.mkfifo(folder / "web.yml")
            assert (await ask(server, None)).status == 401
            assert not server.protection.good

    run(test)


def test_tls_is_not_turned_off_while_running(folder: Path) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            written(folder, "")
            assert (await ask(server, context(folder))).status == 200
            assert not server.protection.good

    run(test)


@pytest.mark.parametrize(
    ("less", "message"),
    [
        (TLS, "client_auth_type no longer requires a certificate"),
        (
            MUTUAL.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"),
            "client_auth_type no longer requires",
        ),
        (MUTUAL, "client_allowed_sans is missing now"),
    ],
)
def test_half_a_file_does_not_admit_more_clients(
    folder: Path, less: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(folder, MUTUAL + ", client_allowed_sans: [prometheus.test]}") as server:
            written(folder, less + "}")
            assert await refused(server, context(folder, "nameless"))
            assert not await refused(server, context(folder, "client"))
            assert message in caplog.text
            written(folder, MUTUAL + ", client_allowed_sans: [other.test]}")
            assert not await refused(server, context(folder, "nameless"))

    run(test)


def test_unchanged_files_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving(folder, TLS + "}") as server:
            before = server.protection._loaded
            for _ in range(3):
                assert (await ask(server, context(folder))).status == 200
            assert server.protection._loaded is before
            server.protection.refresh(force=True)
            assert server.protection._loaded is not before

    run(test)


def test_a_change_with_the_same_size_and_time_is_noticed(folder: Path) -> None:
    path = written(folder, users(ada=hashed("secret")))
    protection = Protection(str(path))
    then = path.stat()
    before = protection._loaded
    path.write_text(users(ada=hashed("other!")))
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    protection.refresh()
    assert before is not None
    assert protection._loaded is not None
    assert protection._loaded.config.users != before.config.users


def test_without_a_web_configuration_everyone_gets_in() -> None:
    protection = Protection()
    protection.refresh(force=True)
    assert (protection.scheme, protection.good, dict(protection.headers)) == ("http", True, {})
    Server(Registry(Snapshot), lambda: "", 1, protection=protection)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("{}", False),
        (TLS + "}", False),
        (TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem}", False),
        (MUTUAL + "}", True),
        (users(ada="$2y$04$" + "a" * 53), True),
        (TLS + "}" + users(ada="$2y$04$" + "a" * 53), True),
    ],
)
def test_clients_are_known_by_a_password_or_a_certificate(folder: Path, text: str, known: bool) -> None:
    assert Protection(str(written(folder, text))).knows_clients is known
    assert not Protection().knows_clients


def test_with_a_password_or_a_certificate_any_name_is_good(folder: Path) -> None:
    async def status(server: Server, tls: ssl.SSLContext | None, more: str = "") -> int:
        name = "localhost" if tls else None
        reader, writer = await asyncio.open_connection(*server.address, ssl=tls, server_hostname=name)
        writer.write(f"GET /metrics HTTP/1.1\r\nHost: metrics.example\r\n{more}\r\n".encode())
        answer = await read_answer(reader)
        writer.transport.abort()
        return answer.status

    async def test() -> None:
        async with serving(folder, "{}") as server:
            assert await status(server, None) == 421
        async with serving(folder, TLS + "}") as server:
            assert await status(server, context(folder)) == 200
        async with serving(folder, users(ada=hashed("secret"))) as server:
            assert await status(server, None) == 401
            assert await status(server, None, basic("ada", "secret")) == 200

    run(test)
