"""Calls of a sink that do not always go well."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any, NoReturn

from tornado_persist.errors import SinkConflict, SinkError
from tornado_persist.records.models import Batch


def find(sink: Any, session_ids: Collection[str]) -> set[str]:
    """Those that the sink finds; the test is skipped if it cannot look."""
    try:
        found: set[str] = sink.find_sessions(session_ids)
    except NotImplementedError as exc:
        skip(str(exc))
    return found


def skip(reason: str) -> NoReturn:
    """End the test, which does not concern this sink."""
    import pytest  # only where there is a test, so that the sinks beside this serve without it

    pytest.skip(reason)


def write_through(sink: Any, batch: Batch) -> None:
    """Write, whatever other writers stand in the way."""
    for _ in range(100):
        with contextlib.suppress(SinkConflict):
            sink.write(batch)
            return
    raise AssertionError("a hundred conflicts, one after the other")


def failed_write(sink: Any, batch: Batch) -> SinkError:
    """What a write raises that has to fail."""
    try:
        sink.write(batch)
    except SinkError as exc:
        return exc
    raise AssertionError("the write went through; see SinkContract.fault")
