"""Names of containers, from well-formed and malformed files of runtimes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnsprobe.model import Container, Identity
from dnsprobe.process.container_names import ContainerNames

ID = "3f4e" * 16
OTHER_ID = "5a6b" * 16
POD = "8d5c4c7e-3a1b-4f0e-9c2d-0123456789ab"
NAMES = {"name": "nginx", "pod_name": "web-0", "pod_namespace": "shop"}

DOCKER = f"var/lib/docker/containers/{ID}/config.v2.json"
CONTAINERD = "run/containerd/io.containerd.runtime.v2.task/{}/" + ID + "/config.json"
CRIO = f"run/containers/storage/overlay-containers/{ID}/userdata/config.json"
PODMAN = "var/lib/containers/storage/overlay-containers/containers.json"

KUBELET = {
    "io.kubernetes.container.name": "nginx",
    "io.kubernetes.pod.name": "web-0",
    "io.kubernetes.pod.namespace": "shop",
    "io.kubernetes.pod.uid": POD,
}
CRI = {
    "io.kubernetes.cri.container-name": "nginx",
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-id": OTHER_ID,
    "io.kubernetes.cri.sandbox-name": "web-0",
    "io.kubernetes.cri.sandbox-namespace": "shop",
}
CRIO_OWN = {
    "io.kubernetes.cri-o.ContainerName": f"k8s_nginx_web-0_shop_{POD}_0",
    "io.kubernetes.cri-o.Namespace": "shop",
    "io.container.manager": "cri-o",
}
LISTED = [
    {"id": OTHER_ID, "names": ["another"], "metadata": "{}"},
    {"id": ID, "names": ["web"], "metadata": '{"image-name":"nginx","name":"web"}', "created": "2026-01-02T03:04:05Z"},
]


def docker(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"ID": ID, "Name": f"/{name}", "State": {"Running": True}, "Config": {"Labels": labels, "Hostname": "x"}}


def bundle(annotations: dict[str, str]) -> dict[str, Any]:
    return {"ociVersion": "1.1.0", "process": {"args": ["nginx"]}, "annotations": annotations}


def write(root: Path, path: str, content: Any) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def named(root: Path, container: Container, unit: str | None = None) -> Container | None:
    return ContainerNames(str(root)).container(Identity(container=container, unit=unit))


@pytest.mark.parametrize(
    ("path", "content", "container", "names"),
    [
        (DOCKER, docker("web"), Container(ID, "docker"), {"name": "web"}),
        (DOCKER, docker("k8s_nginx_web-0", KUBELET), Container(ID, "docker", POD), NAMES),
        (DOCKER, docker("k8s_nginx_web-0", KUBELET), Container(ID, "", POD), NAMES),
        (CONTAINERD.format("k8s.io"), bundle(CRI), Container(ID, "containerd", POD), NAMES),
        (CONTAINERD.format("k8s.io"), bundle(CRI), Container(ID, "", POD), NAMES),
        (f"run/k3s/{CONTAINERD.format('k8s.io')[4:]}", bundle(CRI), Container(ID, "containerd", POD), NAMES),
        (CONTAINERD.format("default"), bundle({"nerdctl/name": "web"}), Container(ID, "containerd"), {"name": "web"}),
        (CONTAINERD.format("made-up"), bundle({"nerdctl/name": "web"}), Container(ID, "containerd"), {"name": "web"}),
        (CRIO, bundle(CRIO_OWN | KUBELET), Container(ID, "cri-o", POD), NAMES),
        (CRIO, bundle(CRIO_OWN | KUBELET), Container(ID, "", POD), NAMES),
        (PODMAN, LISTED, Container(ID, "podman"), {"name": "web"}),
        (
            PODMAN.replace("containers.json", "volatile-containers.json"),
            LISTED,
            Container(ID, "podman"),
            {"name": "web"},
        ),
        (
            f"run/{PODMAN[8:]}".replace("containers.json", "volatile-containers.json"),
            LISTED,
            Container(ID, "podman"),
            {"name": "web"},
        ),
    ],
)
def test_names_in_the_files_of_each_runtime(
    tmp_path: Path, path: str, content: Any, container: Container, names: dict[str, str]
) -> None:
    assert named(tmp_path, container) == container
    write(tmp_path, path, content)
    assert named(tmp_path, container) == replace(container, **names)


def test_the_sandbox_container_of_a_pod(tmp_path: Path) -> None:
    """With containerd, this container has no name itself, but its pod has."""
    write(tmp_path, CONTAINERD.format("k8s.io"), bundle({key: CRI[key] for key in CRI if "sandbox" in key}))
    container = Container(ID, "containerd", POD)
    assert named(tmp_path, container) == replace(container, pod_name="web-0", pod_namespace="shop")


@pytest.mark.parametrize("runtime", ["systemd-nspawn", "lxc"])
def test_runtimes_whose_ids_are_names(tmp_path: Path, runtime: str) -> None:
    assert named(tmp_path, Container("web", runtime)) == Container("web", runtime, name="web")


def test_labels_do_not_put_a_container_into_a_pod(tmp_path: Path) -> None:
    write(tmp_path, DOCKER, docker("web", KUBELET))
    assert named(tmp_path, Container(ID, "docker")) == Container(ID, "docker", name="web")


def test_a_rootless_container_does_not_get_the_name_of_another_one(tmp_path: Path) -> None:
    write(tmp_path, DOCKER, docker("web"))
    container = Container(ID, "docker")
    assert named(tmp_path, container, "user@1000.service") == container
    assert named(tmp_path, container, f"docker-{ID}.scope") == replace(container, name="web")


def test_no_container() -> None:
    assert ContainerNames().container(Identity()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"Name":' + b"9" * 10_000 + b"}",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'"/web"',
        b'{"Name": null}',
        b'{"Name": ["/web"]}',
        b'{"Name": ""}',
        b'{"Name": "/"}',
        b'{"Name": "/' + b"x" * 300 + b'"}',
        b'{"annotations": ["nerdctl/name"]}',
        b'{"annotations": {"nerdctl/name": {}}}',
        b'[{"id": "' + ID.encode() + b'"}]',
        b'[{"id": "' + ID.encode() + b'", "names": "web"}]',
        b'[{"id": "' + ID.encode() + b'", "names": [7]}]',
        b'[7, null, [], {"names": ["web"]}]',
        b'{"pad": "' + b"x" * (4 << 20) + b'", "Name": "/web"}',
    ],
)
def test_malformed_files_have_no_name(tmp_path: Path, content: bytes) -> None:
    for path in (DOCKER, CONTAINERD.format("k8s.io"), CRIO, PODMAN):
        write(tmp_path, path, content)
    for runtime in ("docker", "containerd", "cri-o", "podman", ""):
        assert named(tmp_path, Container(ID, runtime)) == Container(ID, runtime)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    container = Container(ID, "docker")
    path = tmp_path / DOCKER
    path.mkdir(parents=True)
    assert named(tmp_path, container) == container
    path.rmdir()
    os.mkfifo(path)
    assert named(tmp_path, container) == container
    # A FIFO is not read even if it has a writer.
    writer = os.open(path, os.O_RDWR)
    os.write(writer, json.dumps(docker("web")).encode())
    assert named(tmp_path, container) == container
    os.close(writer)
    path.unlink()
    path.symlink_to(path)
    assert named(tmp_path, container) == container


def test_a_name_is_looked_up_once(tmp_path: Path) -> None:
    names = ContainerNames(str(tmp_path), clock=lambda: 0.0)
    inside = Identity(container=Container(ID, "docker"))
    file = write(tmp_path, DOCKER, docker("web"))
    assert names.container(inside) == Container(ID, "docker", name="web")
    file.unlink()
    assert names.container(inside) == Container(ID, "docker", name="web")


def test_a_missing_name_is_looked_for_again(tmp_path: Path) -> None:
    now = 0.0
    names = ContainerNames(str(tmp_path), clock=lambda: now)
    inside = Identity(container=Container(ID, "docker"))
    assert names.container(inside) == inside.container
    write(tmp_path, DOCKER, docker("web"))
    assert names.container(inside) == inside.container
    now = 61.0
    assert names.container(inside) == Container(ID, "docker", name="web")


def test_the_number_of_kept_names_is_bounded(tmp_path: Path) -> None:
    names = ContainerNames(str(tmp_path))
    for number in range(3000):
        names.container(Identity(container=Container(f"c{number}", "lxc")))
    assert len(names._known) <= 1024
