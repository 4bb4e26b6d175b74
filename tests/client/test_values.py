"""Values as programs have them, and mistakes at the call."""

from __future__ import annotations

import enum
import json
import math
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from tests.rows import session, task
from tornado_persist.client import Client
from tornado_persist.client.testing import Recorder
from tornado_persist.client.values import FIELDS, KEYS, REQUIRED, to_json
from tornado_persist.records import models


class Status(enum.Enum):
    DONE = "completed"


class Level(enum.IntEnum):
    HIGH = 3


class TextStatus(enum.StrEnum):
    DONE = "completed"


class Index:
    def __index__(self) -> int:
        return 7


class Proxy:
    """Stands for another object, as Flask's proxies do."""

    def __init__(self, it: object) -> None:
        self._it = it

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._it)

    def __str__(self) -> str:
        return str(self._it)


class Nowhere(tzinfo):
    """A zone that has no offset: such a time is local, too."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    tzname = dst = utcoffset


@pytest.fixture
def shanghai(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time."""
    import time

    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("shanghai")
@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (datetime(2025, 9, 30, 16, 35), "2025-09-30T16:35:00+08:00"),
        (datetime(2025, 9, 30, 16, 35, tzinfo=UTC), "2025-09-30T16:35:00+00:00"),
        (datetime(2025, 9, 30, 16, 35, tzinfo=ZoneInfo("Europe/Paris")), "2025-09-30T16:35:00+02:00"),
        (datetime(2025, 9, 30, tzinfo=timezone(timedelta(hours=-3))), "2025-09-30T00:00:00-03:00"),
        (date(2025, 9, 30), "2025-09-30"),
        (datetime(2025, 9, 30, 16, 35, tzinfo=Nowhere()), "2025-09-30T16:35:00+08:00"),
        (datetime.min, "0001-01-01T00:00:00+00:00"),
        (pd.Timestamp("2025-09-30 16:35:00.123456789"), "2025-09-30T16:35:00.123456+08:00"),
        (pd.Timestamp("2025-09-30 16:35", tz="UTC"), "2025-09-30T16:35:00+00:00"),
        (np.datetime64("2025-09-30T16:35:00.5", "ns"), "2025-09-30T16:35:00.500000+08:00"),
        (pd.NaT, None),
        (np.datetime64("NaT"), None),
        (np.timedelta64("NaT"), None),
        (pd.NA, None),
        (math.nan, None),
        (math.inf, None),
        (np.float64("nan"), None),
        (Decimal("NaN"), None),
        (Decimal("0.95"), 0.95),
        (Decimal(5000), 5000),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        (Index(), 7),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (Status.DONE, "completed"),
        (TextStatus.DONE, "completed"),
        (Level.HIGH, 3),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/uploads/x.xlsx"), "/uploads/x.xlsx"),
        (timedelta(seconds=5), 5000),
        (pd.Timedelta("5s"), 5000),
        (np.timedelta64(5, "s"), 5000),
        (
            {"when": datetime(2025, 1, 1, tzinfo=UTC), 3: [Decimal(1), (2,)]},
            {"when": "2025-01-01T00:00:00+00:00", "3": [1, [2]]},
        ),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ],
)
def test_values_become_json(value: Any, sent: Any) -> None:
    became = to_json(value)
    assert became == sent
    assert type(became) is type(sent)
    assert json.loads(json.dumps(became, allow_nan=False)) == sent


def test_a_proxy_of_a_text_is_that_text() -> None:
    assert to_json({"x": Proxy("y")}) == {"x": "y"}
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        persist.task(**task(source_text=Proxy("Hello")))
    assert recorder.tasks["s1", "t1"]["source_text"] == "Hello"


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, {"a": object()}, {(1, 2): 3}])
def test_other_values_are_an_error_at_the_call(value: Any) -> None:
    with pytest.raises(TypeError):
        to_json(value)


def test_a_value_in_itself_is_an_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match="nested"):
        to_json(value)


def test_numbers_that_tables_hold_as_floats_are_integers_again() -> None:
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        persist.task(
            **{**task(), "session_id": 5, "task_id": 7.0, "row_index": 3.0, "duration_ms": timedelta(seconds=1)}
        )
    assert recorder.tasks["5", "7"].items() >= {"row_index": 3, "duration_ms": 1000}.items()
    assert type(recorder.tasks["5", "7"]["row_index"]) is int


