"""Errors that a user can act on: what is wrong, with the value, and what to do about it."""

from __future__ import annotations

EXIT_GOOD = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class UserError(Exception):
    """Something that the user can mend: shown as one message and a hint, never as a traceback.

    ``status`` is the exit status: EXIT_FAILED for what goes wrong at run time, EXIT_USAGE for bad usage or
    configuration.
    """

    def __init__(self, message: str, hint: str = "", status: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status
