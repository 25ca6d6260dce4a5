"""Which container a process runs in, by the path of its control group.

Runtimes name control groups after containers, each in its own form, which is the same in version 1 and 2 and whether
systemd or the runtime itself makes them. The outermost container of a path is the one that the host knows. What a user
of the host may name (below ``user@.service``) is what that user says: a rootless runtime's container, or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dnsprobe.model import Container

_ID = "[0-9a-f]{64}"
_UUID = "[0-9a-f]{8}([-_])[0-9a-f]{4}(?:[-_][0-9a-f]{4}){2}[-_][0-9a-f]{12}"

#: A pod's uid; systemd's slices have ``_`` for its hyphens (kubelet, pkg/kubelet/cm/cgroup_manager_linux.go). That of a
#: static pod is a hash.
_POD = re.compile(rf"(?:kubepods(?:-[a-z]+)?-)?pod({_UUID}|[0-9a-f]{{32}})(?:\.slice)?")

#: A container made by systemd for a runtime: ``docker-ID.scope``. With ``-conmon`` it is the runtime's own monitor.
_SCOPE = re.compile(rf"([a-z][a-z-]*)-({_ID})\.scope")
_SCOPE_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}

#: Those that make control groups themselves: Podman has its name in front, others have a folder of their own.
_PLAIN_PODMAN = re.compile(rf"libpod-({_ID})")
_PLAIN = re.compile(_ID)

#: systemd-nspawn(1) as a service, and as what systemd-machined registers; libvirt's virtual machines are no containers.
_NSPAWN = re.compile(r"systemd-nspawn@(.+)\.service")
_MACHINE = re.compile(r"machine-(?!qemu\\x2d|lxc\\x2d)(.+)\.scope")
_LXC = re.compile(r"lxc\.payload\.(.+)")

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def _unescape(name: str) -> str:
    """Undo systemd's escapes in unit names (systemd-escape(1)): ``-`` is ``\\x2d`` there."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)


def _scope(component: str) -> Container | None:
    match = _SCOPE.fullmatch(component)
    runtime = match and _SCOPE_RUNTIMES.get(match[1])
    return Container(match[2], runtime) if match and runtime else None


def _named(pattern: re.Pattern[str], runtime: str) -> Callable[[str], Container | None]:
    def read(component: str) -> Container | None:
        match = pattern.fullmatch(component)
        return Container(_unescape(match[1]), runtime) if match else None

    return read


_FORMS = (
    _scope,
    _named(_PLAIN_PODMAN, "podman"),
    _named(_NSPAWN, "systemd-nspawn"),
    _named(_MACHINE, "systemd-nspawn"),
    _named(_LXC, "lxc"),
)


def container_of(cgroup: str) -> Container | None:
    """Return the container that a path of a control group belongs to, None if to none."""
    components = cgroup.split("/")
    pod = ""
    for above, component in zip(["", *components], components, strict=False):
        if match := _POD.fullmatch(component):
            pod = match[1].replace("_", "-")
            continue
        found = next(filter(None, (form(component) for form in _FORMS)), None)
        if found is None and _PLAIN.fullmatch(component):
            found = Container(component, "docker" if above == "docker" else "containerd" if not pod else "")
        elif found is None and above == "lxc" and component:
            found = Container(component, "lxc")
        if found:
            return Container(found.id, found.runtime, pod)
    return None


def slice_of(cgroup: str) -> str | None:
    """Return the innermost systemd slice above the unit that a path of a control group belongs to, None without one."""
    found = None
    for component in filter(None, cgroup.split("/")):
        if not component.endswith(".slice"):
            break
        found = component
    return found
