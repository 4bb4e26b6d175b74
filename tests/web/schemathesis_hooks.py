"""What schemathesis has to be told: how texts of our own format are made."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tornado_persist.records.models import Session, Task

_OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
schemathesis.openapi.format(
    "iso8601",
    st.one_of(
        st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29)),
        st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC) | _OFFSETS),
    ).map(datetime.isoformat),
)

_TYPED = (Session.__annotations__.keys() | Task.__annotations__.keys()) - {"game_info", "metadata"}
_WHOLE = {
    *("total_tasks", "completed_tasks", "failed_tasks", "processing_tasks"),
    *("row_index", "retry_count", "duration_ms"),
}


def _storable(value: Any) -> Any:
    """Free JSON as the description has it in words alone: no NUL characters, and numbers in the range of a double."""
    match value:
        case str():
            return value.replace("\0", "")
        case dict():
            return {_storable(key): _storable(inner) for key, inner in value.items()}
        case list():
            return [_storable(inner) for inner in value]
        case int() if abs(value) > sys.float_info.max:
            return 0
        case _:
            return value


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Keep free JSON storable, and write whole numbers without a decimal point.

    To a schema 1.0 is an integer, to the service it is none.
    """
    if isinstance(body, dict):
        for name in body.keys() - {"sessions", "tasks"}:
            body[name] = _storable(body[name])
        for rows in body.values():
            for row in rows if isinstance(rows, list) else ():
                for name in row if isinstance(row, dict) else ():
                    if isinstance(row[name], float) and row[name].is_integer() and name in _WHOLE:
                        row[name] = int(row[name])
                    elif name not in _TYPED:
                        row[name] = _storable(row[name])
    return body


@schemathesis.hook
def map_query(context: schemathesis.HookContext, query: Any) -> Any:
    """Leave out ``after``: what it takes comes from an answer."""
    return {name: value for name, value in query.items() if name != "after"} if isinstance(query, dict) else query


@schemathesis.hook
def map_headers(context: schemathesis.HookContext, headers: Any) -> Any:
    """The description says in words alone how far ahead a time may be, and that X-Persist-At needs several writers."""
    if headers and "X-Persist-At" in headers:
        headers = {name: value for name, value in headers.items() if name != "X-Persist-At"}
    if headers and "X-Persist-After" in headers:
        return {**headers, "X-Persist-After": "2025-01-01T00:00:00Z"}
    return headers
