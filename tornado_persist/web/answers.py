"""Parts of answers that tell how the service is: several handlers give them, all from one snapshot."""

from __future__ import annotations

from dataclasses import asdict
from typing import cast

from tornado_persist import __version__
from tornado_persist.pipeline.health import HealthSnapshot
from tornado_persist.records.times import stamp
from tornado_persist.web import schemas
from tornado_persist.web.base import shown


def instance(snapshot: HealthSnapshot) -> schemas.Instance:
    """Which service this is."""
    it = snapshot.instance
    return {
        "name": it.name,
        "url": it.url,
        "host": it.host,
        "pid": it.pid,
        "data_dir": str(it.data_dir),
        "version": __version__,
        "started": stamp(it.started),
        "uptime_seconds": round(snapshot.uptime, 1),
    }


def sink(snapshot: HealthSnapshot) -> schemas.Sink:
    """The sink as it was last seen."""
    it = snapshot.sink
    return {
        "name": it.name,
        "address": it.address,
        "description": it.description,
        "up": it.up,
        "since": shown(it.since),
        "error": it.error,
        "clock_skew_seconds": it.clock_skew,
        "clock_problem": it.clock_problem,
        "retry_in": round(snapshot.retry_in, 1),
    }


def waiting(snapshot: HealthSnapshot) -> schemas.Pending:
    """What waits, and its limits."""
    it = snapshot.waiting
    return {
        "rows": it.rows,
        "in_memory": it.in_memory,
        "max_rows": it.max_rows,
        "memory_bytes": it.memory_bytes,
        "memory_max_bytes": it.memory_max_bytes,
        "capacity": it.capacity,
        "journal_bytes": it.journal_bytes,
        "journal_max_bytes": it.journal_max_bytes,
        "journal_records": it.journal_records,
        "journal_full_in_seconds": rounded(it.journal_full_in),
        "oldest_seconds": round(it.oldest_seconds, 3),
        "next_flush": stamp(it.next_flush),
        "flush_seconds": it.flush_interval,
    }


def rounded(seconds: float | None) -> float | None:
    """To a tenth of a second."""
    return None if seconds is None else round(seconds, 1)


def open_rows(snapshot: HealthSnapshot) -> schemas.OpenRows:
    """How many rejected rows are open, and the oldest of them."""
    first = [cast(schemas.OpenRow, asdict(row)) for row in snapshot.first_open]
    return {"rows": snapshot.open_rows, "first": first}


def reloads(snapshot: HealthSnapshot) -> schemas.Reloads:
    """How reloads of the configuration went."""
    return cast(schemas.Reloads, asdict(snapshot.reloads))
