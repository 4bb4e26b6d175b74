"""Times come out as one text, whichever way they go through."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tornado_persist.records import times
from tornado_persist.records.times import all_in_utc, in_utc, stamp

#: Any zone that ISO 8601 can say, to the minute.
zones: Any = st.none() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29), timezones=zones)
#: What comes out of a valid time when a character or two are changed.
near_misses = st.builds(
    lambda text, place, character: text[:place] + character + text[place + 1 :],
    moments.map(datetime.isoformat),
    st.integers(0, 32),
    st.sampled_from([*"0123456789-:.TZW+ \n٣３", ""]),
)


@given(moments, st.sampled_from(["auto", "minutes", "seconds", "milliseconds", "microseconds"]), st.sampled_from("T "))
def test_a_valid_time_is_the_same_moment_in_utc(moment: datetime, precision: str, separator: str) -> None:
    written = moment.isoformat(separator, precision)
    read = datetime.fromisoformat(written)
    expected = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
    assert in_utc(written) == stamp(expected)
    if moment.tzinfo is None:
        assert in_utc(written + "Z") == stamp(expected)


def test_texts_of_times_are_of_one_width_and_sort_as_the_times_do() -> None:
    texts = [in_utc(text) for text in ("1000-01-01 00:00", "2025-09-30T16:35:00", "2025-09-30T16:35:00.5Z")]
    assert [len(text) for text in texts] == [32, 32, 32]
    assert texts == sorted(texts)


@given(near_misses)
@example("2025-W01-1T10:00:00")
@example("20250930T163500.000")
@example("2025-09-30X16:35:00")
@example("2025-09-30T16:35:00.12345Z")
@example("2025-09-30T16:35:00.1+0200")
@example("2025-09-30T16:35:00.123456+01:00")
@example("0999-09-30T16:35:00")
@example("2025-02-29T16:35:00")
def test_the_quick_way_takes_nothing_that_the_slow_one_refuses(text: str) -> None:
    try:
        expected = times._convert(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            in_utc(text)
    else:
        assert in_utc(text) == expected


#: Columns of times as they come: all of one form, but for some.
columns = st.builds(
    lambda moments, precision, end, misses: [*(at.isoformat(timespec=precision) + end for at in moments), *misses],
    st.lists(st.datetimes(datetime(1000, 1, 3), datetime(9999, 12, 29)), min_size=7, max_size=20),
    st.sampled_from(["seconds", "microseconds"]),
    st.sampled_from(["", "Z", "+00:00", "+02:00"]),
    st.lists(near_misses, max_size=1),
)


@given(columns.flatmap(st.permutations))
@example(["2025-09-30T16:35:00"] * 9 + ["2025-09-30X16:35:00"])
@example(["2025-09-30T16:35:00"] * 9 + ["2025-W40-1T16:35:00"])
@example(["2025-09-30T16:35:00"] * 9 + ["2025-02-29T16:35:00"])
@example(["0999-09-30T16:35:00"] * 9)
@example(["2025-09-30T16:35:00.1"] * 4 + ["2025-09-30T16:35:00.12345"] * 4)
@example(["2025-09-30T16:35:00.123456+00:00"] * 9 + ["2025-09-30T16:35:00.123456+00:01"])
@example([])
def test_many_at_once_come_out_as_one_by_one(texts: list[str]) -> None:
    try:
        expected = [in_utc(text) for text in texts]
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            all_in_utc(texts)
    else:
        assert all_in_utc(texts) == expected
