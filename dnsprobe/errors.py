"""Errors that a user can fix: what is wrong, with the value, and what to do about it."""

from __future__ import annotations

EXIT_GOOD = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class UserError(Exception):
    """An error that the user can fix: shown as a message and a hint, never as a traceback.

    ``status`` is the exit status: EXIT_FAILED for errors at run time, EXIT_USAGE for wrong usage or configuration.
    """

    def __init__(self, message: str, hint: str = "", status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
