"""What user space parses, each as a function of octets. A target raises nothing but the errors that callers expect.

Each target also checks what must hold for all inputs: what is shown is printable, and what is read back is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnsprobe.config import main, web
from dnsprobe.config.listen import parse_listen
from dnsprobe.errors import UserError
from dnsprobe.kernel import kallsyms
from dnsprobe.kernel.btf import read_btf
from dnsprobe.model import Ancestry, Container, Identity, Process
from dnsprobe.names import wire
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.process import cgroup, procfs
from dnsprobe.process.container_names import ContainerNames
from dnsprobe.text import printable, shorten, shown
from dnsprobe.treeview import client

_FOLDER = Path(tempfile.mkdtemp(prefix="dnsprobe-fuzz-"))
_ID = "3f4e" * 16


def _file(data: bytes, name: str = "input") -> str:
    path = _FOLDER / name
    path.write_bytes(data)
    return str(path)


def _check_shown(text: str) -> None:
    assert text.isprintable(), text
    text.encode("utf-8")


def configuration(data: bytes) -> None:
    """A configuration file: valid, or an error with a hint."""
    try:
        config = main.load(_file(data))
        RuleSet.build(config.domains)
    except UserError as error:
        for line in str(error).splitlines():
            _check_shown(line)


def web_configuration(data: bytes) -> None:
    """A web configuration file, without the cost of a password."""
    try:
        web.load(_file(data))
    except UserError as error:
        for line in str(error).splitlines():
            _check_shown(line)


def listen(data: bytes) -> None:
    """An address and a port."""
    try:
        host, port = parse_listen(data.decode("utf-8", "surrogateescape"))
        assert host
        assert 0 <= port <= 65535
    except UserError as error:
        _check_shown(str(error).splitlines()[0])


def rule(data: bytes) -> None:
    """A rule, and a name to match with it: they are separated by a NUL."""
    text, _, name = data.partition(b"\0")
    try:
        rules = RuleSet.build([("name", text.decode("utf-8", "surrogateescape"), 6)])
    except UserError as error:
        _check_shown(str(error).splitlines()[0])
        return
    assert rules.trie()
    if text.lstrip().startswith(b"/"):
        return  # an expression may take any time: its matching has a budget elsewhere
    try:
        rules.match(wire.fold(wire.from_text(name.decode("utf-8", "surrogateescape"))))
    except ValueError:
        return


def name_in_wire_format(data: bytes) -> None:
    """A name as the kernel hands it over: any octets. What is shown leads back to it."""
    try:
        labels = wire.to_labels(data)
    except ValueError:
        return
    text = wire.to_text(data)
    _check_shown(text)
    assert wire.from_labels(labels) == data
    if len(data) > 1:
        assert wire.fold(wire.from_text(text)) == wire.fold(data)


def comms(data: bytes) -> None:
    """A tree of processes with any names: no two trees look the same, and none breaks a line."""
    chain = tuple(Process(number + 2, 0, part[:15]) for number, part in enumerate(data.split(b"\n")))
    tree = Ancestry(chain).tree
    _check_shown(tree)
    assert tree.count(";") == len(chain) - 1


def text(data: bytes) -> None:
    """Text of others: command lines, paths, names of containers."""
    _check_shown(printable(data))
    _check_shown(printable(data, also=";"))
    _check_shown(shorten(printable(data)))
    _check_shown(shown(data.decode("utf-8", "surrogateescape")))


def proc_stat(data: bytes) -> None:
    """/proc/PID/stat, whose comm is any octets."""
    procfs.parse_stat(data)
    procfs.cgroup_path(data)


def control_group(data: bytes) -> None:
    """The path of a control group: anyone who may make control groups chooses it."""
    path = data.decode("utf-8", "surrogateescape")
    cgroup.unit_of(path)
    cgroup.slice_of(path)
    cgroup.container_of(path)


def container_files(data: bytes) -> None:
    """Files of container runtimes, which may be half written, or anything."""
    for place in (
        f"var/lib/docker/containers/{_ID}/config.v2.json",
        f"run/containers/storage/overlay-containers/{_ID}/userdata/config.json",
        f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{_ID}/config.json",
    ):
        path = _FOLDER / "root" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for runtime in ("docker", "podman", "containerd", "cri-o", ""):
        found = ContainerNames(str(_FOLDER / "root")).container(Identity(container=Container(_ID, runtime)))
        assert found is not None
        for value in (found.name, found.pod_name, found.pod_namespace):
            assert isinstance(value, str)


def scrape(data: bytes) -> None:
    """What a server answers to `dnsprobe tree`."""
    try:
        client.parse(data.decode("utf-8", "replace"), "http://127.0.0.1:10059")
    except UserError as error:
        for line in str(error).splitlines():
            _check_shown(line)


def symbols(data: bytes) -> None:
    """/proc/kallsyms."""
    kallsyms.find_functions(data, "udp_send_skb")


def btf(data: bytes) -> None:
    """Type information of the kernel, which `probe.btf` can replace by any file."""
    try:
        read_btf(_file(data, "btf"), frozenset({"task_struct", "sock"}))
    except (UserError, ValueError, LookupError):
        return


TARGETS: dict[str, Callable[[bytes], Any]] = {
    function.__name__: function
    for function in (
        configuration,
        web_configuration,
        listen,
        rule,
        name_in_wire_format,
        comms,
        text,
        proc_stat,
        control_group,
        container_files,
        scrape,
        symbols,
        btf,
    )
}
