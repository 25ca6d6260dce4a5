"""The direction of imports: data flows from left to right, and a module imports only from its left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dnsprobe"

#: The rooms of the package in the direction of the data. A room is a module at the top level or a folder.
ROOMS = (
    "errors",
    "text",
    "terminal",
    "privileges",
    "model",
    "names",
    "config",
    "kernel",
    "process",
    "pipeline",
    "sinks",
    "treeview",
    "web",
    "commands",
    "cli",
    "__main__",
)


def module_name(path: Path) -> str:
    """Return the name of a module below the package: ``kernel.abi`` for ``dnsprobe/kernel/abi.py``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(source: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, at its top or late."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _below_package(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            for alias in node.names:
                # A name of a module, or one that the module of the statement has.
                whole = f"{node.module}.{alias.name}".removeprefix("dnsprobe.")
                yield from [whole] if whole in MODULES else _below_package(node.module or "")


def _below_package(name: str) -> list[str]:
    return [name.removeprefix("dnsprobe.")] if name.startswith("dnsprobe.") else []


def room(module: str) -> str:
    """Return the room of a module."""
    return module.partition(".")[0]


def backward(module: str, source: str) -> list[str]:
    """Return the imports of a module that point to its right."""
    here = ROOMS.index(room(module))
    return [other for other in imported(source) if ROOMS.index(room(other)) > here]


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} == {*ROOMS, "__init__"}


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__"])
def test_a_module_imports_only_from_its_left(module: str) -> None:
    assert backward(module, MODULES[module].read_text("utf-8")) == []


def test_imports_within_a_room_make_no_circle() -> None:
    arrows = {module: set(imported(path.read_text("utf-8"))) - {module} for module, path in MODULES.items()}
    while free := {module for module, others in arrows.items() if not others & arrows.keys()}:
        for module in free:
            del arrows[module]
    assert not arrows


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from dnsprobe.kernel.abi import NAME_SIZE", ["kernel.abi"]),
        ("from dnsprobe.kernel import abi", ["kernel.abi"]),
        ("def late():\n    import dnsprobe.web.server", ["web.server"]),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dnsprobe.sinks.metrics import X",
            ["sinks.metrics"],
        ),
        ("import os\nfrom dnsprobe import __version__\nfrom dnsprobe.text import printable", []),
    ],
)
def test_an_arrow_that_points_to_the_right_is_found(source: str, found: list[str]) -> None:
    assert backward("model", source) == found
