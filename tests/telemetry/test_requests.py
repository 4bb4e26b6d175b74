"""Answers, counted by what cannot grow without end."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.rig import answers
from tornado_persist.telemetry.metrics import Metrics, Reading

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_answers_are_counted_by_handler_method_and_status_and_timed_by_the_first_two() -> None:
    metrics = Metrics(NOON)
    metrics.answered("TasksBatch", "POST", 200, 0.0004)
    metrics.answered("TasksBatch", "POST", 200, 0.02)
    metrics.answered("TasksBatch", "POST", 422, 0.0003)
    metrics.answered("Stats", "GET", 200, 0.001)
    assert answers(metrics) == {
        ("TasksBatch", "POST", 200): 2,
        ("TasksBatch", "POST", 422): 1,
        ("Stats", "GET", 200): 1,
    }
    found = [
        Reading.of(metrics.request_seconds, handlers).count
        for handlers in (["TasksBatch"], ["Stats"], ["TasksBatch", "SessionsBatch"], ["Flush"], [])
    ]
    assert found == [3, 1, 3, 0, 4]


def test_made_up_methods_are_one_series() -> None:
    metrics = Metrics(NOON)
    for number in range(1000):
        metrics.answered("NotFound", f"METHOD{number}", 405, 0.001)
    assert answers(metrics) == {("NotFound", "other", 405): 1000}


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Metrics(NOON), Metrics(NOON)
    one.answered("Root", "GET", 200, 0.001)
    assert answers(other) == {}
