"""Debian's archive: packages of any release, from the mirror of the host, without changes to apt of the host.

Mirror, keys and proxies are read from the configuration of the host at run time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from children import Children

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: Releases with separate suites for security updates and point releases. sid has neither.
_STABLE = ("bullseye", "bookworm", "trixie")

#: Names that the sources of a host may use for its release.
_ALIASES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid", *_STABLE)

#: Settings of apt that may be necessary to reach the mirror of the host, or to accept its dates.
_CARRIED = re.compile(r"Acquire::(https?::.*|ftp::.*|Retries|Check-Valid-Until|Check-Date|.*Proxy.*|ForceIPv[46])\b")

_ENTRY = re.compile(r"deb(?:\s+\[(?P<options>[^]]*)])?\s+(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")


class ArchiveError(Exception):
    """The sources of the host, or the archive, lack something."""


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of the host's sources; ``signed_by`` is a path, a fingerprint or a key block, empty if absent."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of deb822(5) text, with keys in lower case; continued lines keep their line feeds."""
    fields: dict[str, str] = {}
    key = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, key = {}, ""
        elif line[0] in " \t":
            if key:
                fields[key] += "\n" + line.strip()
        else:
            key, _, value = line.partition(":")
            key = key.strip().lower()
            fields[key] = value.strip()


def parse_deb822(text: str) -> Iterator[Source]:
    """Yield the binary sources of a ``.sources`` file that are enabled."""
    for fields in stanzas(text):
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
            yield Source(
                tuple(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by", ""),
            )


def parse_list(text: str) -> Iterator[Source]:
    """Yield the binary sources of a ``sources.list`` file."""
    for line in text.splitlines():
        match = _ENTRY.fullmatch(line.partition("#")[0].strip())
        if match:
            options = dict(word.partition("=")[::2] for word in (match["options"] or "").split())
            yield Source(
                (match["uri"],), (match["suite"],), tuple(match["components"].split()), options.get("signed-by", "")
            )


def host_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return all sources of the host."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            found += parse_deb822(path.read_text())
        elif path.suffix == ".list" and path.exists():
            found += parse_list(path.read_text())
    return found


def sources_for(release: str, host: Iterable[Source]) -> str:
    """Return the sources of another release on the host's mirror, as deb822(5) text."""
    host = [source for source in host if "main" in source.components]
    main = next((s for s in host if _is_debian(s) and set(s.suites) & set(_ALIASES)), None)
    if main is None:
        raise ArchiveError("the host's apt sources name no mirror of Debian: add one to /etc/apt/sources.list.d")
    text = _stanza(main.uris, [release, f"{release}-updates"] if release in _STABLE else [release], main.signed_by)
    if release in _STABLE:
        security = next((s for s in host if any(suite.endswith("-security") for suite in s.suites)), None)
        # The usual name on mirrors that have both.
        uris = security.uris if security else tuple(uri.rstrip("/") + "-security" for uri in main.uris)
        text += "\n" + _stanza(uris, [f"{release}-security"], security.signed_by if security else main.signed_by)
    return text


def _is_debian(source: Source) -> bool:
    # Archives of other projects have suites with the same names, and components called main.
    return any("debian" in uri.split("/")[3:] or uri.startswith("mirror+file:") for uri in source.uris)


def _stanza(uris: Iterable[str], suites: Iterable[str], signed_by: str) -> str:
    key = "\n".join(f" {line}" for line in (signed_by or _KEYRING).splitlines())
    return f"Types: deb\nURIs: {' '.join(uris)}\nSuites: {' '.join(suites)}\nComponents: main\nSigned-By:{key}\n"


def dependencies(field: str) -> list[str]:
    """Return the package names of a Depends field without versions and architectures; the first of alternatives."""
    names = (re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", clause) for clause in field.split(","))
    return [match[1] for match in names if match]


def carried_settings(dump: str) -> str:
    """Return the lines of ``apt-config dump`` that are necessary to reach the mirror."""
    return "".join(f"{line}\n" for line in dump.splitlines() if _CARRIED.match(line))


class Archive:
    """One release of the archive. ``folder`` has a separate state of apt for it."""

    def __init__(self, release: str, folder: Path, children: Children, log: Path) -> None:
        self._folder = folder.resolve()
        self._children = children
        self._log = log
        self._env = {"APT_CONFIG": str(self._folder / "apt.conf"), "LC_ALL": "C"}
        #: The sources of the release, as a file that apt and mmdebstrap read.
        self.sources = self._folder / "parts" / "debian.sources"
        #: The settings of the host that are necessary to reach the mirror, as a file for apt.
        self.settings = self._folder / "acquire.conf"
        for name in ("parts", "lists/partial", "cache/archives/partial", "nothing"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "status").touch()
        self.sources.write_text(sources_for(release, host_sources()))
        self.settings.write_text(carried_settings(children.output(["apt-config", "dump"])))
        (self._folder / "apt.conf").write_text(self._configuration())

    def update(self) -> None:
        """Fetch the lists of packages."""
        # Without --error-on, a missing suite is only a warning, and apt takes old versions.
        self._children.run(["apt-get", "update", "-q", "--error-on=any"], self._log, env=self._env)

    def version(self, package: str) -> str:
        """Return the current version of a package."""
        return self._record(package)["version"]

    def depends(self, package: str) -> list[str]:
        """Return the names of the packages that a package depends on."""
        return dependencies(self._record(package).get("depends", ""))

    def download(self, packages: Iterable[str], folder: Path) -> dict[str, str]:
        """Put ``.deb`` files of packages into a folder, without dependencies; return their versions."""
        versions = {package: self.version(package) for package in packages}
        exact = [f"{package}={version}" for package, version in versions.items()]
        self._children.run(["apt-get", "download", "-q", *exact], self._log, cwd=folder, env=self._env)
        return versions

    def _record(self, package: str) -> dict[str, str]:
        shown = self._children.output(["apt-cache", "show", "--no-all-versions", package], env=self._env)
        return next(stanzas(shown))

    def _configuration(self) -> str:
        # Not apt.conf.d of the host, which may have hooks and pins: only the settings in carried_settings().
        folder = self._folder
        return f"""\
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "{folder}/nothing";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "{folder}/nothing";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "{folder}/parts";
Dir::State "{folder}";
Dir::State::Lists "{folder}/lists";
Dir::State::Status "{folder}/status";
Dir::Cache "{folder}/cache";
Acquire::Languages "none";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
{self.settings.read_text()}"""
