"""``dnsprobe run``: the service, from its start to its end.

One event loop does the work, in steps of a few milliseconds. Another process matches names. Only writing to the journal
and waiting for canaries have threads of their own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from dnsprobe import privileges
from dnsprobe.commands.address import ServerAddress, written
from dnsprobe.commands.entry_writer import EntryWriter
from dnsprobe.commands.fresh_counts import FreshCounts
from dnsprobe.commands.hooks import describe_hooks, describe_missing, describe_unproved, describe_unseen
from dnsprobe.commands.loss_log import LossLog
from dnsprobe.commands.rate_alerts import NOBODY, RateAlerts
from dnsprobe.commands.reload import RuleReloader, reload_on_demand
from dnsprobe.commands.systemd import notify, notify_attempt, passed_sockets
from dnsprobe.commands.verification import Verification
from dnsprobe.config.main import Config, JournalConfig
from dnsprobe.config.source import Source
from dnsprobe.errors import UserError
from dnsprobe.kernel.abi import Statistic
from dnsprobe.kernel.answer_hooks import ANSWERS
from dnsprobe.kernel.losses import Loss, describe_losses
from dnsprobe.model import Series
from dnsprobe.pipeline.answers import outcomes_of
from dnsprobe.pipeline.series import total_queries
from dnsprobe.pipeline.session import Session
from dnsprobe.pipeline.steps import as_steps, run_in_turns
from dnsprobe.sinks.console import ConsoleSink
from dnsprobe.sinks.journal import PATH_LOST_ID, JournalSink, RateLimit, journald_available
from dnsprobe.sinks.log import log_streams
from dnsprobe.sinks.metrics import Registry, Snapshot
from dnsprobe.sinks.queue import QueuedSink
from dnsprobe.sinks.wording import wall_offset_ns
from dnsprobe.text import number
from dnsprobe.threads import leave_abort_to_main
from dnsprobe.web.origin import Origin
from dnsprobe.web.protection import Protection
from dnsprobe.web.server import Server

if TYPE_CHECKING:
    from dnsprobe.web.page import Page

_log = logging.getLogger(__name__)

#: How often the loop checks whether a sweep is due. The check is cheap.
_TICK_SECONDS = 1.0
#: The shorter pause after a sweep: if thousands of short-lived processes ask, the kernel's maps fill up quickly.
_NEXT_TICK_SECONDS = 0.25
#: How long map calls may fail before the daemon ends and systemd restarts it.
_KERNEL_PATIENCE_SECONDS = 60.0
#: How long the journal or the terminal may take for the last entries.
_DRAIN_SECONDS = 5.0


def make_sink(target: str, config: JournalConfig) -> QueuedSink:
    """Return the sink for ``--log-target``. ``auto`` is the journal if there is one, else standard error."""
    if target == "journal" and not journald_available():
        raise UserError(
            "no journal here: /run/systemd/journal/socket is missing",
            "use --log-target console, or auto, which takes the journal only if there is one",
        )
    if target == "journal" or (target == "auto" and journald_available()):
        return JournalSink(config.queue, RateLimit(config.rate_interval_ns, config.rate_burst))
    return ConsoleSink(config.queue, 2)


def _collected(counts: Mapping[Series, int], session: Session) -> Snapshot:
    """Return the numbers that have the same sums as counts that were just collected."""
    totals = session.totals
    return Snapshot(
        counts=counts,
        series_expired=totals.series_expired,
        expired=totals.expired.copy(),
        expired_connections=totals.expired_connections,
        expired_unread=totals.expired_unread,
        outcomes=outcomes_of(session.answers),
    )


class Daemon:
    """dnsprobe as a service. ``source`` is where the configuration comes from, for reloads."""

    def __init__(self, config: Config, log_target: str, source: Source) -> None:
        self._config = config
        self._ready = False
        self._failure: BaseException | None = None
        #: When map calls began to fail, in seconds of the monotonic clock.
        self._failing_since: float | None = None
        self._stopped, self._reload_wanted = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._verification: Verification | None = None
        self._counts = FreshCounts(self._collect)
        self._collected = Snapshot()
        # Listen first: if the address is wrong, nothing has been attached yet.
        self._registry = Registry(self._snapshot, config.metrics.labels)
        self._server = Server(
            self._registry,
            self._unready,
            config.metrics.connections,
            self._page if config.metrics.page else None,
            Protection(config.metrics.web_config),
            Origin(config.metrics.hosts),
            self._counts.when_collected,
            lambda: describe_missing(self._session.probe.answers, ANSWERS),
        )
        self._address = ServerAddress(self._server, config.metrics.listen)
        self._address.take(passed_sockets())
        self._session = Session(config, config.domains)
        self._reloader = RuleReloader(config, source, self._session)
        # The loader child has its own capabilities. Drop ours before any thread inherits them.
        privileges.drop()
        self._sink = make_sink(log_target, config.journal)
        self._entries = EntryWriter(self._session, self._sink)
        self._rates = RateAlerts(self._session)
        self._loss_log = LossLog()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises the error that ended the work before that."""
        asyncio.run(self._run())
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        started = time.monotonic()
        # Before the start, which takes a moment: signals that arrive during the start are handled after it.
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(initializer=leave_abort_to_main))
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, self._stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        try:
            self._start()
            seconds = time.monotonic() - started
            if unready := self._unready():
                _log.warning(
                    "not ready after %.2f s: %s, %s; %s", seconds, self._url(), self._rules_in_force(), unready
                )
            else:
                _log.info("ready after %.2f s: %s, %s", seconds, self._url(), self._rules_in_force())
            await self._stopped.wait()
            notify("STOPPING=1")
            self._ready = False
            await self._server.stop()
            if self._verification is not None:
                await self._verification.stop()
        finally:
            self._drain()

    def _start(self) -> None:
        self._session.start(notify_attempt)
        probe = self._session.probe
        _log.info("%s", describe_hooks(probe.prover, probe.answers))
        _log.info("%s", describe_unseen(probe.prover))
        for path, tried in probe.prover.unserved.items():
            _log.warning("no hook could be verified for %s: %s", path, tried, extra={"message_id": PATH_LOST_ID})
        if missing := describe_missing(probe.answers):
            _log.warning("%s", missing)
        loop = asyncio.get_running_loop()
        self._entries.start()
        self._tasks.append(loop.create_task(reload_on_demand(self._reload_wanted, self._reload)))
        self._tasks.append(loop.create_task(self._tick()))
        if self._config.probe.verify_interval_ns:
            self._verification = Verification(probe, self._config.probe.verify_interval_ns / 1e9, self._notify_status)
            self._tasks.append(self._verification.start())
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)
        self._address.serve()
        self._ready = True
        notify(f"READY=1\nSTATUS={self._status()}")

    def _unready(self) -> str:
        """Return why the service is not ready, empty if it is: all hooks are proved."""
        if not self._ready:
            return "the service starts or stops"
        return describe_unproved(self._session.probe.prover)

    def _notify_status(self) -> None:
        notify(f"STATUS={self._status()}")

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        # The daemon ends, and systemd restarts it. To go on with counters that nothing updates would be worse.
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self._stopped.set()

    async def _tick(self) -> None:
        # The watchdog is fed in the loop that does the work, after the work: if the work hangs, systemd restarts us.
        watchdog = "WATCHDOG_USEC" in os.environ
        pause = _TICK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _TICK_SECONDS
            try:
                self._session.exceeded_shares(self._sink.take_over_share())
                self._loss_log.report(self._losses())
                is_swept = await self._session.sweep_in_turns_if_due()
                self._entries.write()  # queries may have been given up
                for found in await self._rates.look_in_turns():
                    self._sink.put(found, NOBODY)
                if is_swept:
                    pause = _NEXT_TICK_SECONDS
                    await self._counts.collect()
                    self._notify_status()
            except OSError as error:
                self._on_kernel_error(error)
            else:
                self._failing_since = None
            self._sink.report_refused()
            for stream in log_streams():
                stream.report_dropped()
            if self._address.retry():
                self._notify_status()
            if watchdog:
                notify("WATCHDOG=1")

    def _on_kernel_error(self, error: OSError) -> None:
        """Go on if the kernel refuses a map call: memory may be short for a moment, and counters lose nothing."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
            _log.warning("cannot read the BPF maps, trying again: %s", error.strerror or error)
        elif now - self._failing_since > _KERNEL_PATIENCE_SECONDS:
            raise error

    async def _reload(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._server.protection.refresh(force=True)
        await self._reloader.reload()
        notify(f"READY=1\nSTATUS={self._status()}")

    def _url(self) -> str:
        if self._address.problem:
            return self._address.problem
        return f"{self._server.protection.scheme}://{written(*self._server.address)}/metrics"

    def _status(self) -> str:
        probe = self._session.probe
        unready = describe_unproved(probe.prover)
        facts = (
            f"not ready: {unready}" if unready else "",
            describe_hooks(probe.prover, probe.answers),
            self._rules_in_force(),
            self._queries(self._counts.last),
            self._address.problem,
        )
        return "; ".join(filter(None, facts))

    def _queries(self, counts: Mapping[Series, int]) -> str:
        return number(total_queries(counts) + self._session.totals.expired.total(), "query", "queries")

    def _rules_in_force(self) -> str:
        return number(len(self._session.rules.rules), "rule")

    async def _collect(self) -> Mapping[Series, int]:
        counts = await self._session.collect_in_turns()
        # Now, before a sweep or the next collection changes what belongs to these counts.
        collected = _collected(counts, self._session)
        await run_in_turns(as_steps(self._registry.preparing(counts, collected.outcomes)))
        # FreshCounts takes the counts at the same moment: it does not wait in between.
        self._collected = collected
        return counts

    def _snapshot(self) -> Snapshot:
        probe = self._session.probe
        paths = {path: probe.prover.paths[path] for path in probe.prover.active_paths} | probe.answers.of_answers
        return replace(
            self._collected,
            counts=self._counts.last,
            hooks=[(path, state.rung, state.attach, state.symbol) for path, state in paths.items() if state.rung],
            verified={path: state.verified for path, state in paths.items()},
            events=probe.statistics()[Statistic.EVENTS],
            losses=self._losses(),
            other_messages=self._session.other_messages(),
            exceeded=self._session.exceeded_shares(self._sink.take_over_share()),
            journal_entries=self._sink.entries,
            rules=len(self._session.rules.rules),
            reload_successful=self._reloader.successful,
            reload_time=self._reloader.time,
            web_config_good=self._server.protection.good,
        )

    def _losses(self) -> dict[Loss, int]:
        return self._session.losses(self._sink.dropped, sum(stream.dropped for stream in log_streams()))

    def _page(self) -> Page:
        from dnsprobe.web.page import Page  # noqa: PLC0415 - start-up time and memory: many never open the page

        probe = self._session.probe
        return Page(
            snapshot=self._snapshot(),
            ready=not self._unready(),
            rules=self._session.rules.rules,
            unserved=probe.prover.unserved,
            lineage_problem=probe.lineage_table.problem,
            last=tuple(self._entries.last) if self._shows_last_queries() else None,
            offset_ns=wall_offset_ns(),
            time_ns=time.time_ns(),
        )

    def _shows_last_queries(self) -> bool:
        when = self._config.metrics.last_queries
        return when == "always" or (when == "protected" and self._server.protection.knows_clients)

    def _drain(self) -> None:
        """Detach, then write what is still in the ring buffer."""
        for task in self._tasks:
            task.cancel()
        self._entries.stop()
        self._session.detach()
        self._entries.write_remaining()
        if not self._sink.close(_DRAIN_SECONDS):
            _log.warning("the last entries could not be written within %.0f s and are dropped", _DRAIN_SECONDS)
        if self._tasks:
            _log.info(
                "stopped: %s counted, %s, %s",
                self._queries(self._session.collect()),
                number(self._session.probe.statistics()[Statistic.EVENTS], "event"),
                describe_losses(self._losses()),
            )
        self._session.close()
