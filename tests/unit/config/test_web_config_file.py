"""The web configuration file: its meaning, and the errors in a wrong file."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from certificates import authority, certificate
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsprobe import cli
from dnsprobe.config import web as webconfig
from dnsprobe.config.nodes import ConfigError
from dnsprobe.config.web import CIPHER_SUITES, WebConfig, load
from dnsprobe.errors import EXIT_USAGE, UserError
from dnsprobe.web.protection import read

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
PAGE = (Path(__file__).parents[3] / "docs" / "web.md").read_text("utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    ca = authority(folder, "ca")
    certificate(folder, "server", ca, "DNS:localhost")
    certificate(folder, "other", ca, "DNS:localhost")
    locked = ["openssl", "pkey", "-in", "server.key", "-out", "locked.key", "-aes256", "-passout", "pass:x"]
    weak = ["openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=x", "-keyout", "weak.key"]
    for command in (locked, [*weak, "-out", "weak.pem"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "garbage.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (folder / "garbage.key").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (folder / "empty").touch()
    (folder / "large").write_bytes(b"x" * (1 << 20) + b"x")
    os.mkfifo(folder / "pipe")
    return folder


def written(folder: Path, text: str) -> str:
    path = folder / "web.yml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


def error(folder: Path, text: str) -> str:
    """Return the error message about a file, without the folder."""
    with pytest.raises(ConfigError) as caught:
        read(written(folder, text))
    assert caught.value.status == EXIT_USAGE
    assert all(problem.hint for problem in caught.value.problems)
    assert all(line.isprintable() for line in caught.value.message.split("\n"))
    return caught.value.message.replace(f"{folder}/", "")


def test_errors_do_not_show_a_private_key(made: Path) -> None:
    key = (made / "server.key").read_text()
    for form in (json.dumps(key), json.dumps(key.replace("\n", " "))):
        said = error(made, f"tls_server_config: {{cert_file: server.pem, key_file: {form}}}")
        assert "put it under key, without _file" in said
        assert not any(line in said for line in key.splitlines())


@pytest.mark.parametrize("text", ["", "---\n", "null", "{}", "tls_server_config:\nbasic_auth_users:\n", "# nothing"])
def test_an_empty_file_is_plain_http(made: Path, text: str) -> None:
    now = read(written(made, text))
    assert (now.config, now.context) == (WebConfig(), None)


def test_absent_keys_have_the_defaults(made: Path) -> None:
    config = load(written(made, "tls_server_config: {cert_file: server.pem, key_file: server.key}"))
    assert config.tls is not None
    assert config.tls.cert.path == str(made / "server.pem")
    assert config.tls.client_auth == ssl.CERT_NONE
    assert (config.tls.min_version, config.tls.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    assert config.tls.suites is None
    assert config.tls.prefer_server_suites
    assert config.tls.allowed_sans is None
    assert config.files == (str(made / "server.pem"), str(made / "server.key"))


def test_paths_are_relative_to_the_folder_of_the_file(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(made, f"tls_server_config: {{cert_file: ./server.pem, key_file: {made}/server.key}}")
    monkeypatch.chdir(made)
    now = read("web.yml")
    monkeypatch.chdir("/")
    assert now.config.files == (f"{made}/./server.pem", f"{made}/server.key")
    assert now.context is not None


def test_certificates_and_key_may_be_in_the_file_itself(made: Path) -> None:
    def indented(name: str) -> str:
        return "".join(f"    {line}\n" for line in (made / name).read_text().splitlines())

    text = (
        f"tls_server_config:\n  cert: |\n{indented('server.pem')}  key: |\n{indented('server.key')}"
        f"  client_ca: |\n{indented('ca.pem')}  client_auth_type: RequireAndVerifyClientCert\n"
    )
    now = read(written(made, text))
    assert now.context is not None
    assert now.context.verify_mode == ssl.CERT_REQUIRED
    assert len(now.context.get_ca_certs()) == 1
    assert now.config.files == ()
    said = error(made, text.replace(indented("server.key"), "    PRIVATE\n"))
    assert said.startswith("web.yml:")
    assert "tls_server_config.key: not a private key in PEM form" in said


def test_text_around_certificates_is_ignored(made: Path) -> None:
    chain = "# naïve\n" + (made / "server.pem").read_text() + "text\n" + (made / "ca.pem").read_text()
    (made / "chain.pem").write_text(chain)
    assert read(written(made, "tls_server_config: {cert_file: chain.pem, key_file: server.key}")).context is not None


def test_openssl_knows_every_suite_of_go(made: Path) -> None:
    names = ", ".join(CIPHER_SUITES)
    now = read(
        written(made, f"tls_server_config: {{cert_file: server.pem, key_file: server.key, cipher_suites: [{names}]}}")
    )
    assert now.context is not None
    there = [cipher["name"] for cipher in now.context.get_ciphers() if not cipher["name"].startswith("TLS_")]
    assert there == list(CIPHER_SUITES.values())


GOOD = "cert_file: server.pem, key_file: server.key"
SERVER = f"tls_server_config: {{{GOOD}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "web.yml:1: not a mapping of keys to values (a list)"),
        ("tls_config: {}", "web.yml:1: tls_config: an unknown key (tls_config); did you mean tls_server_config?"),
        (
            "tls_server_config: {cert_fil: x}",
            "tls_server_config.cert_fil: an unknown key (cert_fil); did you mean cert_file?",
        ),
        ("tls_server_config: {}", "tls_server_config: neither cert_file nor cert is set; add cert_file: PATH"),
        (
            "tls_server_config: {cert_file: server.pem}",
            "tls_server_config: neither key_file nor key is set; add key_file: PATH",
        ),
        ("tls_server_config: {cert_file: '', key_file: ''}", "tls_server_config: neither cert_file nor cert"),
        (SERVER + ", cert: x}", "tls_server_config.cert_file: cert is set too; remove one of them"),
        (
            SERVER + ", min_version: TLS14}",
            "min_version: not a possible value (TLS14); use one of TLS10, TLS11, TLS12, TLS13",
        ),
        (SERVER + ", min_version: 1.2}", "tls_server_config.min_version: not a possible value (1.2)"),
        (SERVER + ", min_version: TLS13, max_version: TLS12}", "min_version: min_version is above max_version"),
        (SERVER + ", max_version: TLS11}", "max_version: min_version is above max_version"),
        (
            SERVER + ", cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}",
            "tls_server_config.cipher_suites[0]: not a possible value",
        ),
        (SERVER + ", cipher_suites: TLS_AES_128_GCM_SHA256}", "tls_server_config.cipher_suites: not a list"),
        (SERVER + ", max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}", "all are suites of TLS 1.3"),
        (
            SERVER + ", prefer_server_cipher_suites: maybe}",
            "prefer_server_cipher_suites: neither true nor false (maybe)",
        ),
        (
            SERVER + ", curve_preferences: [X448]}",
            "tls_server_config.curve_preferences[0]: not a possible value (X448)",
        ),
        (
            SERVER + ", curve_preferences: [CurveP256, X25519]}",
            "curve_preferences: 2 curves, but Python's ssl accepts only one",
        ),
        (SERVER + ", client_auth_type: Always}", "tls_server_config.client_auth_type: not a possible value (Always)"),
        (
            SERVER + ", client_auth_type: RequireAnyClientCert}",
            "(RequireAnyClientCert); use RequireAndVerifyClientCert for clients with",
        ),
        (
            SERVER + ", client_auth_type: RequireClientCert}",
            "client certificates cannot be accepted without verifying them",
        ),
        (
            SERVER + ", client_auth_type: RequestClientCert}",
            "client certificates cannot be accepted without verifying them",
        ),
        (
            SERVER + ", client_auth_type: VerifyClientCertIfGiven}",
            "client_auth_type: no client_ca, which verifies the certificates",
        ),
        (SERVER + ", client_ca_file: ca.pem}", "client_ca_file: client_auth_type does not request certificates"),
        (
            SERVER + ", client_allowed_sans: [a.test]}",
            "client_allowed_sans: client_auth_type does not require certificates",
        ),
        (
            SERVER + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: garbage.pem}",
            "client_ca_file: not a cert",
        ),
        (
            SERVER + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: empty}",
            "client_ca_file: not a cert",
        ),
        (
            "tls_server_config: {cert_file: none.pem, key_file: server.key}",
            "cert_file: cannot be read (none.pem): No such",
        ),
        ("tls_server_config: {cert_file: server.pem, key_file: .}", "key_file: cannot be read (.): Is a directory"),
        ("tls_server_config: {cert_file: pipe, key_file: server.key}", "cert_file: not a file, but a FIFO (pipe)"),
        ("tls_server_config: {cert_file: large, key_file: server.key}", "cert_file: larger than 1 MiB (large)"),
        (
            "tls_server_config: {cert_file: /dev/zero, key_file: server.key}",
            "cert_file: not a file, but a device (/dev/zero)",
        ),
        ('tls_server_config: {cert_file: "a\\nb", key_file: server.key}', "cert_file: not a path (a\\x0ab)"),
        (
            "tls_server_config: {cert_file: server.key, key_file: server.key}",
            "cert_file: not a certificate in PEM form",
        ),
        (
            "tls_server_config: {cert_file: garbage.pem, key_file: server.key}",
            "cert_file: not a certificate in PEM form",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: garbage.key}",
            "key_file: not a private key in PEM form",
        ),
        ("tls_server_config: {cert_file: server.pem, key_file: server.pem}", "key_file: not a private key in PEM form"),
        (
            "tls_server_config: {cert_file: server.pem, key_file: other.key}",
            "key_file: does not belong to the certificate",
        ),
        (
            "tls_server_config: {cert_file: server.pem, key_file: locked.key}",
            "key_file: an encrypted key; remove its passphrase",
        ),
        (
            "tls_server_config: {cert_file: weak.pem, key_file: weak.key}",
            "cert_file: a certificate that OpenSSL refuses",
        ),
        (
            "rate_limit: {interval: 1s, burst: 1}",
            "web.yml:1: rate_limit: not supported; remove it: metrics.connections",
        ),
        ("http_server_config: {http3: true}", "http_server_config.http3: an unknown key (http3); did you mean http2?"),
        ("http_server_config: {http2: 2}", "http_server_config.http2: neither true nor false (2)"),
        ("http_server_config: {headers: {Server: x}}", "http_server_config.headers.Server: an unknown key (Server)"),
        ("http_server_config: {headers: {X-Frame-Options: no}}", "X-Frame-Options: not a value of this header (no)"),
        (
            'http_server_config: {headers: {X-XSS-Protection: "a\\nb"}}',
            "X-XSS-Protection: not printable ASCII (a\\x0ab)",
        ),
        (
            'http_server_config: {headers: {X-XSS-Protection: "\u202e"}}',
            "X-XSS-Protection: not printable ASCII (\\u202e)",
        ),
        ("basic_auth_users: [ada]", "basic_auth_users: not a mapping of user names to hashes"),
        ("basic_auth_users: {[a]: x}", "basic_auth_users: not a key (a list)"),
        ("basic_auth_users: {'': x}", "a name that no client can send ()"),
        (
            "basic_auth_users: {'a:b': x}",
            "basic_auth_users.a:b: a name that no client can send (a:b); use a name without",
        ),
        (f"basic_auth_users: {{a: '{HASH}', a: '{HASH}'}}", "basic_auth_users.a: a duplicate of the key in line 1"),
        ('basic_auth_users: {"\\e[31m": x}', "basic_auth_users.\\x1b[31m: not a bcrypt hash"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(made: Path, text: str, said: str) -> None:
    assert said in error(made, text)


@pytest.mark.parametrize(
    "secret", ["sesame", "$2y$10$tooshort", "$1$abcdefgh$0123456789", HASH + "x", "$2x" + HASH[3:], "$2b$03" + HASH[6:]]
)
def test_errors_do_not_show_secrets(made: Path, secret: str) -> None:
    said = error(made, f"basic_auth_users: {{ada: '{secret}'}}")
    assert "web.yml:1: basic_auth_users.ada: " in said
    assert secret not in said
    assert secret not in error(made, f"basic_auth_users: '{secret}'")
    for key in ("key", "cert"):
        assert secret not in error(made, f"tls_server_config: {{cert: '{secret}', key: '{secret}', {key}_file: x}}")
    assert secret not in repr(load(written(made, f"tls_server_config: {{cert: x, key: '{secret}'}}")))


def test_a_hash_with_a_high_cost_is_an_error(made: Path) -> None:
    assert "basic_auth_users.a: a cost of 17; " in error(made, f"basic_auth_users: {{a: '$2b$17{HASH[6:]}'}}")
    assert load(written(made, f"basic_auth_users: {{a: '$2b$16{HASH[6:]}'}}")).users.keys() == {b"a"}


def test_all_errors_come_at_once(made: Path) -> None:
    said = error(
        made, "tls_server_config:\n  min_version: x\nbasic_auth_users:\n  a: x\nhttp_server_config: {http2: x}\n"
    )
    assert [line.split(": ")[0] for line in said.split("\n")] == ["web.yml:2"] * 3 + ["web.yml:4", "web.yml:5"]


def test_user_names_are_taken_as_they_are_written(made: Path) -> None:
    users = load(written(made, f"basic_auth_users: {{zoë: '{HASH}', 7: '{HASH}', no: '{HASH}', null: '{HASH}'}}")).users
    assert set(users) == {"zoë".encode(), b"7", b"no", b"null"}


def test_headers_without_a_value_are_left_out(made: Path) -> None:
    text = "http_server_config: {headers: {X-XSS-Protection: 0, X-Frame-Options: '', Strict-Transport-Security: }}"
    assert load(written(made, text)).headers == {"X-XSS-Protection": "0"}


def test_users_without_bcrypt_are_an_error(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "bcrypt":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"^basic_auth_users: the Python module bcrypt is missing$") as caught:
        read(written(made, f"basic_auth_users: {{a: '{HASH}'}}"))
    assert caught.value.hint == "apt install python3-bcrypt"
    assert read(written(made, SERVER + "}")).context is not None  # only a configuration with users needs it


def test_all_descriptors_are_closed(made: Path) -> None:
    read(written(made, SERVER + "}"))
    before = os.listdir("/proc/self/fd")
    for text in (
        SERVER + "}",
        SERVER.replace("server.key", "other.key") + "}",
        SERVER.replace("server.pem", "pipe") + "}",
    ):
        path = written(made, text)
        with suppress(ConfigError):
            read(path)
    assert os.listdir("/proc/self/fd") == before


@given(st.text(st.sampled_from("abn:{}[],'\"\n -$2x/_|&*!"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_configuration_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    for before in ("", "tls_server_config:\n  ", "basic_auth_users: "):
        said = ""
        try:
            load(written(folder, before + text))
        except ConfigError as caught:
            said = caught.message
        assert all(line.isprintable() for line in said.split("\n"))


def test_check_reports_errors(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns("pipe"))
    web = written(tmp_path / "made", SERVER + "}")
    config = tmp_path / "dnsprobe.yaml"
    config.write_text(f"metrics: {{web_config: {web}}}")
    assert cli.main(["check", "--config", str(config)]) == 0
    shutil.copy(made / "other.key", tmp_path / "made" / "server.key")
    for arguments in (["--config", str(config)], ["--config", os.devnull, "--web.config.file", web]):
        capsys.readouterr()
        assert cli.main(["check", *arguments]) == EXIT_USAGE
        assert f"{web}:1: tls_server_config.key_file: does not belong to the certificate; " in capsys.readouterr().err


def test_run_reports_errors_before_it_attaches_anything(
    made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnsprobe.privileges.require", lambda: None)
    monkeypatch.setattr("faulthandler.enable", lambda **_: None)  # It needs a real standard error.
    web = written(made, "basic_auth_users: {ada: x}")
    assert cli.main(["run", "--config", os.devnull, "--web.config.file", web]) == EXIT_USAGE
    assert f"{web}:1: basic_auth_users.ada: not a bcrypt hash" in capsys.readouterr().err


def test_the_page_has_every_key() -> None:
    table = PAGE.split("## Keys of the file\n")[1]
    for key in (*webconfig.TLS_KEYS, *webconfig._HEADERS, "http2", "rate_limit", *webconfig._UNVERIFIED):
        assert f"{key}`" in table
    for value in (*webconfig.VERSIONS, *webconfig.CLIENT_AUTH, *webconfig.CURVES):
        assert f"`{value}`" in table
