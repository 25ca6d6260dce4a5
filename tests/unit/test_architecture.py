"""The structure of the source, which docs/architecture.md describes.

Data flows from left to right, and a module imports only from its left. Only ``kernel/`` knows BPF. Classes and
functions stay short. The map in docs/architecture.md is complete, and developer documents name only files that exist.
"""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnsprobe.kernel import abi

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "dnsprobe"
PAGE = REPOSITORY / "docs/architecture.md"

#: The layers of the package in the direction of the data. A layer is a module at the top level or a folder.
LAYERS = (
    "errors",
    "text",
    "files",
    "terminal",
    "privileges",
    "descriptors",
    "threads",
    "hook_names",
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


def layer(module: str) -> str:
    """Return the layer of a module."""
    return module.partition(".")[0]


def backward(module: str, source: str) -> list[str]:
    """Return the imports of a module that point to its right."""
    here = LAYERS.index(layer(module))
    return [other for other in imported(source) if LAYERS.index(layer(other)) > here]


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in MODULES} == {*LAYERS, "__init__"}


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__init__"])
def test_a_module_imports_only_from_its_left(module: str) -> None:
    assert backward(module, MODULES[module].read_text("utf-8")) == []


def test_imports_make_no_cycle() -> None:
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


# Only kernel/ knows BPF.

#: What other layers may import from ``kernel/``, beside the exceptions below.
KERNEL_SURFACE = {
    "process": {"kernel.abi", "kernel.clock"},
    "pipeline": {
        "kernel.abi",
        "kernel.losses",
        "kernel.maps",
        "kernel.other_messages",
        "kernel.probe",
        "kernel.servers",
    },
    "sinks": {"kernel.losses", "kernel.other_messages"},
    "commands": {"kernel.abi", "kernel.answer_hooks", "kernel.losses", "kernel.maps", "kernel.probe", "kernel.prover"},
}
#: Modules that import more from ``kernel/``, with the reason.
KERNEL_EXCEPTIONS = {
    "commands.doctor": (
        {"kernel.cgroup_root", "kernel.fentry", "kernel.hooks", "kernel.kallsyms", "kernel.libbpf"},
        "shows what the kernel offers",
    ),
    "process.share_names": ({"kernel.cgroup_root"}, "finds control groups by their id"),
}

#: What other layers may import from ``kernel.maps``: sizes, and types of keys and values. The maps belong to the probe.
MAP_TYPES = {
    "CountKey",
    "Counted",
    "Latencies",
    "LatencyKey",
    "Note",
    "PendingKey",
    "ProcessKey",
    "ProgramKey",
    "Sizes",
    "SocketEvent",
}
#: Names of structs in the ABI. Only ``kernel/`` packs and unpacks them.
STRUCTS = {name for name, value in vars(abi).items() if isinstance(value, struct.Struct)}

OUTSIDE_KERNEL = [module for module in MODULES if layer(module) != "kernel"]


@pytest.mark.parametrize("module", OUTSIDE_KERNEL)
def test_other_layers_import_only_the_surface_of_kernel(module: str) -> None:
    from_kernel = {name for name in imported(MODULES[module].read_text("utf-8")) if layer(name) == "kernel"}
    more, _reason = KERNEL_EXCEPTIONS.get(module, (set(), ""))
    assert from_kernel <= KERNEL_SURFACE.get(layer(module), set()) | more


@pytest.mark.parametrize("module", OUTSIDE_KERNEL)
def test_other_layers_make_no_maps(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    assert {name.name for node in found if node.module == "dnsprobe.kernel.maps" for name in node.names} <= MAP_TYPES
    assert "dnsprobe.kernel" not in [node.module for node in found if "maps" in {name.name for name in node.names}]


@pytest.mark.parametrize("module", OUTSIDE_KERNEL)
def test_other_layers_pack_no_structs_of_the_kernel_side(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert (attributes | names) & STRUCTS == set()


# Size

CLASS_LINES = 250
FUNCTION_LINES = 60
#: Longer classes and functions, as ``module.name``, with the reason.
LONG: dict[str, str] = {}


@pytest.mark.parametrize("module", MODULES)
def test_classes_and_functions_stay_short(module: str) -> None:
    long = {}
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES):
                long[f"{module}.{node.name}"] = lines
    assert {name: size for name, size in long.items() if name not in LONG} == {}


#: Modules that read the time of day, because they show it. It can be set, forwards and back.
WALL_CLOCK = {"commands.reload", "commands.run", "commands.tree", "sinks.wording", "web.responses"}


def test_only_what_is_shown_depends_on_the_time_of_day() -> None:
    """Intervals, limits and ages are measured with clocks that nobody sets."""
    wall = re.compile(r"\btime\.time(?:_ns)?\b|\bfrom time import|\bdatetime\.(?:now|today|utcnow)|CLOCK_REALTIME")
    users = {module for module, path in MODULES.items() if wall.search(path.read_text("utf-8"))}
    assert {module.removeprefix("dnsprobe.") for module in users} == WALL_CLOCK


def test_a_late_import_carries_its_reason() -> None:
    """In cli.py, all late imports have the same reason: --help must not load a command. CONTRIBUTING.md explains it."""
    missing = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for module, path in MODULES.items()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if module != "cli" and re.search(r"# noqa:.*PLC0415(?! - \S)", line)
    ]
    assert missing == []


# The documents


def map_lines() -> dict[str, str]:
    """Return the files of the map in docs/architecture.md, in order, each with its description."""
    block = re.search(r"^```text\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert block
    folders: list[str] = []
    found = {}
    for line in block[1].splitlines():
        name, _, description = line.strip().partition(" ")
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            found["".join([*folders, name])] = description.strip()
    return found


def source_files() -> set[str]:
    """Return the modules of the package and the BPF sources, without copies of kernel headers."""
    files = [path for pattern in ("*.py", "*.js", "*.css") for path in PACKAGE.rglob(pattern)]
    bpf = REPOSITORY / "bpf"
    files += [path for path in bpf.rglob("*.[ch]") if bpf / "include" not in path.parents]
    return {str(path.relative_to(REPOSITORY)) for path in files if path.name != "__init__.py"}


def test_the_map_has_every_module_and_no_other() -> None:
    assert map_lines().keys() == source_files()


def test_the_map_describes_every_module() -> None:
    assert [file for file, description in map_lines().items() if not description] == []


def test_the_map_has_the_layers_in_their_order() -> None:
    layers = [file.split("/")[1].partition(".")[0] for file in map_lines() if file.startswith("dnsprobe/")]
    assert tuple(dict.fromkeys(layers)) == LAYERS


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a Markdown page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


DOCUMENTS = ["CONTRIBUTING.md", "docs/architecture.md", "tests/vm/README.md"]
FOLDERS = ("benchmarks", "bpf", "config", "dnsprobe", "docs", "packaging", "scripts", "tests")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_for_developers_names_only_files_that_exist(document: str) -> None:
    """A path in backticks may leave out folders at its beginning; capitals in it stand for any name."""
    files = {f"/{path.name}" for path in REPOSITORY.iterdir()}
    files |= {f"/{path.relative_to(REPOSITORY)}" for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*")}
    named = re.findall(r"`([\w./-]+\.(?:py|h|c|sh|md|yaml|toml))`", (REPOSITORY / document).read_text("utf-8"))
    assert named
    unknown = {name for name in named if not any(file.endswith(f"/{name}") for file in files)}
    assert {name for name in unknown if not re.search("[A-Z]{3}", name)} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_for_developers_lead_somewhere(document: str) -> None:
    page = REPOSITORY / document
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"
