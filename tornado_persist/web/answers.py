"""Parts of answers that tell how the service is: several handlers give them, all from one snapshot."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import cast

from tornado_persist import __version__
from tornado_persist.pipeline.health import HealthSnapshot
from tornado_persist.records.times import stamp
from tornado_persist.telemetry.clients import ClientDrops
from tornado_persist.telemetry.metrics import Totals
from tornado_persist.telemetry.refusals import Refusal, Refusals, printable
from tornado_persist.web import schemas


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


def shown(at: datetime | None) -> str | None:
    """A time as in answers: ISO 8601 with microseconds and ``+00:00``."""
    return stamp(at) if at else None


def accounting(totals: Totals, pending: int) -> schemas.Accounting:
    """Rows of both kinds by where they are, ``pending`` of them on their way: the first term is the others' sum."""
    return {
        "accepted": sum(totals.accepted.values()) + sum(totals.set_aside.values()),
        "written": sum(totals.written.values()),
        "merged": sum(totals.merged.values()),
        "rejected": sum(totals.rejected.values()) + sum(totals.set_aside.values()),
        "pending": pending,
    }


def refused(refusals: Refusals) -> schemas.Refused:
    """Refused batches, and the last of them."""
    rows = sum(refusals.rows.values())
    return {"batches": refusals.batches, "rows": rows, "last": _last(refusals.last) if refusals.last else None}


def client_drops(drops: ClientDrops) -> schemas.ClientDrops:
    """Rows that clients dropped before they got here, and what was heard of last."""
    last = drops.last
    told: schemas.LastClientDrop | None = None
    if last is not None:
        told = {
            "at": stamp(last.at),
            "rows": last.rows,
            "client": last.client,
            "user_agent": printable(last.user_agent),
        }
    return {"rows": drops.rows, "last": told}


def _last(refusal: Refusal) -> schemas.LastRefused:
    return {
        "at": stamp(refusal.at),
        "kind": refusal.kind,
        "status": refusal.status,
        "reason": refusal.reason,
        "detail": printable(refusal.detail),
        "client": refusal.client,
        "token": refusal.token,
        "user_agent": printable(refusal.user_agent),
        "request_id": refusal.request_id,
    }
