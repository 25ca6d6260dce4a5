"""``python -m dnsprobe``."""

from dnsprobe.cli import entry

entry()
