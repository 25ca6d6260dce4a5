"""The daemon refuses to work where start times in ``/proc`` are not those of the kernel side."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsprobe.errors import UserError
from dnsprobe.process.time_namespace import require_no_offset


@pytest.mark.parametrize(
    ("seconds", "ns", "shown"), [(1000, 0, "+1000 s"), (-3, 0, "-3 s"), (0, 500_000_000, "+0.5 s")]
)
def test_an_offset_since_boot_is_an_error(tmp_path: Path, seconds: int, ns: int, shown: str) -> None:
    path = tmp_path / "offsets"
    path.write_text(f"monotonic           0         0\nboottime   {seconds:>10} {ns:>9}\n")
    with pytest.raises(UserError, match="in a time namespace") as caught:
        require_no_offset(str(path))
    assert shown in caught.value.message
    assert "nsenter" in caught.value.hint


def test_without_an_offset_there_is_no_error(tmp_path: Path) -> None:
    require_no_offset(str(tmp_path / "absent"))
    path = tmp_path / "offsets"
    # Start times do not depend on the other clock.
    path.write_text("monotonic        1000         0\nboottime            0         0\n")
    require_no_offset(str(path))
