"""Fixtures of the journal's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog.testing

from tests.journal.tools import Disk, Events
from tornado_persist.journal import writer


@pytest.fixture(autouse=True)
def events() -> Iterator[Events]:
    """What is logged; any warning that the test has not taken out of it fails the test."""
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
    """What failed is tried again at once, so that no test waits for the second."""
    monkeypatch.setattr(writer, "TRY_EVERY", 0.005)
