"""What fits goes into memory, the rest waits in the journal, and comes back in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.rig import rig, wait_until
from tests.rows import body, task
from tornado_persist.pipeline import backlog
from tornado_persist.pipeline.chunks import ChunkSize
from tornado_persist.records.models import KINDS, Batch
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.telemetry import log
from tornado_persist.testing import FlakySink


@pytest.mark.gen_test
async def test_past_max_rows_batches_wait_in_the_journal_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=5) as it:
        it.sink.hold()
        for n in range(4):
            await it.add(f"a{n}", f"b{n}")
        assert (len(it.buffer), it.pending(), it.backlog.left_out()) == (4, 8, True)
        assert (it.backlog.merged_through, it.backlog.accepted_through) == (2, 4)


@pytest.mark.gen_test
async def test_past_the_bytes_of_their_records_batches_wait_in_the_journal_alone_and_come_back_in_order(
    tmp_path: Path,
) -> None:
    text = "x" * 1000
    async with rig(tmp_path, buffer_bytes=5000, segment_bytes=20_000) as it:
        it.sink.down = True
        for n in range(20):
            await it.add(f"t{n:02}", source_text=text)
        assert (len(it.buffer), it.pending(), it.backlog.merged_through) == (4, 20, 4)
        assert 4000 < it.buffer.bytes <= 5000
    async with rig(tmp_path, buffer_bytes=5000) as again:
        assert (len(again.buffer), again.pending(), again.backlog.left_out()) == (4, 20, True)
        most = 0

        def look() -> bool:
            nonlocal most
            most = max(most, again.buffer.bytes)
            return again.pending() == 0

        flushing = asyncio.create_task(again.flusher.flush(10))
        await wait_until(look)
        assert (await flushing).error is None
        assert again.stored() == [f"t{n:02}" for n in range(20)]
        assert (4000 < most <= 5000, again.buffer.bytes) == (True, 0)


@pytest.mark.gen_test
async def test_a_batch_of_more_bytes_than_the_memory_may_hold_goes_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, buffer_bytes=1000) as it:
        it.sink.hold()
        await it.add("a", source_text="x" * 3000)
        await it.add("b")
        assert (len(it.buffer), it.backlog.left_out()) == (1, True)
        it.backlog.max_bytes = 100_000
        it.sink.release()
        await it.flusher.flush(5)
        assert it.stored() == ["a", "b"]


@pytest.mark.gen_test
async def test_a_batch_that_would_fit_waits_behind_one_that_did_not(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=5) as it:
        it.sink.hold()
        await it.add("a", "b", "c")
        await it.add("d", "e", "f")
        await it.add("a", status="completed")
        assert (it.backlog.merged_through, it.backlog.accepted_through, len(it.buffer)) == (1, 3, 3)
        it.sink.release()
        await it.flusher.flush(5)
        assert [row["status"] for row in it.sink.batches[0].tasks] == ["pending"] * 3
        assert it.sink.stored["task"]["s1", "a"]["status"] == "completed"


@pytest.mark.gen_test
async def test_updates_of_rows_in_memory_take_no_room(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=2) as it:
        for n in range(10):
            await it.add("a", source_text=str(n))
        assert (it.pending(), it.backlog.left_out()) == (1, False)


@pytest.mark.gen_test
async def test_a_batch_larger_than_the_memory_goes_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=2) as it:
        await it.add(*"abc")
        await it.add("d")
        assert (len(it.buffer), it.backlog.left_out()) == (3, True)
        await it.flusher.flush(5)
        assert it.stored() == list("abcd")


@pytest.mark.gen_test
async def test_refilling_while_batches_are_accepted_keeps_the_order(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=20, capacity=20) as it:
        for n in range(300):
            accepts = [it.add("same", f"t{n}-{i}", source_text=f"{n}-{i}") for i in range(3)]
            await asyncio.gather(*accepts, it.backlog.refill())
        await it.flusher.flush(10)
        assert it.pending() == 0
        assert len(it.stored()) == 901
        last = it.sink.stored["task"]["s1", "same"]["source_text"]
        assert last == "299-2"


@pytest.mark.gen_test
async def test_recovery_merges_what_was_not_released_and_counts_it(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=3) as it:
        it.sink.down = True
        await it.add("s", kind="session")
        await it.add("a", "b", "a")
        await it.add("c", "d")
        before = it.pending()
    async with rig(tmp_path, max_rows=3) as again:
        assert again.metrics.totals.accepted == {"session": 1, "task": 5}
        assert (again.pending(), before) == (6, 6), "those in the journal alone are not merged yet"
        assert (len(again.buffer), again.backlog.left_out()) == (1, True)
        await again.flusher.flush(5)
        assert again.stored() == ["a", "b", "c", "d"]
        assert again.metrics.totals.merged == {"session": 0, "task": 1}


@pytest.mark.gen_test
async def test_recovered_rows_have_the_times_of_their_acceptance(tmp_path: Path) -> None:
    async with rig(tmp_path) as it:
        first = await it.ingest.accept("task", body("task", task("a")))
        second = await it.ingest.accept("task", body("task", task("a")))
    async with rig(tmp_path) as again:
        await again.flusher.flush(5)
        row = again.sink.stored["task"]["s1", "a"]
        assert (row["created_at"], row["updated_at"]) == (first.at, second.at)


@pytest.mark.gen_test
async def test_rows_that_the_disk_damaged_while_they_waited_are_said_to_be_lost_and_not_waited_for(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, max_rows=1) as it:
        it.sink.hold()
        for key in "abc":
            await it.add(key)
        (segment,) = (tmp_path / "journal").glob("*.seg")
        content = bytearray(segment.read_bytes())
        content[content.index(b'"b"') + 1] ^= 1
        segment.write_bytes(content)
        it.sink.release()
        with capture_logs() as logs:
            assert (await it.flusher.flush(5)).error is None
        assert it.stored() == ["a", "c"]
        assert (it.pending(), it.journal.released) == (0, 3)
        lost = [log for log in logs if log["event"] == "accepted rows were lost to damage of the journal"]
        assert [(log["log_level"], log["kind"], log["rows"]) for log in lost] == [("error", "task", 1)]
        assert [len(list((tmp_path / "damaged").iterdir())), len(KINDS)] == [1, 2]


@pytest.mark.gen_test
async def test_a_flush_names_the_first_of_its_requests_once_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "REQUEST_IDS_NAMED", 2)
    async with rig(tmp_path) as it:
        for name in ("", "r1", "r2", "r3"):
            log.request_id.set(name)
            await it.add(f"t{name}")
        assert it.backlog.pop_request_ids(3) == ["r1", "r2"]
        assert it.backlog.pop_request_ids(3) == []
        assert it.backlog.pop_request_ids(4) == ["r3"]
        for seq in range(backlog.REQUEST_IDS_KEPT + 10):
            it.backlog._pending_request_ids.append((seq, f"r{seq}"))
        assert it.backlog.pop_request_ids(100_000) == ["r10", "r11"], "an outage keeps the latest"
        log.request_id.set("")


@pytest.mark.gen_test
async def test_a_flush_names_who_sent_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "REQUEST_IDS_NAMED", 2)
    monkeypatch.setattr(backlog, "CLIENTS_KEPT", 4)
    async with rig(tmp_path) as it:
        try:
            for n, client in enumerate((None, ("10.0.0.1", ""), ("10.0.0.2", "shop"), ("10.0.0.1", ""))):
                log.client.set(client)
                await it.add(f"t{n}")
            assert it.backlog.pop_clients(3) == ["10.0.0.1", "shop@10.0.0.2"]
            assert it.backlog.pop_clients(3) == []
            assert it.backlog.pop_clients(4) == ["10.0.0.1"], "of its later record"
            for n in range(10):
                log.client.set((f"10.0.0.{n}", ""))
                await it.add(f"u{n}")
            assert it.backlog.pop_clients(100) == ["10.0.0.0", "10.0.0.1", "2 more"], "few are kept"
        finally:
            log.client.set(None)


class SecondWriteWaits(FlakySink):
    """Takes one batch, and the next ones when it is released."""

    def write(self, batch: Batch) -> None:
        if len(self.batches) == 1:
            self.hold()
        super().write(batch)


@pytest.mark.gen_test
async def test_the_barrier_holds_for_rows_that_wait_in_the_journal_alone(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=3) as it:
        it.sink.hold()
        for key in "abcdefgh":
            await it.add(key)
        assert it.backlog.left_out()
        it.sink.release()
        flushed = await it.flusher.flush(10)
        assert (flushed.error, it.pending()) == (None, 0)
        assert it.stored() == list("abcdefgh")
        assert max(len(batch) for batch in it.sink.batches) <= 3


@pytest.mark.gen_test
async def test_a_backlog_is_written_without_being_asked_for(tmp_path: Path) -> None:
    async with rig(tmp_path, max_rows=3, interval=0.5) as it:
        it.sink.down = True
        for key in "abcdefgh":
            await it.add(key)
        it.sink.down = False
        await wait_until(lambda: it.stored() == list("abcdefgh"))


@pytest.mark.gen_test
async def test_room_that_written_rows_leave_is_filled_while_the_next_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path, SecondWriteWaits(SinkSettings(max_chunk_rows=2)), max_rows=4) as it:
        it.sink.down = True
        for keys in ("ab", "cd", "ef", "gh"):
            await it.add(*keys)
        await it.flusher.flush_once()
        it.sink.down = False
        monkeypatch.setattr(it.flusher, "_chunk_size", ChunkSize(2))
        flushing = asyncio.create_task(it.flusher.flush(10))
        await wait_until(lambda: it.stored() == ["a", "b"] and it.buffer.waiting() == 2)
        assert len(it.buffer) == 4
        it.sink.release()
        assert (await flushing).error is None
        assert it.stored() == list("abcdefgh")
