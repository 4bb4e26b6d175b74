"""What schemathesis has to be told: how texts of our own format are made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import schemathesis
from hypothesis import strategies as st

_OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
schemathesis.openapi.format(
    "iso8601",
    st.one_of(
        st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29)),
        st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC) | _OFFSETS),
    ).map(datetime.isoformat),
)

_WHOLE = {
    *("total_tasks", "completed_tasks", "failed_tasks", "processing_tasks"),
    *("row_index", "retry_count", "duration_ms"),
}


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Write whole numbers without a decimal point: to a schema 1.0 is an integer, to the service it is none."""
    if isinstance(body, dict):
        for rows in body.values():
            for row in rows if isinstance(rows, list) else ():
                for name in _WHOLE & row.keys() if isinstance(row, dict) else ():
                    if isinstance(row[name], float) and row[name].is_integer():
                        row[name] = int(row[name])
    return body
