"""What is old enough goes; a clock that has leapt ahead deletes nothing for a day."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.rig import Rig, rig
from tornado_persist.errors import ClockInDoubt, RowsWait
from tornado_persist.pipeline import removal
from tornado_persist.pipeline.retention import Ages, ClockState
from tornado_persist.sinks.base import Removed
from tornado_persist.testing import FlakySink

DAY = timedelta(days=1)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AGES = Ages(completed=86_400, failed=5 * 86_400, orphans=86_400)


def test_a_clock_is_in_doubt_for_a_day_after_it_has_leapt() -> None:
    state = ClockState(NOW).look(NOW + DAY, DAY)
    assert state == ClockState(NOW + DAY), "as far ahead as the time that went by"
    leapt = state.look(NOW + 400 * DAY, timedelta(hours=1))
    assert (leapt.doubted, leapt.leapt) == (NOW + 400 * DAY, True)
    later = leapt.look(NOW + 400.9 * DAY, 0.9 * DAY)
    assert later.doubted == leapt.doubted
    assert later.look(NOW + 401.1 * DAY, 0.2 * DAY).doubted is None, "it has stayed so"
    assert later.look(NOW + 2 * DAY, timedelta(hours=1)).doubted is None, "it was set back"
    again = later.look(NOW + 800 * DAY, timedelta(hours=1))
    assert again.doubted == NOW + 800 * DAY


def test_a_clock_of_which_nothing_is_known_is_in_doubt() -> None:
    state = ClockState().look(NOW, timedelta())
    assert (state.doubted, state.leapt) == (NOW, False)
    assert state.look(NOW + DAY, DAY).doubted is None


@pytest.mark.gen_test
@pytest.mark.parametrize("time", ["2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00", "soon", 5])
async def test_a_file_that_somebody_has_edited_stops_no_run(tmp_path: Path, time: object) -> None:
    (tmp_path / "retention.json").write_text(json.dumps({"seen": time, "doubted": time, "leapt": False}))
    async with rig(tmp_path) as it:
        assert (await it.retention.clean(AGES, NOW, trust_clock=True))["completed"].sessions == 0


async def fill(it: Rig) -> None:
    """Sessions of each status, with a task; one without its session."""
    for status in ("completed", "failed", "processing"):
        await it.add(status, kind="session", status=status)
        await it.add("t", session_id=status)
    await it.add("t", session_id="none")


def sessions(it: Rig) -> tuple[list[str], list[str]]:
    """The sessions in the sink, and those of its tasks."""
    return it.stored("session"), [key[0] for key in it.sink.stored["task"]]


@pytest.mark.gen_test
async def test_only_finished_sessions_and_orphans_that_are_old_enough_go(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        now = datetime.now(UTC)
        assert (await it.retention.clean(AGES, now + DAY / 2))["completed"].nothing
        would = await it.retention.clean(AGES, now + 1.1 * DAY, dry_run=True)
        assert {name: (part.sessions, part.tasks) for name, part in would.items()} == {
            "completed": (1, 1),
            "failed": (0, 0),
            "orphans": (0, 1),
        }
        assert sessions(it)[0] == ["completed", "failed", "processing"], "a dry run deletes nothing"
        await it.retention.clean(AGES, now + 1.2 * DAY)
        assert sessions(it) == (["failed", "processing"], ["failed", "processing"])
        await it.retention.clean(AGES, now + 100 * DAY, trust_clock=True)
        assert sessions(it) == (["processing"], ["processing"])
        rows = it.metrics.deletions.rows
        assert (rows["cleanup", "session"], rows["cleanup", "task"]) == (2, 3)


@pytest.mark.gen_test
async def test_a_session_that_gets_rows_meanwhile_is_left_out(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        flush = it.flusher.flush

        async def then_another(timeout: float) -> object:
            flushed = await flush(timeout)
            await it.add("t", session_id="completed")
            return flushed

        it.flusher.flush = then_another  # type: ignore[method-assign,assignment]
        cleaned = await it.retention.clean(AGES, datetime.now(UTC) + 10 * DAY, trust_clock=True)
        assert [(part.sessions, part.waiting) for part in (cleaned["completed"], cleaned["failed"])] == [(0, 1), (1, 0)]
        assert sessions(it) == (["completed", "processing"], ["completed", "processing"])


@pytest.mark.gen_test
async def test_a_session_with_a_newer_task_stays_whole(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        await it.flusher.flush(5)
        old = (datetime.now(UTC) - 10 * DAY).isoformat(timespec="microseconds")
        it.sink.stored["session"]["completed",]["updated_at"] = old
        cleaned = await it.retention.clean(Ages(completed=86_400), datetime.now(UTC))
        assert cleaned["completed"].nothing
        it.sink.stored["task"]["completed", "t"]["updated_at"] = old
        cleaned = await it.retention.clean(Ages(completed=86_400), datetime.now(UTC))
        assert (cleaned["completed"].sessions, cleaned["completed"].tasks) == (1, 1)


@pytest.mark.gen_test
async def test_a_leap_of_the_clock_deletes_nothing_on_its_own_and_is_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        it.retention.ages = Ages(*[10 * 86_400.0] * 3)
        now = datetime.now(UTC)
        with capture_logs() as logs:
            await it.retention.run_once(now)  # nothing is known of the clock
            await it.retention.run_once(now + DAY)
            await it.retention.run_once(now + 400 * DAY)
        waits = [line for line in logs if line["event"] == "retention waits"]
        assert ["nothing is known of it yet" in line["reason"] for line in waits] == [True, False]
        assert "more than a day ahead" in waits[1]["reason"]
        deletions = it.metrics.deletions
        assert (deletions.runs, "more than a day ahead" in deletions.problem) == (
            {"done": 1, "failed": 0, "waited": 2},
            True,
        )
        assert len(sessions(it)[0]) == 3
        with pytest.raises(ClockInDoubt, match="more than a day ahead"):
            await it.retention.clean(it.retention.ages, now + 400 * DAY)
        dry = await it.retention.clean(it.retention.ages, now + 400 * DAY, dry_run=True)
        assert (dry["completed"].sessions, len(sessions(it)[0])) == (1, 3)
        assert json.loads((tmp_path / "retention.json").read_text())["leapt"] is True
        await it.retention.run_once(now + 401 * DAY)
        assert sessions(it) == (["processing"], ["processing"])
        assert deletions.rows["retention", "session"] == 2


@pytest.mark.gen_test
async def test_other_ages_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees too much go turns it off by a reload."""
    monkeypatch.setattr(removal, "SESSIONS", 1)

    class Reloading(FlakySink):
        def delete_sessions(self, *args: Any, **options: Any) -> Removed:
            it.retention.configure(Ages(), 3600)
            return super().delete_sessions(*args, **options)

    async with rig(tmp_path, Reloading()) as it:
        await it.add(*(f"s{number}" for number in range(10)), kind="session", status="completed")
        now = datetime.now(UTC)
        await it.retention.clean(Ages(), now)
        it.retention.ages = AGES
        await it.retention.run_once(now + DAY)
        assert len(it.stored("session")) == 9
        assert it.metrics.deletions.rows["retention", "session"] == 1


