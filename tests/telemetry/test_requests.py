"""Answers, counted by what cannot grow without end."""

from __future__ import annotations

from tornado_persist.telemetry.metrics import Requests


def test_answers_are_counted_by_handler_method_and_status_and_timed_by_the_first_two() -> None:
    requests = Requests()
    requests.observe("TasksBatch", "POST", 200, 0.0004)
    requests.observe("TasksBatch", "POST", 200, 0.02)
    requests.observe("TasksBatch", "POST", 422, 0.0003)
    requests.observe("Stats", "GET", 200, 0.001)
    assert list(requests.counts()) == [
        ("TasksBatch", "POST", 200, 2),
        ("TasksBatch", "POST", 422, 1),
        ("Stats", "GET", 200, 1),
    ]
    assert [(handler, method, reading.count) for handler, method, reading in requests.seconds()] == [
        ("TasksBatch", "POST", 3),
        ("Stats", "GET", 1),
    ]
    assert requests.seconds_of("TasksBatch", "SessionsBatch").count == 3
    assert requests.seconds_of("Flush").count == 0


def test_made_up_methods_are_one_series() -> None:
    requests = Requests()
    for number in range(1000):
        requests.observe("NotFound", f"METHOD{number}", 405, 0.001)
    assert list(requests.counts()) == [("NotFound", "other", 405, 1000)]
