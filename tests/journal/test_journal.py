"""Appending, reading back and releasing, while nothing fails."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.journal.tools import T0, Driver, Events, fill, later, wait_until
from tornado_persist.journal import HEADER_SIZE, Checkpoint, Journal, Record, writer

BODIES = [b"%d" % n * (n % 7 + 1) for n in range(30)]


def on_disk(driver: Driver) -> int:
    return sum(path.stat().st_size for path in driver.segments())


def test_records_come_back_in_order_with_all_they_had(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        assert driver.append(b"a", b"b", kind="session", rows=2) == [1, 2]
        assert driver.append(b"c", at=later(0.000001), rows=5) == [3]
        assert driver.read() == [
            Record(1, "session", T0, 2, b"a"),
            Record(2, "session", T0, 2, b"b"),
            Record(3, "task", later(0.000001), 5, b"c"),
        ]


def test_a_journal_begins_empty(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(0, {})
        assert (driver.journal.last, driver.journal.released, driver.journal.found.records) == (0, 0, 0)
        assert driver.read() == []
        assert driver.segments() == []
        stats = driver.journal.stats()
        assert (stats.bytes, stats.records, stats.oldest, stats.sync) == (0, 0, None, "always")


@pytest.mark.parametrize("sync", ["always", "interval", "off"])
def test_the_next_life_finds_what_is_not_released_and_the_state(tmp_path: Path, sync: str) -> None:
    with Driver(tmp_path, sync=sync, segment_bytes=200) as driver:
        driver.append(*BODIES[:10], rows=2)
        driver.append(*BODIES[10:], kind="session")
        assert driver.journal.release(4, {"x": [1]})
    with Driver(tmp_path, sync=sync, segment_bytes=200) as driver:
        assert driver.checkpoint == Checkpoint(4, {"x": [1]})
        assert driver.bodies() == BODIES[4:]
        assert driver.journal.found.records == 26
        assert driver.journal.found.rows == {"session": 20, "task": 12}
        assert driver.journal.stats().records == 26
        assert driver.append(b"next") == [31]


@pytest.mark.parametrize("max_bytes", [1, 7, 50, 10**6])
def test_reading_gives_as_much_as_was_asked_for_and_one_at_least(tmp_path: Path, max_bytes: int) -> None:
    with Driver(tmp_path, segment_bytes=300) as driver:
        driver.append(*BODIES)
        at, seen = 0, []
        while records := driver.journal.read(at, max_bytes):
            assert len(records) == 1 or sum(len(record.body) for record in records) <= max_bytes
            at = records[-1].seq
            seen += [record.body for record in records]
        assert seen == BODIES


def test_reading_begins_anywhere_and_goes_on_as_records_come(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=200) as driver:
        driver.append(*BODIES)
        for after in (29, 0, 17, 3, 30):
            assert driver.bodies(after) == BODIES[after:]
        assert driver.journal.read(30, 100) == []
        driver.append(b"more")
        assert [record.seq for record in driver.journal.read(30, 100)] == [31]


def test_going_on_reads_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        nonlocal read
        data = real(fd, size, offset)
        read += len(data)
        return data

    with Driver(tmp_path) as driver:
        driver.append(*[b"x" * 100] * 500)
        monkeypatch.setattr(os, "pread", pread)
        assert len(driver.read(max_bytes=1)) == 500
        assert read == on_disk(driver)


def test_a_body_may_be_empty_or_larger_than_a_segment_and_than_the_window(tmp_path: Path) -> None:
    bodies = [b"", b"x" * 3_000_000, b"", b"y" * 1_048_576]
    with Driver(tmp_path, segment_bytes=1000) as driver:
        driver.append(*bodies)
        assert driver.bodies() == bodies
    with Driver(tmp_path) as driver:
        assert driver.bodies() == bodies


def test_a_segment_is_named_by_its_first_record_and_keeps_to_its_size(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=3 * (HEADER_SIZE + 10)) as driver:
        driver.append(*[b"0123456789"] * 7)
        assert [path.name for path in driver.segments()] == [f"{first:020}.seg" for first in (1, 4, 7)]
        assert {path.stat().st_size for path in driver.segments()} == {150, 50}


def test_only_what_was_acknowledged_is_read(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        state = driver.journal._state
        with (driver.directory / "00000000000000000001.seg").open("ab") as file:
            file.write(b"bytes of a group that is not on the disk yet")
        assert driver.bodies() == [b"a"]
        assert state.segments[0].end == HEADER_SIZE + 1


def test_a_segment_is_deleted_once_all_in_it_is_released(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=3 * (HEADER_SIZE + 1)) as driver:
        driver.append(*[b"x"] * 8)
        counts = []
        for seq in range(9):
            driver.journal.release(seq, {})
            counts.append(len(driver.segments()))
            assert driver.journal.stats().bytes == on_disk(driver)
            assert driver.journal.stats().records == 8 - seq
        # The last one too, though it is the one being written.
        assert counts == [3, 3, 3, 2, 2, 2, 1, 1, 0]
        assert driver.append(b"y") == [9]
        assert driver.bodies() == [b"y"]
    with Driver(tmp_path) as driver:
        assert driver.bodies() == [b"y"]


def test_wholly_released_the_journal_goes_on_counting_in_the_next_life(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a", b"b")
        driver.journal.release(2, {"n": 1})
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(2, {"n": 1})
        assert driver.journal.last == 2
        assert driver.read() == []
        assert driver.append(b"c") == [3]


def test_release_never_goes_back_but_takes_the_state(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a", b"b", b"c")
        assert driver.journal.release(2, {"n": 1})
        assert driver.journal.release(1, {"n": 2})
        assert driver.journal.released == 2
        assert driver.bodies() == [b"c"]
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(2, {"n": 2})


def test_what_was_never_accepted_cannot_be_released(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        with pytest.raises(ValueError, match="record 2 was never accepted; the last one is 1"):
            driver.journal.release(2, {})


def test_a_reader_whose_segments_were_released_goes_on_after_them(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=100) as driver:
        driver.append(*BODIES)
        assert [record.seq for record in driver.journal.read(0, 1)] == [1]
        driver.journal.release(25, {})
        assert driver.bodies(after=25) == BODIES[25:]
        assert driver.bodies(after=1)[-5:] == BODIES[25:]


@pytest.mark.parametrize("amount", [1, 50], ids=["between two records", "in a later segment"])
def test_a_segment_that_is_deleted_while_it_is_read_does_not_break_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amount: int
) -> None:
    with Driver(tmp_path, segment_bytes=100) as driver:
        driver.append(*BODIES)
        assert driver.journal.read(0, amount)
        real, released = os.pread, False

        def pread(fd: int, size: int, offset: int) -> bytes:
            nonlocal released
            if not released:
                released = True
                driver.journal.release(25, {})  # the file is open, and its name is gone
            return real(fd, size, offset)

        after = driver.journal.read(0, amount)[-1].seq
        monkeypatch.setattr(os, "pread", pread)
        seqs = [record.seq for record in driver.read(after)]
        assert released
        assert seqs == sorted(set(seqs))
        assert seqs[-5:] == list(range(26, 31))
        assert driver.journal.stats().records == 5


def test_a_release_that_waits_makes_room_before_the_batches_that_wait(tmp_path: Path, disk: Any) -> None:
    size = HEADER_SIZE + 10
    with Driver(tmp_path, segment_bytes=size, max_bytes=3 * size) as driver:
        driver.append(*[b"0123456789"] * 2)
        with disk.hold():
            last = driver.send(b"0123456789")
            assert disk.held.wait(30)
            # The writer is busy: both come into the queue behind it, the batch first.
            late = driver.send(b"0123456789")
            released: list[bool] = []
            thread = threading.Thread(target=lambda: released.append(driver.journal.release(1, {"n": 1})))
            thread.start()
            wait_until(lambda: driver.journal._writer._queue.qsize() == 2)
        assert driver.wait(last, late) == [3, 4]
        thread.join()
        assert released == [True]
        assert driver.journal.stats().records == 3


def test_before_the_start_and_after_the_end_nothing_is_released(tmp_path: Path) -> None:
    fill(tmp_path, b"a")
    journal = Journal(tmp_path / "journal", tmp_path / "damaged")
    journal.open()
    assert not journal.release(1, {})
    with Driver(tmp_path) as driver:
        driver.close()
        assert not driver.journal.release(1, {})
    with Driver(tmp_path) as driver:
        assert (driver.checkpoint, driver.bodies()) == (Checkpoint(0, {}), [b"a"])


def test_the_oldest_is_the_first_that_is_not_released(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        oldest: list[datetime | None] = []
        for second in (0, 10, 10.2, 20):
            driver.append(b"x", at=later(second))
        for seq in range(5):
            driver.journal.release(seq, {})
            oldest.append(driver.journal.stats().oldest)
        # Record 3 came 0.2 s after record 2: less than a second apart they share a mark.
        assert oldest == [later(0), later(10), later(10), later(20), None]
        driver.append(b"x", at=later(20.5))
        assert driver.journal.stats().oldest == later(20.5)
    with Driver(tmp_path) as driver:
        assert driver.journal.stats().oldest == later(20.5)


def test_after_the_end_nothing_is_taken(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.append(b"a")
    assert driver.journal.close(30)
    assert driver.refused(b"b") == ["The journal is closed"]
    driver.loop.close()


def test_what_was_appended_before_the_end_is_written(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    futures = [driver.begin(body) for body in BODIES]
    assert driver.journal.close(30)
    assert driver.wait(*futures) == list(range(1, 31))
    driver.loop.close()
    with Driver(tmp_path) as again:
        assert again.bodies() == BODIES


def test_a_journal_that_was_opened_but_not_started_can_be_closed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", tmp_path / "damaged")
    journal.open()
    with pytest.raises(RuntimeError, match="not started"):
        journal.append("task", T0, 1, b"a")
    assert journal.close(1)


def test_a_caller_that_gave_up_does_not_take_its_batch_back(tmp_path: Path) -> None:
    with Driver(tmp_path) as driver:
        first, second = driver.begin(b"a"), driver.begin(b"b")
        first.cancel()
        assert driver.wait(second) == [2]
        assert driver.bodies() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("kind", "at"), [("cell", T0), ("task", T0.replace(tzinfo=None))], ids=["unknown kind", "naive time"]
)
def test_a_wrong_call_is_told_so_at_once(tmp_path: Path, kind: Any, at: datetime) -> None:
    with Driver(tmp_path) as driver:
        with pytest.raises((KeyError, TypeError)):
            driver.begin(b"a", at, kind)
        assert driver.append(b"a") == [1]


def test_answers_come_in_the_order_of_the_calls(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=500) as driver:
        order: list[int] = []
        futures = [driver.begin(body) for body in BODIES]
        for number, future in enumerate(futures):

            def note(_: asyncio.Future[int], number: int = number) -> None:
                order.append(number)

            future.add_done_callback(note)
        assert driver.wait(*futures) == list(range(1, 31))
        assert order == list(range(30))
        assert driver.bodies() == BODIES


# Space


def test_past_max_bytes_nothing_is_taken_until_a_release_makes_room(tmp_path: Path, events: Events) -> None:
    size = HEADER_SIZE + 100
    with Driver(tmp_path, segment_bytes=2 * size, max_bytes=5 * size) as driver:
        body = b"x" * 100
        driver.append(*[body] * 5)
        assert driver.journal.problem == ""
        before = on_disk(driver)
        sentence = f"The journal is full: {5 * size} bytes of {5 * size}"
        assert driver.refused(body, body) == [sentence, sentence]
        assert driver.journal.problem == sentence
        assert on_disk(driver) == before
        # It was not room for a small one that was asked for: else the state would change with every batch.
        assert driver.refused(b"") == [sentence]
        assert events.one("journal is full")["log_level"] == "warning"
        driver.journal.release(1, {})  # half a segment gives nothing
        assert driver.journal.problem == sentence
        driver.journal.release(2, {})
        assert driver.journal.problem == ""
        events.one("journal has room again")
        assert driver.append(body) == [6]
        assert driver.bodies() == [body] * 4


def test_of_a_group_that_does_not_fit_whole_the_first_ones_are_taken(tmp_path: Path, events: Events) -> None:
    with Driver(tmp_path, max_bytes=3 * (HEADER_SIZE + 10)) as driver:
        answers = driver.wait(*[driver.begin(b"0123456789") for _ in range(5)])
        assert answers[:3] == [1, 2, 3]
        assert ["full" in str(answer) for answer in answers[3:]] == [True, True]
        events.one("journal is full")
        assert len(driver.read()) == 3


def test_a_batch_that_could_never_fit_is_refused_alone(tmp_path: Path) -> None:
    with Driver(tmp_path, max_bytes=1000) as driver:
        assert driver.refused(b"x" * 1000) == ["The batch of 1040 bytes is larger than the journal may be"]
        assert driver.journal.problem == ""
        assert driver.append(b"x" * 960) == [1]


def test_a_journal_that_was_full_is_full_in_the_next_life(tmp_path: Path, events: Events) -> None:
    fill(tmp_path, *[b"x" * 60] * 10)
    with Driver(tmp_path, max_bytes=1000) as driver:
        driver.refused(b"x")
        events.one("journal is full")
        driver.journal.release(10, {})
        assert driver.append(b"x") == [11]


# Group commit and the modes of syncing


@pytest.mark.parametrize(("sync", "times"), [("always", 3), ("off", 1)])
def test_each_sync_of_the_writer_is_timed(tmp_path: Path, sync: str, times: int) -> None:
    seconds: list[float] = []
    with Driver(tmp_path, sync=sync, on_sync=seconds.append) as driver:
        for body in (b"a", b"b", b"c"):
            driver.append(body)
        assert len(seconds) == times
        assert min(seconds) > 0


def test_all_that_wait_share_the_next_sync(tmp_path: Path, disk: Any) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"first")
        before = disk.count["fdatasync"]
        with disk.hold():
            futures = [driver.send(b"alone")]
            assert disk.held.wait(30)
            futures += [driver.begin(body) for body in BODIES]
            assert not any(future.done() for future in futures)
        assert driver.wait(*futures) == list(range(2, 33))
        assert disk.count["fdatasync"] == before + 2
        assert driver.bodies() == [b"first", b"alone", *BODIES]


def test_what_comes_in_one_round_of_the_event_loop_shares_a_sync(tmp_path: Path, disk: Any) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"first")
        before = disk.count["fdatasync"]
        futures = []
        for body in BODIES:
            futures.append(driver.begin(body))
            time.sleep(0.001)  # as long as it takes to parse: the writer would be at work already
        assert disk.count["fdatasync"] == before
        driver.wait(*futures)
        assert disk.count["fdatasync"] == before + 1


def test_a_group_of_more_buffers_than_one_call_takes_is_written_whole(tmp_path: Path, disk: Any) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"first")
        writes = disk.count["writev"]
        with disk.hold():
            driver.send(b"alone")
            assert disk.held.wait(30)
            futures = [driver.begin(b"%d" % n) for n in range(1200)]
        driver.wait(*futures)
        assert disk.count["writev"] == writes + 1 + 3  # 2,400 buffers, 1,024 a call
        assert driver.bodies(after=2) == [b"%d" % n for n in range(1200)]


def test_a_write_that_takes_only_a_part_goes_on_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def writev(fd: int, buffers: list[bytes | memoryview]) -> int:
        return os.write(fd, b"".join(buffers)[:7])

    monkeypatch.setattr(os, "writev", writev)
    with Driver(tmp_path) as driver:
        driver.append(*BODIES)
        assert driver.bodies() == BODIES


def test_nothing_is_acknowledged_or_read_before_it_is_on_the_disk(tmp_path: Path, disk: Any) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        with disk.hold():
            future = driver.send(b"b")
            assert disk.held.wait(30)
            assert not future.done()
            assert driver.bodies() == [b"a"]
            assert driver.journal.last == 1
        assert driver.wait(future) == [2]
        assert driver.bodies() == [b"a", b"b"]


def test_a_new_segment_is_synced_with_its_directory_before_its_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = os.fsync
    with Driver(tmp_path) as driver:
        inode = driver.directory.stat().st_ino

        def fsync(fd: int) -> None:
            calls.append("directory" if os.fstat(fd).st_ino == inode else "file")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        driver.begin(b"a").add_done_callback(lambda _: calls.append("answer"))
        driver.append(b"b")
    assert calls[:2] == ["file", "directory"]
    assert "answer" in calls[2:]


def test_with_interval_the_answer_does_not_wait_and_an_idle_journal_is_synced(
    tmp_path: Path, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 0.02)
    with Driver(tmp_path, sync="interval") as driver:
        driver.append(b"first")
        with disk.hold():
            assert driver.append(b"a") == [2]
            assert disk.held.wait(30)  # without another batch
            assert driver.bodies() == [b"first", b"a"]
        segment = driver.journal._state.segments[0]
        wait_until(lambda: segment.synced == segment.end)
        count = disk.count["fdatasync"]
    assert disk.count["fdatasync"] == count  # nothing was left for the end


def test_with_off_only_the_end_syncs(tmp_path: Path, disk: Any) -> None:
    driver = Driver(tmp_path, sync="off", segment_bytes=1000)
    driver.append(b"first")
    syncs = disk.count["fsync"]
    for body in BODIES[:15]:
        driver.append(body)
    assert len(driver.segments()) == 1
    assert disk.count["fdatasync"] == 0
    assert disk.count["fsync"] == syncs
    driver.close()
    assert disk.count["fsync"] == syncs + 1
