"""The command line: arguments to calls, errors to message, hint and exit status."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from dnsprobe import __version__, privileges
from dnsprobe.errors import EXIT_FAILED, EXIT_GOOD, EXIT_USAGE, UserError

if TYPE_CHECKING:
    from dnsprobe.config.main import Config

#: Read where no --config says otherwise, if it is there.
DEFAULT_CONFIG = "/etc/dnsprobe/dnsprobe.yaml"

_EXAMPLES = """\
examples:
  dnsprobe watch                          print every DNS query of this host with its process tree
  dnsprobe watch example.com '*.test'     only these names
  dnsprobe check --config my.yaml         say what is wrong with a configuration
  dnsprobe run --config my.yaml           the service, in the foreground
  dnsprobe tree --watch                   what it has counted, as a tree
  curl http://127.0.0.1:10059/metrics     its counters
  journalctl -t dnsprobe -f               its journal entries
"""


_TREE_EXAMPLES = """\
examples:
  dnsprobe tree                                  what the dnsprobe of this host has counted
  dnsprobe tree --watch 5                        again every 5 seconds, with rates
  dnsprobe tree --domain example.com --unit cron only queries for this domain of cron.service
  dnsprobe tree --by domain                      a tree for each domain
  dnsprobe tree --url https://host.example:10059 --cacert ca.pem --user ada
  dnsprobe tree --folded | flamegraph.pl --countname queries > queries.svg
  dnsprobe tree --json | jq '.queries.children[] | [.name, .total]'

The numbers are those since the daemon was started. Neither root nor any capability is needed.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help", EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dnsprobe",
        description="Tells which process, with which ancestors, asks for which DNS name.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dnsprobe {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=_Parser)

    def command(name: str, text: str, call: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG} if it is there)")
        added.set_defaults(call=call)
        return added

    def add_web_config(to: argparse.ArgumentParser) -> None:
        text = "TLS, headers and users of the HTTP side, instead of metrics.web_config"
        to.add_argument("--web.config.file", dest="web_config", metavar="FILE", help=text)

    run = command("run", "run the service in the foreground", _run)
    run.add_argument(
        "--listen", metavar="ADDR:PORT", help="where to serve /metrics and the page, instead of metrics.listen"
    )
    add_web_config(run)
    run.add_argument(
        "--log-target",
        choices=("auto", "journal", "console"),
        default="auto",
        help="where queries are logged; auto: the journal where there is one, else standard error",
    )
    watch = command("watch", "print queries with their process trees as they are sent", _watch)
    watch.add_argument(
        "domains", nargs="*", metavar="DOMAIN", help="patterns to watch (default: those of --config, or all names)"
    )
    watch.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_tree(command("tree", "show the counts of a running dnsprobe as a tree", _tree))
    check = command("check", "check a configuration and say all that is wrong with it", _check)
    add_web_config(check)
    doctor = command("doctor", "show what this kernel offers and prove each path", _doctor)
    doctor.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _add_tree(tree: argparse.ArgumentParser) -> None:
    tree.epilog, tree.formatter_class = _TREE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    tree.add_argument(
        "--url", metavar="URL", help="the daemon's address (default: metrics.listen of the configuration, over http)"
    )
    # The labels are those of dnsprobe.treeview.aggregate, which --help has no need to load.
    tree.add_argument(
        "--domain",
        action="append",
        default=[],
        metavar="NAME",
        help="only queries that the rule of this name counts, as the label domain has it; * and ? stand for any "
        "characters; may be given several times",
    )
    tree.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="NAME",
        help="only queries of this unit; the same holds, and without a type it is a .service; '' is no unit",
    )
    tree.add_argument(
        "--by",
        choices=("domain", "qtype", "transport", "unit", "container"),
        help="a tree for each value of this label",
    )
    tree.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=2.0,
        metavar="SECONDS",
        help="show it again every so many seconds (2), with queries a second since the last time, until Ctrl-C",
    )
    form = tree.add_mutually_exclusive_group()
    form.add_argument("--folded", action="store_true", help="folded stacks, which flame graph tools read: a;b;c 12")
    form.add_argument("--json", action="store_true", help="one JSON document")
    tree.add_argument("--cacert", metavar="FILE", help="certificates to trust, instead of the system's")
    tree.add_argument("--cert", metavar="FILE", help="certificate to show to the daemon")
    tree.add_argument("--key", metavar="FILE", help="its key, if it is not in the same file")
    tree.add_argument(
        "--user", metavar="NAME", help="who asks; the password is in DNSPROBE_PASSWORD, or asked for on the terminal"
    )


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f"not a number of seconds from 0.1 to 86400 ({text!r})")


