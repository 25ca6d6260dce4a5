"""Where the configuration comes from: the file, and the options that override it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dnsprobe.config.main import Config

#: The file that is read without --config, if it exists.
DEFAULT_CONFIG = "/etc/dnsprobe/dnsprobe.yaml"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration comes from: the path of the file, and options that override it.

    Without ``path``, it is the default file, or the default configuration if there is none.
    """

    path: str | None = None
    listen: str | None = None
    web_config: str | None = None

    def resolved(self) -> Source:
        """Return the source with the path of the default file, if that exists.

        Later reloads must read this file, too. If it is missing for a moment, they must not fall back to all names.
        """
        if self.path is not None:
            return self
        try:
            os.lstat(DEFAULT_CONFIG)
        except (FileNotFoundError, NotADirectoryError):
            return self
        except OSError:
            pass  # it may exist: load() reports why it cannot be read
        return replace(self, path=DEFAULT_CONFIG)

    def read(self) -> Config:
        """Return the configuration as it is now. Raises UserError if it is wrong."""
        from dnsprobe.config.listen import parse_listen  # noqa: PLC0415 - start-up
        from dnsprobe.config.main import default, load  # noqa: PLC0415 - start-up: --help and --version need no YAML

        config = default() if self.path is None else load(self.path)
        metrics = config.metrics
        if self.listen is not None:
            metrics = replace(metrics, listen=parse_listen(self.listen))
        if self.web_config is not None:
            metrics = replace(metrics, web_config=self.web_config)
        return replace(config, metrics=metrics)
