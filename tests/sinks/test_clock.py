"""The clock beside the database's: what is measured, and when it is worth a word."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tornado_persist.sinks import registry
from tornado_persist.sinks.base import MOST_SKEW, Skew
from tornado_persist.sinks.clock import OLD, REPEAT, ClockWatch


@pytest.mark.parametrize("name", ["postgres", "mysql"])
def test_a_server_on_this_machine_has_its_clock(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = registry.find(name)
    sink = kind(kind.Settings.model_validate({"url": request.getfixturevalue(f"{name}_url")}), tmp_path)
    sink.open()
    try:
        skew = sink.clock_skew()
        assert skew is not None
        assert abs(skew.seconds) <= skew.error + 0.005
        real = time.time
        monkeypatch.setattr("tornado_persist.sinks.sql.time.time", lambda: real() - 7)
        skew = sink.clock_skew()
        assert skew is not None
        assert abs(skew.seconds + 7) <= skew.error + 0.005
        assert skew.problem == "this machine's clock is 7.0 s behind the database's"
    finally:
        sink.close()


@pytest.mark.parametrize("name", ["sqlite", "jsonl"])
def test_a_file_has_none(name: str, tmp_path: Path) -> None:
    kind = registry.find(name)
    sink = kind(kind.Settings(), tmp_path)
    sink.open()
    assert sink.clock_skew() is None
    sink.close()


def test_a_slow_answer_is_no_problem_of_the_clock() -> None:
    assert Skew(MOST_SKEW, 0.0).problem == ""
    assert Skew(3.0, 2.5).problem == ""
    assert Skew(3.0, 1.5).problem == "this machine's clock is 3.0 s ahead of the database's"


def test_a_clock_that_is_off_is_said_once_an_hour_and_that_it_is_right_again_once() -> None:
    watch, off, right = ClockWatch(0), Skew(5, 0.01), Skew(0.1, 0.01)
    assert (watch.seconds, watch.problem) == (None, "")
    assert watch.note(right, 1) == ""
    assert watch.note(off, 2) == "off"
    assert watch.problem == off.problem
    assert watch.note(off, 3) == ""
    assert watch.note(None, 4) == "", "nobody knows"
    assert (watch.seconds, watch.problem) == (None, "")
    assert watch.note(off, 3 + REPEAT) == "off"
    assert watch.note(right, 4 + REPEAT) == "right"
    assert watch.note(right, 5 + REPEAT) == ""
    assert watch.note(off, 6 + REPEAT) == "off"


def test_a_measurement_becomes_old() -> None:
    watch = ClockWatch(0)
    assert not watch.is_due(OLD)
    assert watch.is_due(OLD + 1)
    watch.note(None, OLD + 1)
    assert not watch.is_due(OLD + 2), "also if it gave nothing"
