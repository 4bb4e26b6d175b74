"""The counters' arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tornado_persist.errors import SinkUnavailable
from tornado_persist.telemetry.metrics import Metrics, Totals

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_before_the_first_flush_there_is_no_time_and_no_mean() -> None:
    metrics = Metrics(NOON)
    assert metrics.last_flush is None
    assert (metrics.average_flush_ms(), metrics.average_batch_size(), metrics.flush_count_today(NOON)) == (0, 0, 0)


def test_todays_count_begins_again_with_the_utc_day() -> None:
    metrics = Metrics(NOON)
    metrics.flushed(0.5, NOON, 500)
    metrics.flushed(0.7, NOON + timedelta(hours=11), 500)
    assert metrics.flush_count_today(NOON + timedelta(hours=11, minutes=59)) == 2
    assert metrics.flush_count_today(NOON + timedelta(hours=12)) == 0
    metrics.flushed(0.6, NOON + timedelta(hours=13), 500)
    assert metrics.flush_count_today(NOON + timedelta(hours=13)) == 1
    assert metrics.flush_count == 3
    assert metrics.last_flush == NOON + timedelta(hours=13)
    assert metrics.average_flush_ms() == 600


def test_the_mean_batch_is_rows_written_by_flushes() -> None:
    metrics = Metrics(NOON)
    metrics.resume(Totals(written={"session": 5, "task": 100}))
    metrics.totals.written["session"] += 10
    metrics.totals.written["task"] += 991
    metrics.flushed(1, NOON, 500)
    metrics.flushed(1, NOON, 500)
    assert metrics.average_batch_size() == 500


def test_the_settled_totals_leave_nothing_pending_and_come_back_as_they_were() -> None:
    totals = Totals(
        accepted={"session": 5, "task": 100},
        written={"session": 2, "task": 40},
        merged={"session": 3, "task": 50},
        rejected={"session": 0, "task": 1},
    )
    kept = totals.at_checkpoint({"session": 5, "task": 90})
    assert kept["merged"] == {"session": 3, "task": 49}, "what is pending may hold merged rows that are not settled"
    assert Totals.of(kept) == Totals(**kept)
    assert Totals.of({}) == Totals()


def test_what_is_counted_since_the_start_leaves_out_what_the_last_process_accepted() -> None:
    metrics = Metrics(NOON)
    metrics.resume(Totals(accepted={"session": 0, "task": 100}, written={"session": 0, "task": 100}))
    metrics.recover("task", 7)
    assert metrics.totals.accepted["task"] == 107
    assert metrics.accepted("task") == 0, "they were counted when they came, by the last process"
    metrics.totals.accepted["task"] += 5
    assert metrics.accepted("task") == 5


def test_rows_that_are_lost_never_make_a_counter_go_down() -> None:
    metrics = Metrics(NOON)
    metrics.totals.accepted["task"] += 5
    metrics.lose("task", 2, NOON)
    assert (metrics.totals.accepted["task"], metrics.accepted("task"), metrics.lost["task"]) == (3, 5, 2)
    assert [incident.count for incident in metrics.incidents] == [2]


def test_a_failed_flush_is_counted_by_its_errors_class_and_remembered() -> None:
    metrics = Metrics(NOON)
    metrics.failed(SinkUnavailable("connection refused"), NOON, code="08006")
    found = {
        error: metrics.registry.get_sample_value("persistd_flush_failures_total", {"error": error})
        for error in ("SinkUnavailable", "SinkConflict", "FlushFailed")
    }
    assert found == {"SinkUnavailable": 1, "SinkConflict": 0, "FlushFailed": 0}
    assert [(incident.message, incident.code) for incident in metrics.incidents] == [("connection refused", "08006")]
