"""``GET /metrics``: a scrape reads what the parts know at that moment, and what ``telemetry.metrics`` counts."""

from __future__ import annotations

import asyncio
import math
import platform
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from tornado_persist import __version__
from tornado_persist.pipeline.health import Health, Waiting
from tornado_persist.records.models import KINDS, Kind
from tornado_persist.telemetry import metrics as telemetry
from tornado_persist.web.base import GetHandler


class Exporter:
    """What ``GET /metrics`` shows; docs/metrics.rst explains each metric."""

    def __init__(self, health: Health, metrics: telemetry.Metrics) -> None:
        self._health = health
        self._metrics = metrics
        self._interpreter = CollectorRegistry()
        ProcessCollector(registry=self._interpreter)
        GCCollector(registry=self._interpreter)

    async def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body, in the format that the ``Accept`` header asks for. The sink is not asked."""
        # Rows at one moment, so that they add up. The rest, some of it read from /proc, in a worker thread.
        families = list(self.families())
        return await asyncio.to_thread(self._encode, families, accept)

    def _encode(self, families: list[Metric], accept: str) -> tuple[str, bytes]:
        registry = CollectorRegistry()
        for collector in (_Given(families), self._metrics.registry, self._interpreter):
            registry.register(collector)
        # prometheus_client's own choice fails on malformed versions in the header.
        encode: Callable[[Collector], bytes]
        encode, content_type = generate_latest, CONTENT_TYPE_LATEST
        if "application/openmetrics-text" in accept:
            encode, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        return content_type, encode(registry)

    def families(self) -> Iterator[Metric]:
        """The metrics that are read from the parts, as they are now; the others are in ``Metrics.registry``."""
        snapshot = self._health.snapshot()
        yield InfoMetricFamily(
            "persistd_build",
            "Version of the service and of its Python.",
            {"version": __version__, "python": platform.python_version()},
        )
        # Not called `instance`: that is the target's address, to Prometheus.
        yield InfoMetricFamily("persistd_instance", "Name of this instance.", {"name": snapshot.instance.name})
        yield from self._rows(snapshot.waiting)
        yield _gauge("persistd_accepting", "1 while batches are accepted, 0 while they get 503.", snapshot.accepting)
        yield from self._refused()
        backoff = "Seconds until a failed flush is tried again, else 0."
        yield _gauge("persistd_flush_backoff_seconds", backoff, snapshot.retry_in)
        yield from self._of_the_journal(snapshot.waiting)
        yield _gauge(
            "persistd_rejected_open_rows", "Rejected rows neither retried nor dropped.", _known(snapshot.open_rows)
        )
        yield _gauge("persistd_disk_free_bytes", "Bytes free on the disk of data_dir.", _known(snapshot.disk_free))
        yield from self._deleted()
        up = GaugeMetricFamily("persistd_sink_up", "1 while the sink answers, else 0.", labels=["sink"])
        up.add_metric([snapshot.sink.name], snapshot.sink.up)
        yield up
        skew = math.nan if snapshot.sink.clock_skew is None else snapshot.sink.clock_skew
        yield _gauge("persistd_clock_skew_seconds", "Seconds that this machine's clock is ahead of the sink's.", skew)

    def _rows(self, waiting: Waiting) -> Iterator[Metric]:
        metrics, pending = self._metrics, {"session": waiting.sessions, "task": waiting.tasks}
        yield _by_kind("persistd_rows_accepted", "Rows accepted, durable in the journal.", metrics.accepted)
        yield _by_kind(
            "persistd_rows_recovered", "Rows found in the journal at the start.", metrics.recovered.__getitem__
        )
        yield _by_kind("persistd_rows_written", "Rows that the sink has committed.", metrics.written)
        yield _by_kind("persistd_rows_merged", "Rows that went into one of their key that waited.", metrics.merged)
        yield _by_kind("persistd_rows_rejected", "Rows that were rejected, now in rejected.jsonl.", metrics.rejected)
        yield _by_kind("persistd_rows_lost", "Accepted rows lost to damage of the journal.", metrics.lost.__getitem__)
        rows = GaugeMetricFamily("persistd_rows_pending", "Accepted rows that wait for the sink.", labels=["kind"])
        accounting = GaugeMetricFamily(
            "persistd_accounting_rows",
            "Rows since the data directory was made, by where they are; may go down after a crash.",
            labels=["kind", "state"],
        )
        totals = metrics.totals
        for kind in KINDS:
            rows.add_metric([kind], pending[kind])
            accounting.add_metric([kind, "accepted"], totals.accepted[kind] + totals.set_aside[kind])
            accounting.add_metric([kind, "written"], totals.written[kind])
            accounting.add_metric([kind, "merged"], totals.merged[kind])
            accounting.add_metric([kind, "rejected"], totals.rejected[kind] + totals.set_aside[kind])
            accounting.add_metric([kind, "pending"], pending[kind])
        yield rows
        yield accounting
        yield _gauge("persistd_buffer_rows", "Rows held in memory.", waiting.in_memory)
        yield _gauge("persistd_buffer_max_rows", "Rows that may be held in memory.", waiting.max_rows)
        yield _gauge("persistd_buffer_bytes", "Bytes of the records whose rows are in memory.", waiting.memory_bytes)
        yield _gauge("persistd_buffer_max_bytes", "Bytes that these may have.", waiting.memory_max_bytes)
        yield _gauge("persistd_buffer_capacity_rows", "Rows that start a flush.", waiting.capacity)

    def _refused(self) -> Iterator[Metric]:
        refusals = self._metrics.refusals
        text = "Refused batches, by the kind of their rows, the status of the answer, and why."
        batches = CounterMetricFamily("persistd_batches_refused", text, labels=["kind", "status", "reason"])
        for (kind, status, reason), count in refusals.by_reason.items():
            batches.add_metric([kind, str(status), reason], count)
        yield batches
        text = "Requests denied because of who asks, by why."
        denied = CounterMetricFamily("persistd_auth_failures", text, labels=["reason"])
        for reason, count in self._metrics.denials.by_reason.items():
            denied.add_metric([reason], count)
        yield denied
        text = "Rows of refused batches whose rows could be counted."
        yield _by_kind("persistd_rows_refused", text, refusals.rows.__getitem__)
        text = "Rows that clients say they dropped before they got here."
        yield CounterMetricFamily("persistd_client_rows_dropped", text, value=self._metrics.client_drops.rows)
        text = "Rows of accepted batches that had fields which were dropped."
        yield _by_kind("persistd_unknown_fields", text, self._metrics.dropped.rows.__getitem__)

    def _deleted(self) -> Iterator[Metric]:
        deletions = self._metrics.deletions
        text = "Rows deleted from the sink: on request, by the retention, or by a cleanup."
        rows = CounterMetricFamily("persistd_rows_deleted", text, labels=["kind", "by"])
        for (by, kind), count in deletions.rows.items():
            rows.add_metric([kind, by], count)
        yield rows
        runs = CounterMetricFamily("persistd_retention_runs", "Runs of the retention, by result.", labels=["result"])
        for result, count in deletions.runs.items():
            runs.add_metric([result], count)
        yield runs

    def _of_the_journal(self, waiting: Waiting) -> Iterator[Metric]:
        records, age = waiting.journal_records, waiting.oldest_seconds
        yield _gauge("persistd_journal_bytes", "Bytes of the journal's files.", waiting.journal_bytes)
        yield _gauge("persistd_journal_max_bytes", "Bytes past which batches are refused.", waiting.journal_max_bytes)
        yield _gauge("persistd_journal_records", "Batches in the journal that are not released.", records)
        yield _gauge("persistd_journal_oldest_age_seconds", "Age of the oldest of these batches, else 0.", age)
        full_in = math.inf if waiting.journal_full_in is None else waiting.journal_full_in
        yield _gauge("persistd_journal_full_seconds", "Seconds until it is full at the present rate, or +Inf.", full_in)


class _Given(Collector):
    """Metrics that were collected before."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _known(value: int | None) -> float:
    return math.nan if value is None else value


def _by_kind(name: str, text: str, rows: Callable[[Kind], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=["kind"])
    for kind in KINDS:
        family.add_metric([kind], rows(kind))
    return family


class Metrics(GetHandler):
    """``GET /metrics``: what Prometheus scrapes. Never waits for the sink."""

    scope = "read"

    async def get(self) -> None:
        content_type, text = await self.application.prometheus.render(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.finish(text)
