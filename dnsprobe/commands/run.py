"""The life of the service: start order, signals, reload, drain.

One event loop does all the work; writing to the journal alone has a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable

from dnsprobe.config.main import Config, JournalConfig
from dnsprobe.errors import UserError
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.losses import describe_losses
from dnsprobe.model import Query
from dnsprobe.names.ruleset import RuleSet
from dnsprobe.pipeline.series import total_queries
from dnsprobe.pipeline.session import Session
from dnsprobe.privileges import give_up
from dnsprobe.sinks.console import ConsoleSink
from dnsprobe.sinks.journal import (
    PATH_LOST_ID,
    PATH_PROVED_ID,
    RELOAD_FAILED_ID,
    JournalSink,
    RateLimit,
    journald_available,
)
from dnsprobe.sinks.metrics import Snapshot, build_registry
from dnsprobe.sinks.queue import QueuedSink
from dnsprobe.sinks.wording import wall_offset_ns
from dnsprobe.text import number
from dnsprobe.web.page import LAST_QUERIES, Page
from dnsprobe.web.protection import Protection
from dnsprobe.web.server import Server

_log = logging.getLogger(__name__)

#: How often the loop looks whether there is something to carry over; cheap when there is not.
_TICK_SECONDS = 1.0
#: After there was: while thousands of processes ask and are gone, the kernel's room for them is full in no time.
_NEXT_TICK_SECONDS = 0.25
_DRAIN_SECONDS = 5.0
#: For one attempt to attach: half a second where nothing else is going on.
_ATTEMPT_SECONDS = 150


def notify(state: str) -> None:
    """Tell systemd, where it started us (sd_notify(3))."""
    if "NOTIFY_SOCKET" in os.environ:
        from systemd import daemon  # noqa: PLC0415 - only a service needs it

        try:
            daemon.notify(state)
        except OSError as error:  # a variable that was inherited, of a service manager that is not ours
            _log.debug("NOTIFY_SOCKET=%s: %s", os.environ["NOTIFY_SOCKET"], error.strerror)


def _tell_attempt(hook: str) -> None:
    # To compile takes a slow machine long, and some kernels several attempts: each has its time.
    notify(f"STATUS=trying {hook}\nEXTEND_TIMEOUT_USEC={_ATTEMPT_SECONDS * 1_000_000}")


def passed_sockets() -> list[int]:
    """Return the descriptors of sockets that systemd listens on for us (sd_listen_fds(3))."""
    if "LISTEN_FDS" not in os.environ:
        return []
    from systemd import daemon  # noqa: PLC0415 - only a service with a socket unit needs it

    try:
        return list(daemon.listen_fds(unset_environment=True))
    except OSError as error:
        raise UserError(f"LISTEN_FDS={os.environ.get('LISTEN_FDS', '')}: {error.strerror}") from error


def make_sink(target: str, config: JournalConfig) -> QueuedSink:
    """Return the sink for ``--log-target``; ``auto`` is the journal where there is one, else standard error."""
    if target == "journal" and not journald_available():
        raise UserError(
            "no journal here: /run/systemd/journal/socket is missing",
            "use --log-target console, or auto, which takes the journal where there is one",
        )
    if target == "journal" or (target == "auto" and journald_available()):
        return JournalSink(config.queue, RateLimit(config.rate_interval_ns, config.rate_burst))
    return ConsoleSink(config.queue, 2)


class Daemon:
    """dnsprobe as a service. ``reread`` gives the configuration anew."""

    def __init__(self, config: Config, log_target: str, reread: Callable[[], Config]) -> None:
        self._config, self._reread = config, reread
        self._ready = False
        self._failure: BaseException | None = None
        self._reload_successful, self._reload_time = True, time.time()
        # The listener first: that its port is taken is known before anything is attached.
        self._server = Server(
            build_registry(self._snapshot, config.metrics.labels),
            self._sees_queries,
            config.metrics.connections,
            self._page if config.metrics.page else None,
            Protection(config.metrics.web_config),
        )
        self._last: deque[Query] = deque(maxlen=LAST_QUERIES)
        self._listen(passed_sockets())
        self._session = Session(config, RuleSet.build(config.domains))
        # The child that attaches has started, and has its own. Before there is a thread, which would keep them.
        give_up()
        self._sink = make_sink(log_target, config.journal)

    def _listen(self, sockets: list[int]) -> None:
        if len(sockets) > 1:
            raise UserError(
                f"systemd passed {len(sockets)} sockets", "dnsprobe serves one: give dnsprobe.socket one ListenStream="
            )
        if sockets:
            self._server.adopt(sockets[0])
            return
        self._server.bind(*self._config.metrics.listen, early="NOTIFY_SOCKET" in os.environ)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises whatever ended the work before that."""
        asyncio.run(self._run())
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        started = time.monotonic()
        self._stopped = asyncio.Event()
        # Before the start, which takes a moment: a signal that comes meanwhile is heeded after it.
        loop = asyncio.get_running_loop()
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, self._stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            self._session.start(_tell_attempt)
            _log.info("%s", self._describe_hooks())
            for path, tried in self._session.probe.unserved.items():
                _log.warning("no hook sees %s: %s", path, tried, extra={"message_id": PATH_LOST_ID})
            self._attach_to_loop()
            self._server.start()
            self._ready = True
            notify(f"READY=1\nSTATUS={self._status()}")
            host, port = self._server.address
            _log.info(
                "ready after %.2f s: %s://%s:%d/metrics, %s",
                time.monotonic() - started,
                self._server.protection.scheme,
                f"[{host}]" if ":" in host else host,
                port,
                self._rules_in_force(),
            )
            await self._stopped.wait()
            notify("STOPPING=1")
            self._ready = False
            await self._server.stop()
        finally:
            self._drain()

    def _attach_to_loop(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._session.probe.fileno(), self._take_events)
        self._tasks = [loop.create_task(self._tick())]
        if self._config.probe.verify_interval_ns:
            self._tasks.append(loop.create_task(self._verify()))
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _sees_queries(self) -> bool:
        probe = self._session.probe
        return self._ready and all(probe.paths[path].verified for path in probe.served_paths)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        # A daemon that serves numbers which nobody keeps any more is worse than one that ends and is started again.
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._stopped.set()

    def _take_events(self) -> None:
        for query, identity in self._session.queries():
            self._sink.put(query, identity)
            self._last.append(query)

    async def _tick(self) -> None:
        # In the loop that does the work, after the work: when that hangs, systemd hears nothing and starts us anew.
        watchdog = "WATCHDOG_USEC" in os.environ
        pause = _TICK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _TICK_SECONDS
            if self._session.sweep_if_due():
                pause = _NEXT_TICK_SECONDS
                notify(f"STATUS={self._status()}")
            self._sink.report_refused()
            if watchdog:
                notify("WATCHDOG=1")

    async def _verify(self) -> None:
        """Prove again, now and then, that queries are still seen."""
        probe = self._session.probe
        while True:
            await asyncio.sleep(self._config.probe.verify_interval_ns / 1e9)
            was = {path: probe.paths[path].verified for path in probe.served_paths}
            try:
                canaries = probe.canary_round()
            except OSError as error:  # no process or descriptor left at the moment
                problems = probe.fail_round(f"the canary could not be sent: {error.strerror}")
            else:
                await asyncio.to_thread(canaries.wait)
                problems = probe.finish_round(canaries)
            for path, problem in problems.items():
                if was.get(path):
                    _log.error("%s is not proved any more: %s", path, problem, extra={"message_id": PATH_LOST_ID})
            for path in was.keys() - problems.keys():
                if not was[path]:
                    _log.info("%s is proved again", path, extra={"message_id": PATH_PROVED_ID})

    def _reload(self) -> None:
        """Re-read the rules and the web configuration; a bad file leaves the old ones in force."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._server.protection.refresh(force=True)
        try:
            config = self._reread()
            self._session.replace_rules(config.domains)
        except (UserError, OSError) as error:
            self._reload_successful = False
            _log.error("reload failed, the old rules stay in force: %s", error, extra={"message_id": RELOAD_FAILED_ID})
        else:
            self._reload_successful, self._reload_time = True, time.time()
            _log.info("reloaded: %s", self._rules_in_force())
            if (config.probe, config.journal, config.metrics) != (
                self._config.probe,
                self._config.journal,
                self._config.metrics,
            ):
                _log.warning("only the rules were reloaded: other changes take a restart")
        notify(f"READY=1\nSTATUS={self._status()}")

    def _status(self) -> str:
        return f"{self._describe_hooks()}; {self._rules_in_force()}; {self._queries_so_far()}"

    def _queries_so_far(self) -> str:
        return number(total_queries(self._session.collect()), "query", "queries")

    def _rules_in_force(self) -> str:
        return number(len(self._session.rules.rules), "rule")

    def _describe_hooks(self) -> str:
        probe = self._session.probe
        return ", ".join(
            f"{path} at {probe.paths[path].symbol}{'' if probe.paths[path].verified else ' (not proved)'}"
            for path in probe.served_paths
        )

    def _snapshot(self) -> Snapshot:
        probe = self._session.probe
        counts = self._session.collect()
        statistics = probe.statistics()
        return Snapshot(
            counts=counts,
            hooks=[(path, probe.paths[path].rung, probe.paths[path].symbol) for path in probe.served_paths],
            verified={path: probe.paths[path].verified for path in probe.active_paths},
            events=statistics[Statistic.EVENTS],
            losses=self._session.losses(self._sink.dropped),
            journal_entries=self._sink.entries,
            rules=len(self._session.rules.rules),
            reload_successful=self._reload_successful,
            reload_time=self._reload_time,
            web_config_good=self._server.protection.good,
        )

    def _page(self) -> Page:
        probe = self._session.probe
        return Page(
            snapshot=self._snapshot(),
            ready=self._sees_queries(),
            rules=self._session.rules.rules,
            unserved=probe.unserved,
            lineage_problem=probe.lineage_problem,
            last=tuple(self._last),
            offset_ns=wall_offset_ns(),
            time_ns=time.time_ns(),
        )

    def _drain(self) -> None:
        """Detach, then hand over what is still in the ring."""
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        # The loop may have found the ring readable in this very round: its callback must not run on a freed ring.
        asyncio.get_running_loop().remove_reader(self._session.probe.fileno())
        self._session.detach()
        for query, identity in self._session.remaining_queries():
            self._sink.put(query, identity)
        if not self._sink.close(_DRAIN_SECONDS):
            _log.warning("the log did not take all entries in %.0f s", _DRAIN_SECONDS)
        if self._ready or hasattr(self, "_tasks"):
            statistics = self._session.probe.statistics()
            _log.info(
                "stopped: %s counted, %s, %s",
                self._queries_so_far(),
                number(statistics[Statistic.EVENTS], "event"),
                describe_losses(self._session.losses(self._sink.dropped)),
            )
        self._session.close()