def _load(arguments: argparse.Namespace) -> Config:
    from dnsprobe.config.main import default, load  # noqa: PLC0415 - --help and --version need no YAML

    if arguments.config is not None:
        return load(arguments.config)
    try:
        os.lstat(DEFAULT_CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        return default()
    except OSError:
        pass  # it may be there: load() says why it cannot be read
    # A reload reads it again: that it is away for a moment does not mean all names from then on.
    arguments.config = DEFAULT_CONFIG
    return load(DEFAULT_CONFIG)


def _run(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.run import Daemon  # noqa: PLC0415
    from dnsprobe.config.listen import parse_listen  # noqa: PLC0415

    def configuration() -> Config:
        config = _load(arguments)
        if arguments.listen is not None:
            metrics = dataclasses.replace(config.metrics, listen=parse_listen(arguments.listen))
            config = dataclasses.replace(config, metrics=metrics)
        if arguments.web_config is not None:
            metrics = dataclasses.replace(config.metrics, web_config=arguments.web_config)
            config = dataclasses.replace(config, metrics=metrics)
        return config

    config = configuration()
    privileges.need()
    # A watchdog that fires leaves behind where the loop was: systemd ends a service that hangs with SIGABRT.
    if sys.stderr is not None:
        faulthandler.enable()
    Daemon(config, arguments.log_target, configuration).run()
    return EXIT_GOOD


def _watch(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.watch import watch  # noqa: PLC0415

    config = _load(arguments)
    return watch(config, arguments.domains, as_json=arguments.json, check_privileges=privileges.need)


def _tree(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.tree import show_tree  # noqa: PLC0415
    from dnsprobe.treeview.aggregate import Choice  # noqa: PLC0415
    from dnsprobe.treeview.client import Target, complete_url, url_of  # noqa: PLC0415

    if arguments.key is not None and arguments.cert is None:
        raise UserError("--key without --cert", "give the certificate, too", EXIT_USAGE)
    url = url_of(_load(arguments).metrics.listen) if arguments.url is None else complete_url(arguments.url)
    password = None if arguments.user is None else _password(arguments.user)
    target = Target(url, arguments.cacert, arguments.cert, arguments.key, arguments.user, password)
    form = "folded" if arguments.folded else "json" if arguments.json else "tree"
    choice = Choice(tuple(arguments.domain), tuple(arguments.unit), arguments.by)
    return show_tree(target, choice, form=form, every=arguments.watch)


def _password(user: str) -> str:
    """Return the password: never an option, which all users of the host could read in /proc."""
    given = os.environ.get("DNSPROBE_PASSWORD")
    if given is not None:
        return given
    from getpass import getpass  # noqa: PLC0415

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        raise UserError(f"no password for {user}", "put it into DNSPROBE_PASSWORD", EXIT_USAGE) from None
    os.close(terminal)
    try:
        return getpass(f"password of {user}: ")
    except EOFError:
        raise UserError(f"no password for {user}", "put it into DNSPROBE_PASSWORD", EXIT_USAGE) from None


def _check(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.check import check  # noqa: PLC0415

    return check(_load(arguments), arguments.web_config)


def _doctor(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.doctor import examine  # noqa: PLC0415

    return examine(_load(arguments), as_json=arguments.json)


def _to_journal() -> bool:
    """True where standard error goes to the journal: the variable alone is inherited by shells (systemd.exec(5))."""
    with contextlib.suppress(OSError):
        stderr = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    return False


def _set_up_logging() -> None:
    handler: logging.Handler
    if _to_journal():
        from dnsprobe.sinks.journal import LogHandler  # noqa: PLC0415 - only a service needs it

        handler = LogHandler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("dnsprobe: %(message)s"))
    level = logging.DEBUG if os.environ.get("DNSPROBE_DEBUG") else logging.INFO
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 good, 1 failed at run time, 2 bad usage or configuration."""
    try:
        parsed = _parser().parse_args(arguments)
        _set_up_logging()
        return _flushed(int(parsed.call(parsed)))
    except UserError as error:
        print(f"dnsprobe: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output is gone: head(1), a closed pager. Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as error:
        if error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"dnsprobe: {error}", file=sys.stderr)
        return EXIT_FAILED


def _flushed(status: int) -> int:
    if sys.stdout is not None:
        sys.stdout.flush()  # not at exit, where its failure is a traceback
    return status


def entry() -> NoReturn:
    """Be the program ``dnsprobe``."""
    sys.exit(main())
