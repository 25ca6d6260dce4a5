"""The systemd unit, the slice and the container that the path of a control group belongs to.

Each container runtime names control groups after its containers in a form of its own. Version 1 and 2 have the same
forms. If containers are nested, the outermost one counts: the host knows no other. Below ``user@.service`` a user of
the host chooses the names, so a container there is only what that user claims.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dnsprobe.model import Container

#: The name of a unit, neither too long nor a template (unit_name_is_valid(), systemd's src/basic/unit-name.c).
_UNIT = re.compile(
    r"(?=.{1,255}\Z)[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?"
    r"\.(service|scope|slice|socket|target|device|mount|automount|swap|timer|path)"
)

_ID = "[0-9a-f]{64}"
_UUID = "[0-9a-f]{8}([-_])[0-9a-f]{4}(?:[-_][0-9a-f]{4}){2}[-_][0-9a-f]{12}"

#: The uid of a pod, with ``_`` for its hyphens in slices of systemd (kubelet, pkg/kubelet/cm/cgroup_manager_linux.go).
#: The uid of a static pod is a hash.
_POD = re.compile(rf"(?:kubepods(?:-[a-z]+)?-)?pod({_UUID}|[0-9a-f]{{32}})(?:\.slice)?")

#: The form of runtimes that use systemd: ``docker-ID.scope``. With ``-conmon`` it is the monitor of the runtime.
_SCOPE = re.compile(rf"([a-z][a-z-]*)-({_ID})\.scope")
_SCOPE_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}

#: The forms of runtimes that do not use systemd. Podman puts its name in front; others use a folder.
_PLAIN_PODMAN = re.compile(rf"libpod-({_ID})")
_PLAIN = re.compile(_ID)

#: systemd-nspawn(1) as a service, and as a machine that systemd-machined registered. The virtual machines of libvirt
#: are registered too, and are no containers.
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


def unit_of(cgroup: str) -> str | None:
    """Return the systemd unit of a path, None without one: the first component below slices (sd_pid_get_unit(3)).

    The rest of the path was delegated to that unit, which can use any names there.
    """
    for component in cgroup.split("/"):
        name = component.removeprefix("_")  # systemd's escape for names that files of the kernel have, too
        unit = name if _UNIT.fullmatch(name) else None
        if component and not (unit and unit.endswith(".slice")):
            return unit
    return None


def slice_of(cgroup: str) -> str | None:
    """Return the innermost systemd slice above the unit of a path, None without one."""
    found = None
    for component in filter(None, cgroup.split("/")):
        if not component.endswith(".slice"):
            break
        found = component
    return found


def container_of(cgroup: str) -> Container | None:
    """Return the outermost container of a path, None without one."""
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
