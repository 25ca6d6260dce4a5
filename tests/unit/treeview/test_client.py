"""How ``dnsprobe tree`` asks a daemon, and what it reports if there is no good answer."""

from __future__ import annotations

import base64
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.treeview.client import NotAnswering, Target, complete_url, fetch, parse, url_of

GOLDEN = Path(__file__).parents[1].joinpath("scrape.txt").read_text("utf-8")


class Daemon:
    """An HTTP server that answers with a status, headers and a text, and records the requests."""

    def __init__(self) -> None:
        self.status, self.headers, self.text = 200, {"Content-Type": "text/plain"}, GOLDEN
        self.asked: list[tuple[str, str | None]] = []
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                daemon.asked.append((self.path, self.headers["Authorization"]))
                self.send_response(daemon.status)
                for name, value in daemon.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(daemon.text.encode())

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.where = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.where}/metrics"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.stop()


def error_of(target: Target) -> UserError:
    with pytest.raises(UserError) as caught:
        fetch(target)
    assert caught.value.hint
    return caught.value


def test_fetch_returns_the_counters(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy must not be used.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    scrape = fetch(Target(daemon.url))
    assert (scrape.version, len(scrape.queries), len(scrape.encrypted)) == ("VERSION", 4, 1)
    assert sum(series.value for series in scrape.queries) == 11 + 5 + 1_000_003 + 7
    assert scrape.queries[0].labels["tree"] == 'x;a"b\\x0a\\\\c{d="e"} 7 # é'
    assert daemon.asked == [("/metrics", None)]


def test_the_password_is_sent_and_its_refusal_is_an_error(daemon: Daemon) -> None:
    fetch(Target(daemon.url, user="ada", password="pass:wörd"))
    (given,) = (header for _, header in daemon.asked)
    assert given == "Basic " + base64.b64encode("ada:pass:wörd".encode()).decode()
    daemon.status = 401
    assert error_of(Target(daemon.url)).message == f"{daemon.url} requires a user name and a password"
    assert "DNSPROBE_PASSWORD" in error_of(Target(daemon.url)).hint
    message = error_of(Target(daemon.url, user="ada", password="x")).message
    assert message == f"{daemon.url} refused the user ada with this password"


def test_a_redirect_is_not_followed(daemon: Daemon) -> None:
    other = Daemon()
    daemon.status, daemon.headers = 302, {"Location": other.url}
    message = error_of(Target(daemon.url, user="ada", password="x")).message
    assert message == f"{daemon.url} is not a dnsprobe: the answer is 302 Found"
    assert other.asked == []
    other.stop()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, GOLDEN),
        (403, GOLDEN),
        (200, "<html>hello</html>"),
        (200, ""),
        (200, "# TYPE a_total counter\na_total 1\n"),
        (200, 'dnsprobe_build_info{version="1"} 1\ndnsprobe_queries_total{tree="a"} NaN\n'),
        (200, 'dnsprobe_build_info{version="1"} 1\ndnsprobe_queries_total{tree="a"} +Inf\n'),
        (200, 'dnsprobe_build_info{version="1'),
        (200, "\x1b[2J\x00"),
    ],
)
def test_an_answer_of_another_server_is_an_error(daemon: Daemon, status: int, text: str) -> None:
    daemon.status, daemon.text = status, text
    error = error_of(Target(daemon.url))
    assert error.message.startswith(f"{daemon.url} is not a dnsprobe: ")
    assert error.message.isprintable()


def test_errors_that_may_pass_are_told_apart(daemon: Daemon) -> None:
    daemon.status = 503
    assert isinstance(error_of(Target(daemon.url)), NotAnswering)
    daemon.stop()
    error = error_of(Target(daemon.url))
    assert isinstance(error, NotAnswering)
    assert error.message == f"no dnsprobe at {daemon.where}: connection refused"
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"

        def close() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=close)
        thread.start()
        error = error_of(Target(f"http://{where}/metrics"))
        thread.join()
    assert isinstance(error, NotAnswering)
    assert error.message == f"{where} closed the connection"
    assert f"https://{where}/metrics" in error.hint


@pytest.mark.parametrize("cut", [1, 7, 200])
def test_a_truncated_answer_is_an_error(daemon: Daemon, cut: int) -> None:
    whole = len(daemon.text.encode())
    daemon.headers["Content-Length"] = str(whole)
    daemon.text = daemon.text.encode()[: whole - cut].decode("utf-8", "ignore")
    error = error_of(Target(daemon.url))
    assert isinstance(error, NotAnswering)
    assert error.message == f"{daemon.where} closed the connection"


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 70])
def test_an_invalid_host_name_is_an_error(host: str) -> None:
    assert "not a valid host name" in error_of(Target(complete_url(f"http://{host}:1"))).message


