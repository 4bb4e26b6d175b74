"""Fixtures of the journal's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog.testing

from tests.journal.tools import Disk, Events
from tornado_persist.journal import writer


@pytest.fixture(autouse=True)
def events() -> Iterator[Events]:
    """The log; a warning that the test does not take out of it fails the test."""
    with structlog.testing.capture_logs() as captured:
        found = Events(captured)
        yield found
        assert found.rest() == []


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The system calls of the journal, to be counted, held back and made to fail."""
    return Disk(monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry failures at once, so that no test waits a second."""
    monkeypatch.setattr(writer, "TRY_EVERY", 0.005)
