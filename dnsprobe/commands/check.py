"""``dnsprobe check``: report every error in a configuration."""

from __future__ import annotations

from dnsprobe.config.main import Config, warnings
from dnsprobe.errors import EXIT_GOOD
from dnsprobe.text import number


def check(config: Config, web_config: str | None) -> int:
    """Check the web configuration, print a summary, and return the exit status.

    ``config`` was checked when it was read. ``web_config`` replaces ``metrics.web_config``. Raises UserError with all
    errors of the web configuration.
    """
    path = web_config or config.metrics.web_config
    if path is not None:
        from dnsprobe.web.protection import read  # noqa: PLC0415 - start-up: most hosts have no web configuration

        read(path)
    for warning in warnings(config):
        print(f"warning: {warning}")
    print(f"good: {number(len(config.domains), 'rule')}{'' if config.domains else ', so all names are watched'}")
    return EXIT_GOOD
