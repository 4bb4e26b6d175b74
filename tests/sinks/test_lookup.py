"""``find_updated``: each SQL sink tells when a row was last updated, as it was given."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tornado_persist.records.models import Batch
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import Sink
from tornado_persist.testing import MemorySink, session, task

FIRST = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql"])
def test_it_tells_the_last_update_of_the_rows_that_are_there(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sink_class = registry.find(name)
    given = {} if name == "sqlite" else {"url": request.getfixturevalue(f"{name}_url")}
    sink: Sink[Any] = sink_class(sink_class.Settings.model_validate(given), tmp_path)
    with closing(sink):
        sink.open()
        sink.write(Batch([session("s", at=FIRST)], [task("a", at=FIRST), task("A", at=FIRST)]))
        sink.write(Batch([], [task("a", at=LATER)]))
        assert sink.find_updated("task", ["a", "A", "none"]) == {"a": LATER, "A": FIRST}
        assert sink.find_updated("session", [*(f"s{n}" for n in range(1200)), "s"]) == {"s": FIRST}
        assert sink.find_updated("session", []) == {}


def test_a_sink_that_cannot_says_so() -> None:
    with pytest.raises(NotImplementedError, match="cannot look rows up"):
        Sink.find_updated(MemorySink(), "task", ["a"])