def test_a_temporary_failure_of_the_resolver_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_more: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert isinstance(error_of(Target("http://host.example:1/metrics")), NotAnswering)


def test_an_unknown_host_name_is_an_error() -> None:
    assert error_of(Target("http://nowhere.invalid:1/metrics")).message.startswith("nowhere.invalid:1: ")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Return a certificate for 127.0.0.1 with its key in one file."""
    key, made = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(made), "-days", "2", "-subj", "/CN=made-up"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + made.read_text())
    return both


def serve_tls(daemon: Daemon, certificate: Path, *, client_certificate: bool = False) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if client_certificate:
        context.load_verify_locations(certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    daemon.server.socket = context.wrap_socket(daemon.server.socket, server_side=True)
    # The client reports a failed handshake.
    daemon.server.handle_error = lambda *_arguments: None  # type: ignore[method-assign]
    return f"https://{daemon.where}/metrics"


def test_an_untrusted_certificate_is_an_error(daemon: Daemon, certificate: Path) -> None:
    url = serve_tls(daemon, certificate)
    assert fetch(Target(url, cacert=str(certificate))).version == "VERSION"
    error = error_of(Target(url))
    assert error.message.startswith(f"the certificate of {daemon.where} is not trusted: ")
    assert "--cacert" in error.hint
    # The certificate is made for the address, not for the name.
    error = error_of(Target(url.replace("127.0.0.1", "localhost"), cacert=str(certificate)))
    assert "is not trusted: " in error.message
    assert "if the server uses TLS" in error_of(Target(daemon.url)).hint


def test_a_client_certificate_is_sent(daemon: Daemon, certificate: Path) -> None:
    url = serve_tls(daemon, certificate, client_certificate=True)
    assert fetch(Target(url, cacert=str(certificate), cert=str(certificate))).version == "VERSION"
    assert fetch(
        Target(
            url,
            cacert=str(certificate),
            cert=str(certificate.with_name("cert.pem")),
            key=str(certificate.with_name("key.pem")),
        )
    ).version
    # The client sees an alert of TLS or the end of the connection, whichever comes first.
    assert "--cert and --key" in error_of(Target(url, cacert=str(certificate))).hint


def test_https_to_a_plain_server_is_an_error(daemon: Daemon) -> None:
    error = error_of(Target(daemon.url.replace("http:", "https:")))
    assert error.message == f"{daemon.where} does not use TLS"
    assert daemon.url in error.hint


@pytest.mark.parametrize("option", ["cacert", "cert"])
def test_files_that_are_missing_or_not_pem_are_an_error(option: str, tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("hello")
    for name, why in (("no.pem", "not in PEM format"), ("absent.pem", "No such file or directory")):
        target = Target("https://127.0.0.1:1/metrics", **{option: str(tmp_path / name)})
        error = error_of(target)
        assert (error.message, error.status) == (f"--{option} {tmp_path / name}: {why}", EXIT_USAGE)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("127.0.0.1:10059", "http://127.0.0.1:10059/metrics"),
        ("host.example", "http://host.example/metrics"),
        ("https://[::1]:1/", "https://[::1]:1/metrics"),
        ("http://host.example:1/dns/metrics?x#y", "http://host.example:1/dns/metrics"),
    ],
)
def test_a_url_is_completed(given: str, meant: str) -> None:
    assert complete_url(given) == meant


@pytest.mark.parametrize(
    "given", ["", "file:///etc/passwd", "ftp://a/", "http://", "http://a:b/", "http://[::1", "a b"]
)
def test_an_invalid_url_is_an_error(given: str) -> None:
    with pytest.raises(UserError) as caught:
        complete_url(given)
    assert caught.value.status == EXIT_USAGE


@pytest.mark.parametrize("given", ["http://{}@host.example/", "ftp://{}@host/", "http://{}@host:99999/", "{} @host"])
def test_a_password_in_a_url_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(UserError) as caught:
        complete_url(given.format("ada:secret"))
    assert "secret" not in caught.value.message + caught.value.hint


def test_the_default_url_is_the_configured_address() -> None:
    assert url_of(("127.0.0.1", 10059)) == "http://127.0.0.1:10059/metrics"
    assert url_of(("0.0.0.0", 1)) == "http://127.0.0.1:1/metrics"
    assert url_of(("::", 1)) == "http://[::1]:1/metrics"
    assert url_of(("192.0.2.1", 1)) == "http://192.0.2.1:1/metrics"
    with pytest.raises(UserError, match="port 0"):
        url_of(("127.0.0.1", 0))


def test_a_daemon_that_has_counted_nothing_has_no_series() -> None:
    assert parse('dnsprobe_build_info{version="1"} 1\n', "u").queries == ()
