"""Where the configuration comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsprobe.config import source
from dnsprobe.config.source import Source


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the default file, which does not exist yet."""
    path = tmp_path / "default.yaml"
    monkeypatch.setattr(source, "DEFAULT_CONFIG", str(path))
    return path


def test_without_a_file_it_is_the_default_configuration(default: Path) -> None:
    assert Source().resolved() == Source()
    assert Source().read().domains == ()
    default.write_text("domains: [a.test]")
    assert Source().resolved() == Source(str(default))


def test_a_default_file_that_was_there_must_stay(default: Path) -> None:
    default.write_text("domains: [a.test]")
    resolved = Source().resolved()
    default.unlink()
    # Not all names, while an editor replaces the file.
    with pytest.raises(Exception, match="cannot be read"):
        resolved.resolved().read()


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("metrics: {listen: '127.0.0.1:1', web_config: /a}")
    plain = Source(str(path)).read()
    assert (plain.metrics.listen, plain.metrics.web_config) == (("127.0.0.1", 1), "/a")
    other = Source(str(path), "[::1]:2", "/b").read()
    assert (other.metrics.listen, other.metrics.web_config) == (("::1", 2), "/b")
    assert plain.needs_restart() != other.needs_restart()


def test_only_changes_beside_the_rules_need_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("domains: [a.test]\nprobe: {names: 7}")
    before = Source(str(path)).read().needs_restart()
    path.write_text("domains: [b.test]\nprobe: {names: 7}")
    assert Source(str(path)).read().needs_restart() == before
    path.write_text("domains: [b.test]\nprobe: {names: 8}")
    assert Source(str(path)).read().needs_restart() != before
