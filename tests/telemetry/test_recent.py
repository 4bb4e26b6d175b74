"""What is remembered of the last trouble."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tornado_persist.telemetry.metrics import KEPT, Incidents

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_what_repeats_itself_stays_one_and_comes_first() -> None:
    incidents = Incidents()
    incidents.add("flush", "connection refused", NOON, code="08006")
    incidents.add("rejected", "out of range", NOON + timedelta(seconds=1), count=3)
    incidents.add("flush", "connection refused", NOON + timedelta(seconds=2), code="08006")
    first, second = incidents
    assert (first.message, first.count, first.first, first.last) == (
        "connection refused",
        2,
        NOON,
        NOON + timedelta(seconds=2),
    )
    assert (second.message, second.count) == ("out of range", 3)


def test_the_oldest_go_when_there_are_too_many() -> None:
    incidents = Incidents()
    for number in range(KEPT + 5):
        incidents.add("flush", f"error {number}", NOON)
    assert len(incidents) == KEPT
    assert [incident.message for incident in incidents][-1] == "error 5"
