"""The composition root: puts the parts together, serves, reloads, drains."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tornado.ioloop import PeriodicCallback
from tornado.platform.asyncio import AsyncIOMainLoop

from tornado_persist import __version__, listening
from tornado_persist.config import loading
from tornado_persist.config.loading import Settings
from tornado_persist.errors import ConfigError, SinkUnavailable, StartError
from tornado_persist.files import DataDir
from tornado_persist.journal import Checkpoint, Interrupted, Journal
from tornado_persist.pipeline.backlog import Backlog
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.checkpoint import Checkpointer
from tornado_persist.pipeline.deadletters import DeadLetters, OpenRows
from tornado_persist.pipeline.flusher import Flusher
from tornado_persist.pipeline.health import Health, Instance, Reloads
from tornado_persist.pipeline.ingest import Ingest
from tornado_persist.pipeline.reads import Reads
from tornado_persist.pipeline.removal import Remover
from tornado_persist.pipeline.retention import Ages, Retention
from tornado_persist.records.models import KINDS, Kind
from tornado_persist.records.parser import Parser
from tornado_persist.service.parts import bind, make_sink, make_tls, probe, warn_of_anybody, writers
from tornado_persist.service.reload import plan_reload
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry import log
from tornado_persist.telemetry.metrics import Metrics, Totals
from tornado_persist.telemetry.systemd import ServiceManager
from tornado_persist.web import auth
from tornado_persist.web.app import Api, make_server
from tornado_persist.web.history import INTERVAL
from tornado_persist.web.server import Server

#: Seconds after which a computing thread gives up the GIL; Python's default is 5 ms. The journal's thread, the sink's
#: and the event loop each wait for it several times in one batch. Together with the collector's settings below, the
#: 99th percentile at 20,000 rows/s into PostgreSQL was 15 ms instead of 29.
SWITCH_INTERVAL = 0.001
#: Objects allocated, less those freed, before the collector looks for cycles; Python's default is 700. Rows make no
#: cycles, and a batch of 1,000 rows is 1,000 objects. With the freeze below it saves a tenth of the processor time.
COLLECT_AFTER = 10_000


def _tune_interpreter() -> None:
    """Set up threads and garbage collection; called once everything is loaded and before the first request."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()  # modules and types stay: the collector need not scan their 150,000 objects again
    gc.set_threshold(COLLECT_AFTER, 20, 20)


logger = log.get(__package__)  # lines of the log have named tornado_persist.service since the first version

#: Seconds between pings of an idle sink, so that the log reports an outage before a flush fails.
WATCH_INTERVAL = 5.0
#: And of one that is down: rows wait, and a fail-over may be over any second.
WATCH_DOWN = 1.0
#: Seconds that the start waits for the sink to open; then it continues without it.
FIRST_LOOK = 2.0
#: Seconds of the shutdown kept for closing the sink.
CLOSING_TIME = 0.5

#: Watchdog interval when systemd asks for none, in seconds.
NO_WATCHDOG = 86_400.0


class MonotonicLoop(AsyncIOMainLoop):
    """Tornado's view of the running loop, on asyncio's clock.

    Tornado's own uses the wall clock: when that is set back by 8 hours, no PeriodicCallback runs for 8 hours.
    """

    def time(self) -> float:
        return self.asyncio_loop.time()