@pytest.mark.parametrize("value", [10 ** (sys.get_int_max_str_digits() + 1), "\ud83d"], ids=["integer", "text"])
def test_a_row_that_has_no_json_costs_itself_alone(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        for name in ("s1", "s2", "s3"):
            persist.session(**session(name, metadata={"x": value if name == "s2" else 1}))
    assert recorder.sessions.keys() == {"s1", "s3"}
    assert persist.stats.dropped == {"invalid": 1}
    assert [record.exc_info for record in caplog.records] == [None], "a warning, and no traceback"


def test_a_row_is_taken_as_it_is_at_the_call() -> None:
    recorder = Recorder()
    names = {"a": [1]}
    with Client(transport=recorder) as persist:
        persist.session(**{**session("s1"), "metadata": names})
        names["a"].append(2)
    assert recorder.sessions["s1"]["metadata"] == {"a": [1]}


def test_a_misspelt_or_missing_field_is_a_type_error() -> None:
    with Client(transport=Recorder()) as persist:
        with pytest.raises(TypeError, match=r"task\(\) has no field 'statsu'; did you mean 'status'\?"):
            persist.task(**task(statsu="pending"))
        fields = task()
        del fields["status"], fields["batch_id"]
        with pytest.raises(TypeError, match=r"task\(\) lacks batch_id, status"):
            persist.task(**fields)
        with pytest.raises(TypeError, match=r"task_id: a value of type list is no id"):
            persist.task(**task(task_id=["t1"]))
        with pytest.raises(TypeError, match=r"a row is of type tuple, and must be a mapping"):
            persist.tasks([("t1", "pending")])
        with pytest.raises(TypeError, match=r"metadata: a value of type object cannot be sent"):
            persist.session(**session(metadata={"x": object()}))
        assert persist.stats.calls == 0


def test_the_fields_are_those_of_the_service() -> None:
    for kind in models.KINDS:
        assert FIELDS[kind] == models.FIELDS[kind].keys()
        assert REQUIRED[kind] == {name for name, declared in models.FIELDS[kind].items() if declared.required}
        assert KEYS[kind] == models.KEYS[kind]


# Tables


def test_a_data_frame() -> None:
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "Text": ["Hello", "World"],
            "target_text": ["你好", None],
            "confidence": [0.9, math.nan],
            "row_index": [1, 2],
            "start_time": pd.to_datetime(["2025-09-30T16:35:00Z", None]),
            "of no interest": [object(), object()],
        }
    )
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        constants: dict[str, Any] = {
            "session_id": "s1",
            "batch_id": "b1",
            "sheet_name": "S",
            "column_name": "Text",
            "status": "pending",
        }
        assert persist.tasks(frame, columns={"id": "task_id", "Text": "source_text"}, **constants) == 2
    first, second = recorder.tasks["s1", "1"], recorder.tasks["s1", "2"]
    assert first["source_text"] == "Hello"
    assert (first["confidence"], second["confidence"]) == (0.9, None)
    assert (first["start_time"], second["start_time"]) == ("2025-09-30T16:35:00+00:00", None)
    assert (first["target_text"], second["target_text"]) == ("你好", None)
    assert "of no interest" not in first


def test_an_iterable_of_mappings() -> None:
    recorder = Recorder()
    with Client(transport=recorder) as persist:
        assert persist.sessions([session("s1"), session("s2")], status="failed") == 2
    assert {row["status"] for row in recorder.sessions.values()} == {"failed"}


def test_a_table_that_lacks_a_field_or_column_is_an_error_before_its_first_row() -> None:
    frame = pd.DataFrame({"session_id": ["s1"], "x": [1]})
    with Client(transport=Recorder()) as persist:
        with pytest.raises(TypeError, match="lacks"):
            persist.sessions(frame)
        with pytest.raises(TypeError, match="has no field 'nmae'"):
            persist.sessions(frame, columns={"x": "nmae"})
        with pytest.raises(TypeError, match="no column y"):
            persist.sessions(frame, columns={"y": "filename"})
        with pytest.raises(TypeError, match="same field"):
            persist.sessions(frame, columns={"x": "session_id"})
        assert persist.stats.calls == 0


def test_a_table_larger_than_the_queue_waits_for_room_if_told_to() -> None:
    rows = [task(str(number)) for number in range(50)]
    with Client(transport=Recorder(), max_rows=10, max_batch=5, interval=60) as persist:
        assert persist.tasks(rows, wait=20) == 50
        assert persist.flush()
        assert (persist.stats.sent, persist.stats.dropped) == (50, {})
