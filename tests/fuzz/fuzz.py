"""Search for inputs that break what user space parses, guided by coverage (atheris, libFuzzer).

Usage: scripts/fuzz [SECONDS [TARGET...]]

Runs each target of targets.py for SECONDS (60), from the inputs in tests/fuzz/corpus and those that earlier runs found
in build/fuzz. At the end, the inputs that reach the most go into tests/fuzz/corpus; scripts/test tries these again.
Prints for each target how many inputs were tried and what was covered. The exit status is 1 if an input broke a target;
the input is then in build/fuzz.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_BUILD = _HERE.parents[1] / "build/fuzz"
_CORPUS = _HERE / "corpus"
#: An input of the corpus is at most as long, and a target has at most as many.
_LONGEST, _INPUTS = 4096, 60
#: Seconds that an input may take.
_TIMEOUT = 20


def _targets() -> list[str]:
    listed = subprocess.run([sys.executable, __file__, "--list"], stdout=subprocess.PIPE, check=True)
    return listed.stdout.decode().split()


def _libfuzzer(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--run", target, f"-artifact_prefix={_BUILD}/{target}-", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _search(target: str, seconds: int) -> bool:
    """Fuzz a target; print what came of it, and return whether it held."""
    found, kept = _BUILD / target, _CORPUS / target
    for folder in (found, kept):
        folder.mkdir(parents=True, exist_ok=True)
    limits = (f"-max_total_time={seconds}", f"-timeout={_TIMEOUT}", f"-max_len={_LONGEST}", "-rss_limit_mb=4096")
    done = _libfuzzer(target, *limits, "-print_final_stats=1", str(found), str(kept))
    tried = re.findall(r"number_of_executed_units:\s*(\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    print(f"{target}: {(tried or ['?'])[-1]} inputs, edges and features {(covered or ['?'])[-1]}", flush=True)
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-40:]), flush=True)
        return False
    _keep(target, found, kept)
    return True


def _keep(target: str, found: Path, kept: Path) -> None:
    """Put the smallest inputs that reach everything into the corpus, as far as there is room."""
    merged = _BUILD / f"{target}-merged"
    merged.mkdir(exist_ok=True)
    _libfuzzer(target, "-merge=1", str(merged), str(kept), str(found))
    room = _INPUTS - len(list(kept.iterdir()))
    for path in sorted(merged.iterdir(), key=lambda path: path.stat().st_size)[: max(room, 0)]:
        (kept / path.name).write_bytes(path.read_bytes())


def _run(target: str, arguments: list[str]) -> None:
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: PLC0415 - only scripts/fuzz installs it

    with atheris.instrument_imports(include=["dnsprobe"]):
        from targets import TARGETS  # noqa: PLC0415 - what is imported here is instrumented

    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def main() -> None:
    """Fuzz the targets one after another."""
    if sys.argv[1:2] == ["--run"]:
        _run(sys.argv[2], sys.argv[3:])
        return
    if sys.argv[1:2] == ["--list"]:
        from targets import TARGETS  # noqa: PLC0415 - it imports all of dnsprobe

        print(*TARGETS)
        return
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    held = [_search(target, seconds) for target in sys.argv[2:] or _targets()]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