class Service:
    """One running persistd."""

    def __init__(self, settings: Settings, file: Path | None) -> None:
        """``file`` is where the settings came from, and is read again at SIGHUP."""
        self._settings = settings
        self._file = file
        self._stop = asyncio.Event()
        self._watched_at = float("-inf")
        self._reload_asked = asyncio.Event()
        self._url = ""
        self._journal_stuck = ""

    async def run(self, serving: Callable[[str], None] = lambda url: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain. ``serving`` is called with the URL once requests are answered.

        Raises:
            ConfigError: the data directory cannot be written, or the sink does not support a setting.
            StartError: the data directory is in use, the journal cannot be used, or the port is taken.
        """
        MonotonicLoop()  # from now on IOLoop.current() here
        self._data_dir = data_dir = DataDir(self._settings.data_dir)
        data_dir.make()
        data_dir.lock()
        self._name = log.instance = self._settings.instance or data_dir.instance_name()
        data_dir.note()  # drops what an earlier process noted
        self._manager = ServiceManager()
        beat = PeriodicCallback(self._manager.beat, (self._manager.interval or NO_WATCHDOG) * 1000)
        try:
            self._listen_to_signals()
            data_dir.write_pid()
            beat.start()
            for offer in registry.shadowed():
                logger.warning("a plugin's sink is passed over, its name is a built-in sink's", plugin=offer)
            await self._run(serving)
        finally:
            data_dir.unlock()
            beat.stop()
            self._manager.close()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)

    async def _run(self, serving: Callable[[str], None]) -> None:
        sink = make_sink(self._settings)
        # A taken port is found before the recovery, which may take long; the port is bound after it.
        probe(self._settings)
        self._tls = await asyncio.to_thread(make_tls, self._settings)
        try:
            checkpoint = await self._open_journal()
            await self._recover(checkpoint, timed=writers(sink.settings) == "several")
        except Interrupted:
            self._stop.set()
        if self._stop.is_set():
            logger.info("stopped before it served; all that waits stays in the journal")
            return
        sockets = bind(self._settings)
        self._url = listening.url(sockets, tls=self._tls is not None)
        self._port = sockets[0].getsockname()[1] if self._settings.server.tcp else 0
        self._start_pipeline(sink, checkpoint)
        # So that the first answer of /health is measured, not guessed.
        await asyncio.gather(self._flusher.runner.healthy(wait=FIRST_LOOK), self._health.look())
        self._server = server = await self._listen(sockets)
        self._announce(serving)
        await self._serve()
        server.stop()
        if self._settings.unix_socket:
            listening.remove_unix(self._settings.unix_socket)
        await self._drain(self._settings.server.shutdown_timeout)
        if self._journal_stuck:
            # Requests wait for an answer that the journal cannot give; their connections end with the process.
            raise StartError(f"the journal could not be closed: {self._journal_stuck}")
        await server.close_all_connections()

    # Open and recover.

    async def _open_journal(self) -> Checkpoint:
        settings = self._settings
        self._metrics = Metrics(datetime.now(UTC))
        self._journal = Journal(
            settings.path("journal"),
            settings.path("damaged"),
            sync=settings.journal.sync,
            segment_bytes=settings.journal.segment_bytes,
            max_bytes=settings.journal.max_bytes,
            on_sync=self._metrics.fsync_seconds.observe,
        )
        self._manager.status("Reading the journal")
        return await asyncio.to_thread(self._journal.open, self._stop.is_set)

    async def _recover(self, checkpoint: Checkpoint, *, timed: bool) -> None:
        """Fill the buffer with what was accepted and not released."""
        began = time.monotonic()
        self._dead_letters = DeadLetters(self._settings.path("rejected.jsonl"))
        # Without records nothing will be rejected again, and lines added by hand may stay.
        set_aside = _open_dead_letters(self._dead_letters, checkpoint.state, cut=bool(self._journal.found.records))
        self._metrics.resume(replace(Totals.of(checkpoint.state.get("totals", {})), set_aside=set_aside))
        self._buffer = Buffer(timed=timed)
        limits = self._settings.buffer
        self._backlog = Backlog(
            self._journal, self._buffer, self._metrics, max_rows=limits.max_rows, max_bytes=limits.max_bytes
        )
        await self._backlog.recover(checkpoint.seq, self._stop.is_set)
        waiting = self._pending()
        if waiting:
            logger.info("recovered", rows=waiting, ms=round((time.monotonic() - began) * 1000))

    def _start_pipeline(self, sink: Sink[Any], checkpoint: Checkpoint) -> None:
        settings = self._settings
        self._journal.start()
        runner = SinkRunner(sink, checkpoint.state.get("position"))
        checkpointer = Checkpointer(self._journal, self._dead_letters, checkpoint, self._metrics.totals.set_aside)
        self._flusher = Flusher(
            self._buffer,
            self._backlog,
            checkpointer,
            runner,
            self._metrics,
            interval=settings.buffer.flush_interval,
            capacity=settings.buffer.capacity,
        )
        self._ingest = Ingest(
            Parser(
                max_batch=settings.server.max_batch,
                unknown_fields=settings.records.unknown_fields,
                statuses=settings.records.statuses,
                timezone=settings.records.zone,
                invalid_rows=settings.records.invalid_rows,
            ),
            self._journal,
            self._backlog,
            self._buffer,
            set_aside=checkpointer.set_aside,
            added=self._flusher.poke,
            find_sessions=runner.find_sessions if settings.records.require_session else None,
        )
        self._remover = Remover(
            self._ingest,
            self._backlog,
            self._flusher,
            checkpointer,
            self._metrics,
            rejected=self._dead_letters.path,
        )
        self._retention = Retention(
            self._remover,
            self._metrics,
            settings.path("retention.json"),
            timeout=settings.buffer.flush_timeout,
        )
        self._apply_retention(settings)
        self._reads = Reads(self._flusher, self._backlog, statuses=settings.records.statuses)
        self._health = Health(
            self._ingest,
            self._backlog,
            self._buffer,
            self._flusher,
            self._journal,
            open_rows=OpenRows(self._dead_letters.path),
            instance=Instance(
                self._name, self._url, socket.gethostname(), os.getpid(), settings.data_dir, self._metrics.started
            ),
        )

    # Serve.

    async def _listen(self, sockets: list[socket.socket]) -> Server:
        settings = self._settings
        access = auth.Access(
            await asyncio.to_thread(settings.read_tokens),
            hosts=auth.allowed_hosts(settings.server.allowed_hosts, sockets),
            origins=settings.server.trusted_origins,
            proxies=settings.server.trusted_proxies,
        )
        self._api = Api(
            self._ingest,
            self._flusher,
            self._health,
            self._remover,
            self._retention,
            self._metrics,
            self._reads,
            access=access,
            max_body_bytes=settings.server.max_body_bytes,
            flush_timeout=settings.buffer.flush_timeout,
            body_timeout=settings.server.body_timeout,
            max_inflight_bytes=settings.server.max_inflight_bytes,
            max_batch=settings.server.max_batch,
            unknown_fields=settings.records.unknown_fields,
            statuses=settings.records.statuses,
        )
        server = make_server(
            self._api,
            max_connections=settings.server.max_connections,
            header_timeout=settings.server.header_timeout,
            idle_timeout=settings.server.idle_timeout,
            tls=self._tls.context if self._tls else None,
        )
        server.add_sockets(sockets)
        _tune_interpreter()
        return server

    def _announce(self, serving: Callable[[str], None]) -> None:
        settings = self._settings
        also = {"unix_socket": str(settings.unix_socket)} if settings.unix_socket and settings.server.tcp else {}
        where = {"url": self._url, **also, "sink": settings.sink, "data_dir": str(settings.data_dir)}
        logger.info("serving", **where, version=__version__)
        self._say_caution(warn_of_anybody(settings, self._port))
        self._note()
        serving(self._url)
        self._manager.ready()
        self._say_status()

    def _say_caution(self, caution: str) -> None:
        """Show it on the dashboard and in ``/health``; the log has each once."""
        if caution and caution != self._health.caution:
            logger.warning("no authentication", problem=caution)
        self._health.caution = caution

    def _note(self) -> None:
        """Tell commands how they reach the service, and how reloads went: that needs no token."""
        found: dict[str, object] = {"url": self._url, "reloads": asdict(self._health.reloads)}
        if self._settings.unix_socket:
            found["unix_socket"] = str(self._settings.unix_socket)
        if self._tls:
            found |= {"certificate": self._tls.certificate, "identity": self._tls.identity}
        self._data_dir.note(**found)

    async def _serve(self) -> None:
        """Until a signal stops it."""
        self._flusher.poke()  # rows were recovered, perhaps
        timers = [
            PeriodicCallback(self._watch, WATCH_DOWN * 1000),
            PeriodicCallback(self._api.sampler.sample, INTERVAL * 1000),
        ]
        for timer in timers:
            timer.start()
        reloads = asyncio.create_task(self._reload_when_asked())
        retention = asyncio.create_task(self._retention.keep())
        await self._stop.wait()
        for timer in timers:
            timer.stop()
        reloads.cancel()
        retention.cancel()

    async def _watch(self) -> None:
        now = time.monotonic()
        if not self._flusher.runner.up:
            # Also right after a try that failed, and to its end: its success is what starts the next flush.
            await self._health.ping(wait=WATCH_INTERVAL, max_age=0.0)
        elif now - self._watched_at > WATCH_INTERVAL - WATCH_DOWN / 2:
            self._watched_at = now
            await self._health.ping()
        else:
            return
        self._say_status()

    def _say_status(self) -> None:
        """What ``systemctl status`` shows."""
        if self._stop.is_set():
            return
        health = self._health.snapshot()
        sink = f"{health.sink.name} is up" if health.healthy else health.reason
        self._manager.status(f"Serving on {self._url}, {health.waiting.rows} rows wait, {sink}")

    def _pending(self) -> int:
        return sum(map(self._backlog.pending, KINDS))

    # Drain.

    async def _drain(self, timeout: float) -> None:
        """Answer what is in flight, then flush; half of the time is for slow clients at most.

        What the sink does not take in time stays in the journal, for the next start.
        """
        logger.info("shutting down", waiting=self._pending())
        self._manager.stopping()
        self._manager.status(f"Shutting down, {self._pending()} rows wait")
        deadline = time.monotonic() + timeout
        self._remover.close()
        await self._api.finish_requests(timeout / 2)
        await self._flusher.drain(deadline - time.monotonic() - CLOSING_TIME)
        await self._reads.close()
        await self._flusher.runner.close(max(0.0, deadline - time.monotonic()))
        await self._flusher.finish(max(CLOSING_TIME, deadline - time.monotonic()))
        problem = self._journal.problem
        if not await asyncio.to_thread(self._journal.close, max(CLOSING_TIME, deadline - time.monotonic())):
            self._journal_stuck = problem or "the disk does not answer"
            logger.error("the journal could not be closed in time", error=self._journal_stuck)
        left = self._pending()
        await asyncio.to_thread(self._data_dir.note, left=left)
        logger.info("stopped", left_in_journal=left)

    # Reload. ``persistd reload`` reads in service.json how many have begun, sends SIGHUP, and waits until one more is
    # done: one that had begun before may have read the file before it was changed.

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again and apply what can change live, all of it or nothing."""
        if self._stop.is_set():
            return
        begun = self._health.reloads.begun + 1
        self._health.reloads = replace(self._health.reloads, begun=begun)
        await asyncio.to_thread(self._note)
        self._manager.reloading()
        failed = await self._reopen_log()
        applied: list[str] = []
        needs_restart: list[str] = []
        try:
            applied, needs_restart = await self._apply(await asyncio.to_thread(loading.load, self._file))
        except ConfigError as exc:
            failed += exc.mistakes
            logger.error("configuration not reloaded", error=str(exc))
        except Exception:
            failed.append("a bug; the log has its traceback")
            logger.exception("a bug in a reload")
        self._health.reloads = Reloads(begun, begun, tuple(applied), tuple(needs_restart), tuple(failed))
        await asyncio.to_thread(self._note)
        self._manager.ready()
        self._say_status()

    async def _reopen_log(self) -> list[str]:
        """logrotate may have moved the file; that does not depend on what stands in the configuration now."""
        try:
            await asyncio.to_thread(log.reopen)
        except OSError as exc:
            logger.error("the log file cannot be opened again", file=exc.filename, error=exc.strerror)
            return [f"log.file: {exc.filename} cannot be opened again: {exc.strerror}"]
        return []

    async def _apply(self, new: Settings) -> tuple[list[str], list[str]]:
        """Returns the keys that were applied, and those that need a restart.

        Raises:
            ConfigError: the new sink cannot be used now; nothing was changed.
        """
        old = self._settings
        tokens = await asyncio.to_thread(new.read_tokens)
        plan = await asyncio.to_thread(plan_reload, old, new, self._tls, new_tokens=tokens != self._api.access.tokens)
        settings = plan.settings
        # First, because only this may fail from here on.
        runner = await self._open_sink(settings) if plan.new_sink else None
        self._apply_numbers(settings)
        self._api.access.tokens = tokens
        self._settings = settings
        if plan.tls is not None:
            self._tls, self._server.tls = plan.tls, plan.tls.context
            await asyncio.to_thread(self._note)
        self._say_caution(await asyncio.to_thread(warn_of_anybody, settings, self._port))
        if runner is not None:
            await self._switch_to(runner, settings)
        for key in plan.needs_restart:
            logger.warning("this setting changes only with a restart", key=key)
        logger.info("configuration reloaded", applied=plan.applied, sink=settings.sink)
        return plan.applied, plan.needs_restart

    def _apply_numbers(self, new: Settings) -> None:
        log.set_level(new.log.level)
        if new.buffer.flush_interval != self._settings.buffer.flush_interval:
            self._flusher.set_interval(new.buffer.flush_interval)
        self._flusher.capacity = new.buffer.capacity
        self._backlog.max_rows, self._backlog.max_bytes = new.buffer.max_rows, new.buffer.max_bytes
        self._flusher.poke()
        self._api.flush_timeout = self._retention.timeout = new.buffer.flush_timeout
        if new.retention != self._settings.retention:
            self._apply_retention(new)

    def _apply_retention(self, settings: Settings) -> None:
        ages = settings.retention
        self._retention.configure(Ages(ages.completed or None, ages.failed or None, ages.orphans or None), ages.every)

    async def _open_sink(self, settings: Settings) -> SinkRunner:
        """Raises ConfigError."""
        runner = None
        try:
            runner = SinkRunner(make_sink(settings))
            async with asyncio.timeout(settings.buffer.flush_timeout):
                await runner.open()
        except (ConfigError, SinkUnavailable, TimeoutError) as exc:
            if runner is not None:
                await runner.close(0)
            error = str(exc) or "it does not answer"
            logger.error("sink not changed", sink=self._settings.sink, refused=settings.sink, error=error)
            raise ConfigError("sink", f"{settings.sink} cannot be used: {error}") from exc
        return runner

    async def _switch_to(self, runner: SinkRunner, settings: Settings) -> None:
        timeout = settings.buffer.flush_timeout
        await self._flusher.flush(timeout)  # into the old sink; rows that it cannot write go to the new one
        old = self._flusher.runner
        if settings.records.require_session:
            self._ingest.find_sessions = runner.find_sessions
        self._flusher.write_to(runner)
        await self._reads.read_from(runner)
        await old.close(timeout)  # abandons a call that hangs: the rows it may still commit also go to the new sink
        logger.info("sink changed", sink=settings.sink)


def _open_dead_letters(dead_letters: DeadLetters, state: dict[str, Any], *, cut: bool) -> dict[Kind, int]:
    """The rows set aside so far. ``cut``: rows that the sink rejected after the cursor was written go, for they are in
    the journal still, and will be rejected again.
    """
    known = state.get("rejected_bytes")
    if known is None:
        return dict.fromkeys(KINDS, 0)
    try:
        new = dead_letters.set_aside_past(known)
        surplus = dead_letters.cut(known) if cut else 0
    except OSError as exc:
        raise StartError(f"{dead_letters.path} cannot be written: {exc.strerror}") from None
    if surplus:
        logger.info("rejected rows that will be tried again cut off", file=str(dead_letters.path), bytes=surplus)
    before = state.get("set_aside", {})
    return {kind: int(before.get(kind, 0)) + new[kind] for kind in KINDS}
