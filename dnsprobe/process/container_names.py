"""The names of containers and their pods, read from the files of container runtimes.

A control group contains only ids. The names are in folders that only root can read; without that permission, names are
unknown. A user who starts a container can influence these files, so a file may contain anything.
"""

from __future__ import annotations

import glob
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from dnsprobe.files import read_file
from dnsprobe.model import Container, Identity

#: A file of one container has tens of KB, more with many mounts. Podman's list has 1 or 2 KB per container.
_FILE_BYTES = 4 << 20
#: Names of Kubernetes have at most 253 characters. Other runtimes have no limit, but the journal must hold the name.
_NAME_CHARACTERS = 255

#: A runtime writes its files before it starts a container. If a name was not found, it is looked for only now and then.
_RETRY_SECONDS = 60.0
_CONTAINERS = 1024

# The id in these paths is always 64 hexadecimal digits: dnsprobe.process.cgroup accepts nothing else.
#: Docker's, below its default data-root (moby, container/container.go).
_DOCKER = "var/lib/docker/containers/{}/config.v2.json"
#: The bundle of a container, in any namespace of containerd, has annotations (OCI runtime specification, config.md).
_CONTAINERD = (
    "run/containerd/io.containerd.runtime.v2.task/*/{}/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/*/{}/config.json",
)
_CRIO = "run/containers/storage/overlay-containers/{}/userdata/config.json"
#: Lists of containers: permanent ones, those of ``podman run --rm``, those of ``podman --transient-store``.
_PODMAN = (
    "var/lib/containers/storage/overlay-containers/containers.json",
    "var/lib/containers/storage/overlay-containers/volatile-containers.json",
    "run/containers/storage/overlay-containers/volatile-containers.json",
)

#: nerdctl turns its labels into annotations (nerdctl, pkg/labels/labels.go).
_NERDCTL_NAME = "nerdctl/name"
#: Annotations of containerd (pkg/cri/annotations), and labels of kubelet, which CRI-O and cri-dockerd keep.
_POD_CONTAINER = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_POD_NAME = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACE = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")


def _load(path: str) -> Any:
    """Return the content of a JSON file, None if it is unreadable, not JSON or too large."""
    try:
        return json.loads(read_file(path, _FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None


def _get(found: Any, *keys: str) -> Any:
    """Return a value from nested mappings, None if a key or a mapping is missing."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _name(*found: Any) -> str:
    """Return the first value that is a possible name, "" if none is."""
    return next((name for name in found if isinstance(name, str) and 0 < len(name) <= _NAME_CHARACTERS), "")


def _named(container: Container, name: str, annotations: Any) -> Container:
    # Anybody can give a container the labels of Kubernetes, but only kubelet puts it into the control group of a pod.
    if not container.pod:
        return replace(container, name=name)
    return replace(
        container,
        name=_name(*(_get(annotations, key) for key in _POD_CONTAINER)) or name,
        pod_name=_name(*(_get(annotations, key) for key in _POD_NAME)),
        pod_namespace=_name(*(_get(annotations, key) for key in _POD_NAMESPACE)),
    )


class ContainerNames:
    """The names of containers. A name that was found is kept: a later ``docker rename`` is not noticed.

    ``root`` is the root of the host's file system. A name that was not found is looked for again after a minute of
    ``clock`` (seconds).
    """

    def __init__(self, root: str = "/", clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._known: dict[Container, tuple[float, Container]] = {}

    def container(self, identity: Identity) -> Container | None:
        """Return the container of an identity, with its names if they are known."""
        container = identity.container
        # A rootless runtime has no files here. Its user can choose an id that another container has in these files.
        if container is None or (identity.unit or "").startswith("user@"):
            return container
        now = self._clock()
        until, named = self._known.get(container, (now, container))
        if until <= now:
            if len(self._known) >= _CONTAINERS:
                self._known.clear()
            named = next((found for found in self._look_up(container) if found != container), container)
            self._known[container] = math.inf if named != container else now + _RETRY_SECONDS, named
        return named

    def _look_up(self, container: Container) -> Iterator[Container]:
        """Yield the container with the names from each place where its runtime may keep them."""
        match container.runtime:
            case "docker":
                yield self._docker(container)
            case "podman":
                yield self._podman(container)
            case "containerd":
                yield from self._bundles(container, *_CONTAINERD)
            case "cri-o":
                yield from self._bundles(container, _CRIO)
            case "":  # Kubernetes without systemd: the path does not show the runtime
                yield from self._bundles(container, *_CONTAINERD, _CRIO)
                yield self._docker(container)
            case _:
                yield replace(container, name=container.id)

    def _docker(self, container: Container) -> Container:
        config = _load(os.path.join(self._root, _DOCKER.format(container.id)))
        return _named(container, _name(_get(config, "Name")).removeprefix("/"), _get(config, "Config", "Labels"))

    def _bundles(self, container: Container, *places: str) -> Iterator[Container]:
        for place in places:
            for path in glob.glob(place.format(container.id), root_dir=self._root):
                annotations = _get(_load(os.path.join(self._root, path)), "annotations")
                yield _named(container, _name(_get(annotations, _NERDCTL_NAME)), annotations)

    def _podman(self, container: Container) -> Container:
        for path in _PODMAN:
            listed = _load(os.path.join(self._root, path))
            for each in listed if isinstance(listed, list) else ():
                names = _get(each, "names")
                if _get(each, "id") == container.id and isinstance(names, list):
                    return replace(container, name=_name(*names))
        return container
