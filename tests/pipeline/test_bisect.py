"""A chunk is written whole, or halved until the rows at fault stand alone; an outage costs no row."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.rig import BreakingSink, Rig, rig
from tests.rows import session
from tornado_persist.errors import SinkConflict, SinkUnavailable
from tornado_persist.pipeline import bisect
from tornado_persist.pipeline.flusher import UNKNOWN_FAILURES
from tornado_persist.records.models import Batch
from tornado_persist.sinks import runner
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.testing import FlakySink, MemorySink


def rejected(it: Rig) -> list[dict[str, Any]]:
    path = it.data_dir / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.gen_test
async def test_a_conflict_with_another_writer_is_tried_again_at_once_and_keeps_the_connection(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add("a")
        it.sink.fail_next(runner.CONFLICTS - 1, SinkConflict)
        assert (await it.flusher.flush_once()).error is None
        assert it.runner.up
        assert it.sink.calls == ["open", *["write"] * runner.CONFLICTS]
        await it.add("b")
        it.sink.fail_next(runner.CONFLICTS, SinkConflict)
        assert isinstance((await it.flusher.flush_once()).error, SinkConflict)
        assert it.runner.state.error, "so many are a failure"
        await it.flusher.flush(5)
        assert it.stored() == ["a", "b"]


class ContendedSink(FlakySink):
    """Another writer commits so often that more than ``most`` rows in a transaction always conflict."""

    most = 0

    def write(self, batch: Batch) -> None:
        self.calls.append("write")
        if len(batch) > self.most:
            raise SinkConflict("another writer won")
        MemorySink.write(self, batch)


@pytest.mark.gen_test
async def test_a_chunk_that_loses_to_other_writers_is_halved_in_order_and_the_next_ones_are_smaller(
    tmp_path: Path,
) -> None:
    sink = ContendedSink(SinkSettings(max_chunk_rows=800))
    sink.most = 100
    keys = [f"t{n:04}" for n in range(1600)]
    async with rig(tmp_path, sink, capacity=10_000) as it:
        await it.add(*keys[:1000])
        await it.add(*keys[1000:])
        flushed = await it.flusher.flush(5)
        assert (flushed.tasks, flushed.error) == (1600, None)
        assert [row["task_id"] for batch in sink.batches for row in batch.tasks] == keys
        # Three times 800, 400 and 200 rows; then 100 at a time, and once 200 again, for others may write less by now.
        conflicts = sink.calls.count("write") - len(sink.batches)
        assert conflicts <= 4 * runner.CONFLICTS
        assert it.runner.state.error == ""


@pytest.mark.gen_test
async def test_conflicts_without_end_are_a_failure_and_cost_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ContendedSink()
    async with rig(tmp_path, sink) as it:
        await it.add(*"abcdefgh")
        assert isinstance((await it.flusher.flush_once()).error, SinkConflict)
        assert sink.calls.count("write") == 4 * runner.CONFLICTS, "8, 4, 2 and 1 row"
        assert not it.runner.up
        # A lock that another writer keeps: each try waits for it.
        monkeypatch.setattr(bisect, "CONFLICT_TIME", 0.0)
        await it.add(*"ijklmnop")
        sink.calls.clear()
        await it.flusher.flush_once()
        assert sink.calls.count("write") == runner.CONFLICTS
        sink.most = 10
        await it.flusher.flush(5)
        assert it.stored() == list("abcdefghijklmnop")


@pytest.mark.gen_test
async def test_bad_rows_cost_only_themselves_and_few_writes(tmp_path: Path) -> None:
    async with rig(tmp_path, capacity=10_000) as it:
        keys = [f"t{n:04}" for n in range(1000)]
        it.sink.refused = {"t0003", "t0500", "t0999", "s1"}
        await it.add("s1", kind="session")
        await it.add(*keys)
        flushed = await it.flusher.flush(5)
        assert (flushed.sessions, flushed.tasks, flushed.rejected, flushed.error) == (0, 997, 4, None)
        assert set(it.stored()) == set(keys) - it.sink.refused
        assert it.sink.calls.count("write") <= 2 * 4 * 10 + 1
        entries = rejected(it)
        assert sorted(entry["row"].get("task_id", "s1") for entry in entries) == ["s1", "t0003", "t0500", "t0999"]
        entry = next(entry for entry in entries if entry["kind"] == "session")
        assert entry["row"] == session("s1"), "it can be sent again as it is"
        assert (entry["sink"], entry["code"], entry["message"]) == ("flaky", "refused", "s1 is refused")
        assert datetime.fromisoformat(entry["at"]).tzinfo == UTC
        assert (it.pending(), it.journal.released) == (0, 2)


@pytest.mark.gen_test
async def test_an_outage_while_halving_keeps_what_is_neither_written_nor_refused(tmp_path: Path) -> None:
    # abcd, ab and a alone are refused; then comes b.
    async with rig(tmp_path, BreakingSink(4)) as it:
        await it.add(*"abcd")
        it.sink.refused = {"a"}
        flushed = await it.flusher.flush_once()
        assert isinstance(flushed.error, SinkUnavailable)
        assert (flushed.rejected, it.stored(), it.pending()) == (1, [], 3)
        await it.flusher.flush(5)
        assert it.stored() == ["b", "c", "d"]
        assert [entry["row"]["task_id"] for entry in rejected(it)] == ["a"]


@pytest.mark.gen_test
async def test_an_unknown_code_is_the_fault_of_rows_only_if_others_go_through(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        await it.add(*"abcdefgh")
        it.sink.suspected = {"c"}
        for _ in range(UNKNOWN_FAILURES):
            assert isinstance((await it.flusher.flush_once()).error, SinkUnavailable)
            assert (it.stored(), rejected(it)) == ([], [])
        flushed = await it.flusher.flush_once()
        assert (flushed.tasks, flushed.rejected, flushed.error) == (7, 1, None)
        assert [entry["row"]["task_id"] for entry in rejected(it)] == ["c"]


@pytest.mark.gen_test
async def test_an_outage_with_an_unknown_code_may_end_at_any_moment_and_costs_no_row(tmp_path: Path) -> None:
    class Recovering(FlakySink):
        """Fails its writes, with an unknown code, up to a number of them."""

        def write(self, batch: Batch) -> None:
            if self.calls.count("write") < outage:
                self.fail_next(error=SinkUnavailable("odd", code="odd", unknown_code=True))
            super().write(batch)

    for outage in range(1, 25):
        async with rig(tmp_path / str(outage), Recovering()) as it:
            await it.add(*"abcdefgh")
            while it.pending():
                await it.flusher.flush_once()
            assert (sorted(it.stored()), rejected(it)) == (list("abcdefgh"), [])


@pytest.mark.gen_test
async def test_an_unknown_code_for_every_row_is_an_outage_for_ever(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        keys = [f"t{n}" for n in range(100)]
        await it.add(*keys)
        it.sink.suspected = set(keys)
        for _ in range(UNKNOWN_FAILURES + 2):
            before = it.sink.calls.count("write")
            assert isinstance((await it.flusher.flush_once()).error, SinkUnavailable)
            assert it.sink.calls.count("write") - before < 100, "it must not try every row"
        assert (it.pending(), rejected(it)) == (100, [])
        it.sink.suspected = set()
        await it.flusher.flush(5)
        assert it.stored() == keys


@pytest.mark.gen_test
async def test_refused_rows_stay_until_the_dead_letters_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "rejected.jsonl").mkdir()
    async with rig(tmp_path) as it:
        await it.add("a", "b")
        it.sink.refused = {"a"}
        flushed = await it.flusher.flush(5)
        assert "rejected.jsonl cannot be written: Is a directory" in str(flushed.error)
        assert (it.pending(), it.journal.released) == (1, 0)
        (tmp_path / "rejected.jsonl").rmdir()
        assert (await it.flusher.flush(5)).error is None
        assert [entry["row"]["task_id"] for entry in rejected(it)] == ["a"]
