"""The commands of docs/install.md, unchanged, in minimal Debian 12 and 13: in a clone, with real BPF."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_tree import DebianTree, build_deb, debian_tree, progress_printer
from products import PrintLine
from questions import questions

REPOSITORY = Path(__file__).parents[2]
COMMANDS = questions((REPOSITORY / "docs/install.md").read_text("utf-8"))
CLONE = "/root/clone"
AUTHORITIES = "/etc/apt/authorities.crt"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for chroot and BPF: run scripts/test as root")

# systemd does not run in a tree, so no unit can be started. The virtual machines test that.
NOT_NOW = 'systemctl() { command systemctl "${@/--now/--quiet}"; }\n'


@pytest.fixture(scope="module")
def print_line(pytestconfig: pytest.Config) -> PrintLine:
    return progress_printer(pytestconfig)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def tree(request: pytest.FixtureRequest, print_line: PrintLine) -> Iterator[DebianTree]:
    """Return a tree with a clone and the package in it."""
    with debian_tree(request.param, lambda text: print_line(f"{request.param}: {text}")) as tree:
        clone = tree.root / CLONE.lstrip("/")
        clone.mkdir()
        listed = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=REPOSITORY, text=True).splitlines():
            if (REPOSITORY / name).exists():
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, clone / name)
        (clone / "dist").mkdir()
        shutil.copy(build_deb(), clone / "dist")
        tree.write("/etc/apt/apt.conf.d/99yes", 'APT::Get::Assume-Yes "true";\n')
        tree.apt("update")
        yield tree


def follow(tree: DebianTree, heading: str) -> str:
    """Run the commands below a heading, and return their output."""
    return run_all(tree, COMMANDS[heading])


def run_all(tree: DebianTree, commands: list[str]) -> str:
    """Run commands in one shell, in the clone, and return their output."""
    # pipx downloads build tools in the same way as the host: through its proxy, with its trusted authorities.
    carried = {name: value for name, value in os.environ.items() if re.fullmatch("(?i).*_proxy|pip_index_url", name)}
    if (tree.root / AUTHORITIES.lstrip("/")).exists():
        carried["PIP_CERT"] = AUTHORITIES
    variables = [PATH, *(f"{name}={value}" for name, value in carried.items())]
    return tree.run("env", "--chdir", CLONE, *variables, "bash", "-euxc", NOT_NOW + "".join(commands))


def proved(output: str) -> bool:
    """Return whether the output of the doctor says that all paths are proved."""
    return len(re.findall(r"^ok  (?:udp|tcp)[46] .*, proved$", output, re.MULTILINE)) == 4


def test_every_section_of_the_document_is_tested() -> None:
    assert list(COMMANDS) == ["The Debian package", "To upgrade it", "To remove it", "pipx", "Ansible"]


def test_the_package_is_installed_upgraded_and_removed(tree: DebianTree) -> None:
    output = follow(tree, "The Debian package")
    assert proved(output), output
    assert "good: 0 rules" in output
    assert tree.run("systemctl", "is-enabled", "dnsprobe.service") == "enabled\n"
    tree.write("/etc/dnsprobe/dnsprobe.yaml", "domains: [changed.test]\n")
    follow(tree, "To upgrade it")
    assert tree.run("dnsprobe", "check") == "good: 1 rule\n"
    follow(tree, "To remove it")
    assert not (tree.root / "usr/bin/dnsprobe").exists()
    assert not (tree.root / "etc/dnsprobe").exists()


def test_pipx_installs_and_removes_it(tree: DebianTree) -> None:
    commands = COMMANDS["pipx"]
    output = run_all(tree, commands[:5])
    assert proved(output), output
    assert "good: 0 rules" in output
    venv = tree.root / "opt/pipx/venvs/dnsprobe"
    kept = {str(path.relative_to(venv / "share/dnsprobe")) for path in (venv / "share/dnsprobe").rglob("*.[ch]")}
    assert kept == {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "bpf").rglob("*.[ch]")}
    # Everything else comes from Debian. PyPI has other versions, or other programs with the same names.
    (packages,) = venv.glob("lib/python3*/site-packages")
    brought = {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}
    assert "dnsprobe" in brought
    assert brought <= {"dnsprobe", "pip", "setuptools", "wheel"}
    run_all(tree, commands[5:])
    assert not venv.exists()
    assert not (tree.root / "usr/local/bin/dnsprobe").exists()


def test_ansible_installs_it_and_checks_its_configuration(tree: DebianTree) -> None:
    """systemd does not run here, so Ansible enables the service, but does not start it."""
    tree.write(f"{CLONE}/hosts.ini", "localhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n")
    output = follow(tree, "Ansible")
    assert re.search(r"localhost +: ok=[0-9]+ +changed=[1-9].* unreachable=0 +failed=0", output), output
    assert tree.run("systemctl", "is-enabled", "dnsprobe.service") == "enabled\n"
    assert "domains: []" in (tree.root / "etc/dnsprobe/dnsprobe.yaml").read_text()
    again = follow(tree, "Ansible")
    assert re.search(r"localhost +: ok=[0-9]+ +changed=0 ", again), again
    # A wrong configuration is not installed.
    (tree.root / CLONE.lstrip("/") / "config/dnsprobe.yaml").write_text("domains: [a..b]\n")
    with pytest.raises(AssertionError, match="failed to validate") as caught:
        follow(tree, "Ansible")
    assert "a..b" in str(caught.value)
    assert "domains: []" in (tree.root / "etc/dnsprobe/dnsprobe.yaml").read_text()
