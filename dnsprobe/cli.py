"""The command line: turns arguments into calls, and errors into a message, a hint and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from dnsprobe import __version__, descriptors, privileges
from dnsprobe.config.source import DEFAULT_CONFIG, Source
from dnsprobe.errors import EXIT_FAILED, EXIT_GOOD, EXIT_USAGE, UserError

if TYPE_CHECKING:
    from dnsprobe.config.main import Config

_EXAMPLES = """\
examples:
  dnsprobe watch                          print every DNS query of this host with its process tree
  dnsprobe watch example.com '*.test'     only these names
  dnsprobe check --config my.yaml         report the errors in a configuration
  dnsprobe run --config my.yaml           the service, in the foreground
  dnsprobe tree --watch                   the service's counts as a tree
  curl http://127.0.0.1:10059/metrics     the service's metrics
  journalctl -t dnsprobe -f               the service's journal entries
"""


_TREE_EXAMPLES = """\
examples:
  dnsprobe tree                                  what the service on this host has counted
  dnsprobe tree --watch 5                        repeat every 5 seconds, with rates
  dnsprobe tree --domain example.com --unit cron only queries for this domain of cron.service
  dnsprobe tree --by domain                      a tree for each domain
  dnsprobe tree --url https://host.example:10059 --cacert ca.pem --user ada
  dnsprobe tree --folded | flamegraph.pl --countname queries > queries.svg
  dnsprobe tree --json | jq '.queries.children[] | [.name, .total]'

The numbers count from the start of the daemon. This command needs neither root nor a capability.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help", EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dnsprobe",
        description="Shows which process, with which ancestors, sends a query for which DNS name.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dnsprobe {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True, parser_class=_Parser)

    def command(name: str, text: str, call: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG} if it exists)")
        added.set_defaults(call=call)
        return added

    _add_run_options(command("run", "run the service in the foreground", _run))
    _add_watch_options(command("watch", "print queries with their process trees as they are sent", _watch))
    _add_tree_options(command("tree", "show the counts of a running dnsprobe as a tree", _tree))
    _add_web_config(command("check", "check a configuration and report every error in it", _check))
    _add_json(command("doctor", "show what this kernel offers and prove each path", _doctor))
    return parser


def _add_web_config(parser: argparse.ArgumentParser) -> None:
    text = "TLS, headers and users of the HTTP server, instead of metrics.web_config"
    parser.add_argument("--web.config.file", dest="web_config", metavar="FILE", help=text)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", metavar="ADDR:PORT", help="address of /metrics and the page, instead of metrics.listen"
    )
    _add_web_config(parser)
    parser.add_argument(
        "--log-target",
        choices=("auto", "journal", "console"),
        default="auto",
        help="where queries are logged; auto is the journal if there is one, else standard error",
    )


def _add_watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "domains", nargs="*", metavar="DOMAIN", help="patterns to watch (default: those of --config, or all names)"
    )
    _add_json(parser)