@pytest.mark.gen_test
async def test_two_cleanups_do_not_run_at_one_time(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        await it.flusher.flush(5)
        now = datetime.now(UTC)
        await it.retention.clean(Ages(), now)  # the clock is known
        it.retention.ages = AGES
        it.sink.hold()
        await it.add("more")
        request = asyncio.create_task(it.retention.clean(AGES, now + DAY))
        await asyncio.sleep(0.01)
        with pytest.raises(RowsWait, match="at work already"):
            await it.retention.clean(AGES, now)
        run = asyncio.create_task(it.retention.run_once(now + 1.1 * DAY))
        await asyncio.sleep(0.01)
        assert not run.done(), "it waits"
        it.sink.release()
        await asyncio.gather(request, run)
        assert it.metrics.deletions.runs == {"done": 1, "failed": 0, "waited": 0}


@pytest.mark.gen_test
async def test_a_failed_run_is_counted_and_told(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await fill(it)
        it.retention.ages = AGES
        now = datetime.now(UTC)
        await it.retention.clean(Ages(), now)
        it.sink.down = True
        with capture_logs() as logs:
            await it.retention.run_once(now + DAY)
        assert [line["event"] for line in logs if line["event"].startswith("retention")] == ["retention failed"]
        assert it.metrics.deletions.runs["failed"] == 1
