"""Unit, slice and container of a control group."""

from __future__ import annotations

import pytest

from dnsprobe.model import Container
from dnsprobe.process.cgroup import container_of, slice_of, unit_of

ID = "3f4e" * 16
POD = "8d5c4c7e-3a1b-4f0e-9c2d-0123456789ab"
SLICE_POD = POD.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"

FORMS = [
    # Docker: made by systemd, by itself, rootless
    (f"/system.slice/docker-{ID}.scope", Container(ID, "docker")),
    (f"/docker/{ID}", Container(ID, "docker")),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", Container(ID, "docker")),
    (f"/system.slice/docker-{ID}.scope/init", Container(ID, "docker")),
    # containerd: nerdctl, and Kubernetes with both of kubelet's drivers
    (f"/system.slice/nerdctl-{ID}.scope", Container(ID, "containerd")),
    (f"/default/{ID}", Container(ID, "containerd")),
    (
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_POD}.slice/cri-containerd-{ID}.scope",
        Container(ID, "containerd", POD),
    ),
    (f"/kubepods.slice/kubepods-pod{SLICE_POD}.slice/cri-containerd-{ID}.scope", Container(ID, "containerd", POD)),
    (f"/kubepods/besteffort/pod{POD}/{ID}", Container(ID, "", POD)),
    (f"/kubepods/pod{POD}/{ID}", Container(ID, "", POD)),
    (f"/kubepods/burstable/pod{STATIC}/{ID}", Container(ID, "", STATIC)),
    # CRI-O
    (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE_POD}.slice/crio-{ID}.scope/container",
        Container(ID, "cri-o", POD),
    ),
    # Podman: made by systemd, with cgroupfs, rootless, in a pod
    (f"/machine.slice/libpod-{ID}.scope/container", Container(ID, "podman")),
    (f"/libpod_parent/libpod-{ID}", Container(ID, "podman")),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", Container(ID, "podman")),
    (f"/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope", Container(ID, "podman")),
    # systemd-nspawn: as a service, from a terminal, with a name that systemd escapes
    ("/machine.slice/systemd-nspawn@web.service/payload", Container("web", "systemd-nspawn")),
    ("/machine.slice/machine-web.scope/payload/system.slice/nginx.service", Container("web", "systemd-nspawn")),
    ("/machine.slice/machine-my\\x2dweb.scope", Container("my-web", "systemd-nspawn")),
    # LXC
    ("/lxc.payload.web/system.slice/nginx.service", Container("web", "lxc")),
    ("/lxc/web", Container("web", "lxc")),
    # Nested: the host knows the outermost one
    (
        f"/machine.slice/systemd-nspawn@web.service/payload/system.slice/docker-{ID}.scope",
        Container("web", "systemd-nspawn"),
    ),
]


@pytest.mark.parametrize(("path", "container"), FORMS)
def test_a_path_of_a_runtime_has_a_container(path: str, container: Container) -> None:
    assert container_of(path) == container


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/system.slice/nginx.service",
        "/user.slice/user-1000.slice/session-3.scope",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/system.slice/crio-conmon-{ID}.scope",
        "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator",
        f"/system.slice/docker-{ID[:-1]}.scope",
        f"/system.slice/docker-{ID}0.scope",
        f"/system.slice/docker-{ID.upper()}.scope",
        f"/system.slice/else-{ID}.scope",
        "/kubepods.slice",
        f"/kubepods.slice/kubepods-pod{SLICE_POD}.slice",
        "/lxc",
        "/lxc.monitor.web",
    ],
)
def test_other_paths_have_no_container(path: str) -> None:
    assert container_of(path) is None


def test_only_hexadecimal_ids_are_shortened() -> None:
    assert Container(ID, "docker").short_id == ID[:12]
    assert Container("a-name-longer-than-twelve", "lxc").short_id == "a-name-longer-than-twelve"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/system.slice/nginx.service", "system.slice"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope", "user-1000.slice"),
        ("/system.slice", "system.slice"),
        ("/init.scope", None),
        ("/", None),
    ],
)
def test_slice_of_returns_the_innermost_slice(path: str, expected: str | None) -> None:
    assert slice_of(path) == expected


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker", "nginx.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/docker-0123.scope/init.scope", "docker-0123.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "user@1000.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (r"/system.slice/system-a\x2db.slice/a\x2db@c.service", r"a\x2db@c.service"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cgroup.mount", "cgroup.mount"),
        ("/kubepods.slice/kubepods-pod1.slice/cri-containerd-0123.scope", "cri-containerd-0123.scope"),
        ("/", None),
        ("", None),
        ("/system.slice", None),
        ("/docker/0123456789", None),
        ("/system.slice/no-unit/evil.service", None),
        ("/system.slice/template@.service", None),
        ("/system.slice/@x.service", None),
        ("/system.slice/.service", None),
        ("/system.slice/a b.service", None),
        ("/system.slice/a\n.service", None),
        ("/system.slice/a.service\n", None),
        ("/system.slice/\u202ea.service", None),
        ("/system.slice/" + "a" * 248 + ".service", None),
        ("/system.slice/" + "a" * 247 + ".service", "a" * 247 + ".service"),
    ],
)
def test_unit_of_returns_the_first_unit_below_slices(cgroup: str, unit: str | None) -> None:
    assert unit_of(cgroup) == unit