def _add_tree_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _TREE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--url", metavar="URL", help="URL of the daemon (default: http:// and metrics.listen of the configuration)"
    )
    parser.add_argument(
        "--domain",
        action="append",
        default=[],
        metavar="NAME",
        help="only queries that are counted under this name of a rule (label domain); * and ? are wildcards; can be "
        "repeated",
    )
    parser.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="NAME",
        help="only queries of this unit; a name without a type means a .service; '' means no unit; * and ? are "
        "wildcards; can be repeated",
    )
    # The labels are those of dnsprobe.treeview.aggregate, which --help need not load.
    parser.add_argument(
        "--by",
        choices=("domain", "qtype", "transport", "to", "unit", "container", "user", "server", "rcode"),
        help="print one tree for each value of this label; rcode: for each result of queries",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=2.0,
        metavar="SECONDS",
        help="repeat every SECONDS (default: 2) until Ctrl-C, with queries per second since the last time",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--folded", action="store_true", help="print folded stacks for flame graph tools: a;b;c 12")
    form.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--cacert", metavar="FILE", help="trust these certificates instead of the system's")
    parser.add_argument("--cert", metavar="FILE", help="client certificate")
    parser.add_argument("--key", metavar="FILE", help="key of the client certificate, if it is in another file")
    parser.add_argument(
        "--user", metavar="NAME", help="user name; the password is DNSPROBE_PASSWORD, or is read from the terminal"
    )


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 86400:
            return float(text)
    raise argparse.ArgumentTypeError(f"not a number of seconds from 0.1 to 86400 ({text!r})")


def _load(arguments: argparse.Namespace) -> Config:
    return Source(arguments.config).resolved().read()


def _require_surroundings(connections: int = 0) -> None:
    from dnsprobe.process.time_namespace import require_no_offset  # noqa: PLC0415 - as above

    require_no_offset()
    descriptors.ensure(connections)


def _run(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.run import Daemon  # noqa: PLC0415

    source = Source(arguments.config, arguments.listen, arguments.web_config).resolved()
    config = source.read()
    privileges.require()
    _require_surroundings(config.metrics.connections)
    # systemd ends a service that hangs with SIGABRT. The traceback then shows where it hung. It does not show all
    # threads: whoever reads the frames of a thread that runs may end in a segmentation fault.
    if sys.stderr is not None:
        faulthandler.enable(all_threads=False)
    Daemon(config, arguments.log_target, source).run()
    return EXIT_GOOD


def _watch(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.watch import watch  # noqa: PLC0415

    config = _load(arguments)

    def check_limits() -> None:
        privileges.require()
        _require_surroundings()

    return watch(config, arguments.domains, as_json=arguments.json, check_limits=check_limits)


def _tree(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.tree import show_tree  # noqa: PLC0415
    from dnsprobe.treeview.aggregate import Choice  # noqa: PLC0415
    from dnsprobe.treeview.client import Target, complete_url, url_of  # noqa: PLC0415

    if arguments.key is not None and arguments.cert is None:
        raise UserError("--key without --cert", "add --cert with the certificate of that key", EXIT_USAGE)
    url = url_of(_load(arguments).metrics.listen) if arguments.url is None else complete_url(arguments.url)
    password = None if arguments.user is None else _password(arguments.user)
    target = Target(url, arguments.cacert, arguments.cert, arguments.key, arguments.user, password)
    form = "folded" if arguments.folded else "json" if arguments.json else "tree"
    choice = Choice(tuple(arguments.domain), tuple(arguments.unit), arguments.by)
    return show_tree(target, choice, form=form, every=arguments.watch)


def _password(user: str) -> str:
    """Return the password. It is never an option, because all users of the host could read that in /proc."""
    given = os.environ.get("DNSPROBE_PASSWORD")
    if given is not None:
        return given
    from getpass import getpass  # noqa: PLC0415

    try:
        # Without a terminal, getpass would read standard input and show what is typed.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return getpass(f"password of {user}: ")
    except (OSError, EOFError):
        hint = "set DNSPROBE_PASSWORD, or run this in a terminal"
        raise UserError(f"no password for {user}", hint, EXIT_USAGE) from None


def _check(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.check import check  # noqa: PLC0415

    return check(_load(arguments), arguments.web_config)


def _doctor(arguments: argparse.Namespace) -> int:
    from dnsprobe.commands.doctor import examine  # noqa: PLC0415

    _require_surroundings()
    return examine(_load(arguments), as_json=arguments.json)


def _to_journal() -> bool:
    """Return True if standard error is the journal (systemd.exec(5)). Shells inherit the variable, so compare both."""
    with contextlib.suppress(OSError):
        stderr = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    return False


def _set_up_logging() -> None:
    from dnsprobe.sinks.log import LogStream  # noqa: PLC0415 - start-up: --help and --version log nothing

    handler: LogStream
    if _to_journal():
        from dnsprobe.sinks.journal import LogHandler  # noqa: PLC0415 - memory: only a service needs it

        handler = LogHandler()
    else:
        handler = LogStream(sys.stderr)
        handler.setFormatter(logging.Formatter("dnsprobe: %(message)s"))
    level = logging.DEBUG if os.environ.get("DNSPROBE_DEBUG") else logging.INFO
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit status: 0 success, 1 failure, 2 wrong usage or configuration."""
    report: Callable[[str], object] = _print_error
    try:
        parsed = _parser().parse_args(arguments)
        _set_up_logging()
        if parsed.command == "run":
            from dnsprobe.sinks.log import write_last_lines as report  # noqa: PLC0415 - as above
        return _flushed(int(parsed.call(parsed)))
    except UserError as error:
        report(f"dnsprobe: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
        return error.status
    except KeyboardInterrupt:
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader is gone (head(1), a closed pager). Without this, Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as error:
        if error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        report(f"dnsprobe: {error}")
        return EXIT_FAILED


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)


def _flushed(status: int) -> int:
    if sys.stdout is not None:
        sys.stdout.flush()  # at exit, a failure would print a traceback
    return status


def entry() -> NoReturn:
    """Run the program ``dnsprobe``."""
    sys.exit(main())
