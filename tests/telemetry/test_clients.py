"""What clients say they have dropped is added up once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import structlog
from structlog.testing import capture_logs

from tornado_persist.telemetry import clients
from tornado_persist.telemetry.clients import ClientDrops
from tornado_persist.telemetry.refusals import LINES_A_SECOND

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def say(drops: ClientDrops, header: str) -> int:
    """The rows after this header."""
    drops.report(header, NOW, "10.0.0.1", "it")
    return drops.rows


def test_repeated_and_late_requests_add_nothing() -> None:
    drops = ClientDrops()
    assert say(drops, "5; since=0; client=a") == 5
    assert say(drops, "5; since=0; client=a") == 5
    assert say(drops, "7; since=5; client=a") == 7
    assert say(drops, "5; since=0; client=a") == 7
    assert say(drops, "3; since=0; client=b") == 10
    assert drops.last is not None
    assert (drops.last.rows, drops.last.client) == (3, "10.0.0.1")


def test_a_restart_does_not_count_what_was_confirmed() -> None:
    assert say(ClientDrops(), "9; since=7; client=a") == 2


def test_no_more_clients_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLIENTS", 2)
    drops = ClientDrops()
    for name in "abc":
        say(drops, f"1; since=0; client={name}")
    assert len(drops._known) == 2
    assert say(drops, "1; since=1; client=a") == 3


def test_clients_that_drop_rows_cannot_fill_the_log() -> None:
    structlog.reset_defaults()
    drops = ClientDrops(clock=lambda: 100.0)
    with capture_logs() as lines:
        for number in range(100):
            say(drops, f"1; since=0; client=c{number}")
    assert (drops.rows, len(lines)) == (100, LINES_A_SECOND)


@pytest.mark.parametrize(
    "header", ["", "5", "-1; since=0; client=a", "5; since=0; client=", "9" * 40, "5; since=0; client=a b"]
)
def test_anything_else_says_nothing(header: str) -> None:
    drops = ClientDrops()
    assert say(drops, header) == 0
    assert drops.last is None
