"""A bcrypt that records its comparisons, and waits for the test."""

from __future__ import annotations

import threading

import bcrypt
import pytest
from async_http import PATIENCE


class WatchedBcrypt:
    """Replaces ``bcrypt.checkpw``: it records its arguments, and returns only while ``go_on`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compared: list[tuple[bytes, bytes]] = []
        self.go_on = threading.Event()
        check = bcrypt.checkpw

        def checkpw(password: bytes, hashed: bytes) -> bool:
            self.compared.append((password, hashed))
            assert self.go_on.wait(PATIENCE)
            return check(password, hashed)

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)


def hashed(password: str, cost: int = 4) -> str:
    """Return a bcrypt hash, by default of the lowest cost."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()
