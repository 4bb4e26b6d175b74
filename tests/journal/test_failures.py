"""A disk that is full or broken: nothing refused comes back, nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.journal.tools import Disk, Driver, Events, wait_until
from tornado_persist.journal import HEADER_SIZE, Checkpoint, writer
from tornado_persist.journal.segment import Segment

FULL = "The journal cannot be written: No space left on device"
BROKEN = "The journal cannot be written: Input/output error"

pytestmark = pytest.mark.usefixtures("impatient")


def recovered(driver: Driver, events: Events) -> None:
    """Until it can be written again, without any call."""
    wait_until(lambda: driver.journal.problem == "")
    events.one("journal cannot be written")
    events.one("journal can be written again")


def copy_files(driver: Driver, copy: Path) -> None:
    """Copy what another process would find if this one were killed now."""
    (copy / "journal").mkdir(parents=True)
    for path in driver.directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a probe is over
            (copy / "journal" / path.name).write_bytes(path.read_bytes())


def replayed(copy: Path, driver: Driver, events: Events) -> list[bytes]:
    """What is replayed from the copy, which may hold a segment of zeros with which ``driver`` probed."""
    probe = f"{driver.journal.last + 1:020}.seg"
    with Driver(copy) as other:
        bodies = other.bodies()
    for event in ("journal segment without a record removed", "journal tail cut off"):
        events.captured += [line for line in events.take(event) if line["segment"] != probe]
    return bodies


def after_a_crash(driver: Driver, copy: Path, events: Events) -> list[bytes]:
    copy_files(driver, copy)
    return replayed(copy, driver, events)


@pytest.mark.parametrize("written", [0, 1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 3, 2 * HEADER_SIZE + 7, 10**6])
@pytest.mark.parametrize("first", [True, False], ids=["new segment", "old segment"])
def test_a_write_that_fails_leaves_nothing(
    tmp_path: Path, disk: Disk, events: Events, written: int, first: bool
) -> None:
    with Driver(tmp_path / "one") as driver:
        accepted = [] if first else [b"a", b"b"]
        driver.append(*accepted)
        disk.fail("writev", error=errno.ENOSPC, written=written)
        disk.fail("posix_fallocate", error=errno.ENOSPC)
        assert driver.refused(b"12345", b"67890") == [FULL, FULL]
        assert driver.journal.problem == FULL
        assert driver.refused(b"c") == [FULL]
        assert driver.bodies() == accepted
        assert after_a_crash(driver, tmp_path / "two", events) == accepted
        disk.heal()
        recovered(driver, events)
        assert driver.append(b"d") == [len(accepted) + 1]
        assert driver.bodies() == [*accepted, b"d"]
        assert after_a_crash(driver, tmp_path / "three", events) == [*accepted, b"d"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("first", [True, False], ids=["new segment", "old segment"])
def test_a_sync_that_fails_leaves_nothing_and_its_file_is_not_written_again(
    tmp_path: Path, disk: Disk, events: Events, number: int, first: bool
) -> None:
    with Driver(tmp_path / "one") as driver:
        accepted = [] if first else [b"a", b"b"]
        driver.append(*accepted)
        disk.fail("fsync" if first else "fdatasync", error=number)
        refused = driver.send(b"12345")
        if first:
            # The cut needs a sync as well: until it is durable there is no answer.
            wait_until(lambda: driver.journal.problem != "")
            tries = disk.count["fsync"]
            wait_until(lambda: disk.count["fsync"] > tries + 3)
            driver.turn()
            assert not refused.done()
            disk.heal()
        (answer,) = driver.wait(refused)
        assert os.strerror(number) in str(answer)
        assert after_a_crash(driver, tmp_path / "two", events) == accepted
        disk.heal()
        recovered(driver, events)
        old = driver.segments()[0].stat().st_size if accepted else 0
        assert driver.append(b"c") == [len(accepted) + 1]
        if accepted:
            assert driver.segments()[0].stat().st_size == old
            assert len(driver.segments()) == 2
        assert driver.bodies() == [*accepted, b"c"]
    with Driver(tmp_path / "one") as driver:
        assert driver.bodies() == [*accepted, b"c"]


def test_a_group_is_refused_whole(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        with disk.hold():
            futures = [driver.send(b"alone")]
            assert disk.held.wait(30)
            futures += [driver.begin(b"%d" % n) for n in range(20)]
            disk.fail("fdatasync")
            disk.fail("posix_fallocate")
        assert {str(answer) for answer in driver.wait(*futures)} == {BROKEN}
        disk.heal()
        recovered(driver, events)
        assert driver.bodies() == [b"a"]


def test_while_it_cannot_be_cut_there_is_no_answer(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path / "one") as driver:
        driver.append(b"a")
        disk.fail("fdatasync", "ftruncate")
        disk.fail("posix_fallocate", error=errno.ENOSPC)
        future = driver.send(b"b")
        wait_until(lambda: disk.count["ftruncate"] > 3)
        driver.turn()
        assert not future.done()
        # Others were not written at all, so they need not wait.
        driver.refused(b"c")
        disk.heal()
        driver.wait(future)
        recovered(driver, events)
        assert driver.bodies() == [b"a"]
        assert after_a_crash(driver, tmp_path / "two", events) == [b"a"]
        events.take("journal tail cut off")  # when the disk was healed after the cut and before the new segment


def void(driver: Driver, disk: Disk, events: Events) -> None:
    """Two batches are refused and cannot be cut off their segment, so only an empty segment makes them void."""
    segment = driver.segments()[-1]
    inode, size = segment.stat().st_ino, segment.stat().st_size
    disk.fail("writev", written=10**6)
    # Only the cut of this very file goes wrong, so that a new segment can be made.
    truncate = os.ftruncate

    def ftruncate(fd: int, length: int) -> None:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        truncate(fd, length)

    os.ftruncate = ftruncate
    try:
        assert driver.refused(b"void 1", b"void 2") == [BROKEN, BROKEN]
    finally:
        os.ftruncate = truncate
    assert segment.stat().st_size > size
    disk.heal()
    recovered(driver, events)


def test_what_cannot_be_cut_is_void_by_the_next_segment(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path / "one") as driver:
        driver.append(b"a", b"b")
        void(driver, disk, events)
        # Killed now, with an empty segment alone to say so:
        assert after_a_crash(driver, tmp_path / "two", events) == [b"a", b"b"]
        assert events.one("journal tail cut off")["reason"] == "void: the next segment begins before it"
        with Driver(tmp_path / "two") as again:  # and it does not come back
            assert again.bodies() == [b"a", b"b"]
        assert driver.append(b"c") == [3]
        assert driver.bodies() == [b"a", b"b", b"c"]
        assert after_a_crash(driver, tmp_path / "three", events) == [b"a", b"b", b"c"]
        events.one("journal tail cut off")
        # The file with the void records goes before the one that makes them so, durably.
        syncs = disk.count["fsync"]
        driver.journal.release(3, {})
        assert driver.segments() == []
        assert disk.count["fsync"] == syncs + 1


def test_what_makes_it_void_outlasts_the_end(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a", b"b")
        void(driver, disk, events)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == [b"a", b"b"]
        events.one("journal tail cut off")
        events.one("journal segment without a record removed")
        assert driver.append(b"c") == [3]


@pytest.mark.parametrize("call", ["writev", "fsync"])
def test_what_makes_it_void_outlasts_a_failure_of_its_own(
    tmp_path: Path, disk: Disk, events: Events, call: str
) -> None:
    with Driver(tmp_path / "one") as driver:
        driver.append(b"a", b"b")
        void(driver, disk, events)
        disk.fail(call, written=10**6)
        disk.fail("posix_fallocate", error=errno.ENOSPC)
        future = driver.send(b"c")
        tries = disk.count["posix_fallocate"]
        wait_until(lambda: disk.count["posix_fallocate"] > tries + 2)
        copy_files(driver, tmp_path / "two")
        disk.heal()
        driver.wait(future)
        found = replayed(tmp_path / "two", driver, events)
        # With no sync the third was never refused, so it may be there.
        assert found == [b"a", b"b"] or (call, found) == ("fsync", [b"a", b"b", b"c"])
        events.one("journal tail cut off")
        recovered(driver, events)
        assert driver.append(b"d") == [3]
        assert driver.bodies() == [b"a", b"b", b"d"]
    events.captured.clear()
    with Driver(tmp_path / "one") as driver:
        assert driver.bodies() == [b"a", b"b", b"d"]
    events.one("journal tail cut off")


def test_a_segment_that_is_still_to_be_cut_is_not_given_up(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        disk.fail("fdatasync", "ftruncate")
        disk.fail("posix_fallocate", error=errno.ENOSPC)
        future = driver.send(b"b")
        wait_until(lambda: disk.count["ftruncate"] > 1)
        disk.heal("fdatasync")  # the cursor's
        assert driver.journal.release(1, {})
        assert len(driver.segments()) >= 1
        disk.heal()
        driver.wait(future)
        recovered(driver, events)
        wait_until(lambda: driver.journal.stats().bytes == 0)  # without another release
        assert driver.append(b"c") == [2]
        assert driver.bodies() == [b"c"]


def test_it_is_said_once_however_long_it_lasts(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        disk.fail("writev", "posix_fallocate", error=errno.ENOSPC)
        driver.refused(b"b")
        wait_until(lambda: disk.count["posix_fallocate"] > 5)
        driver.refused(b"c")
        line = events.one("journal cannot be written")
        assert (line["log_level"], line["error"], line["refused"]) == ("error", "No space left on device", 1)
        disk.heal()
        wait_until(lambda: driver.journal.problem == "")
        events.one("journal can be written again")
        assert driver.append(b"d") == [2]


def test_no_room_for_a_new_segment_refuses_and_goes_on(tmp_path: Path, events: Events, disk: Disk) -> None:
    with Driver(tmp_path, segment_bytes=50) as driver:
        driver.append(b"a")
        disk.fail("fsync", "posix_fallocate", error=errno.ENOSPC)
        future = driver.send(b"x" * 20)
        wait_until(lambda: driver.journal.problem == FULL)
        disk.heal()
        driver.wait(future)
        recovered(driver, events)
        assert driver.append(b"b") == [2]


def test_probing_leaves_no_file_and_takes_no_room(tmp_path: Path, disk: Disk, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        size = driver.segments()[0].stat().st_size
        disk.fail("writev", error=errno.ENOSPC)
        driver.refused(b"b")
        recovered(driver, events)
        assert [path.stat().st_size for path in driver.segments()] == [size, 0]
        assert driver.journal.stats().bytes == size
    # The end removes it, so that the next start has nothing to say.
    assert len(driver.segments()) == 1


def test_a_bug_is_told_with_its_traceback_and_refuses(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a")
        answers = driver.wait(driver.begin(b"b", rows=-1))
        assert "error" in str(answers[0])
        assert events.one("a bug in the journal's writer")["exc_info"]
        recovered(driver, events)
        assert driver.append(b"c") == [2]


# sync = "interval": what was acknowledged may still be on its way when the disk fails


def test_with_interval_a_failed_sync_writes_the_records_again(
    tmp_path: Path, disk: Disk, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 0.01)
    with Driver(tmp_path / "one", sync="interval") as driver:
        driver.append(b"a")
        disk.fail("fdatasync")
        disk.fail("posix_fallocate", error=errno.ENOSPC)
        with disk.hold():
            driver.append(b"b", b"c")
        wait_until(lambda: driver.journal.problem != "")
        assert driver.bodies() == [b"a", b"b", b"c"]
        recovered(driver, events)  # writing again takes the room, so there is no probe
        assert [path.name for path in driver.segments()] == [f"{first:020}.seg" for first in (1, 2)]
        assert driver.journal.stats().bytes == 3 * (HEADER_SIZE + 1)
        # The old pages are lost: nothing of it matters.
        with driver.segments()[0].open("r+b") as old:
            old.seek(HEADER_SIZE + 1)
            old.write(b"\0" * 50)
        disk.heal()
        assert driver.append(b"d") == [4]
        assert driver.bodies() == [b"a", b"b", b"c", b"d"]
        assert driver.bodies(after=0) == [b"a", b"b", b"c", b"d"]
        assert after_a_crash(driver, tmp_path / "two", events) == [b"a", b"b", b"c", b"d"]
        events.one("journal tail cut off")
        driver.journal.release(4, {})
        wait_until(lambda: driver.segments() == [])  # at once, but when it is being synced
        assert driver.journal.stats().bytes == 0


def test_with_interval_a_full_segment_that_cannot_be_synced_refuses_the_next_batch_only(
    tmp_path: Path, disk: Disk, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_EVERY", 1000.0)
    with Driver(tmp_path, sync="interval", segment_bytes=130) as driver:
        driver.append(b"a")
        driver.append(b"b")
        driver.append(b"c")
        disk.fail("fdatasync")
        assert driver.refused(b"d" * 10) == [BROKEN]
        recovered(driver, events)
        disk.heal()
        assert driver.append(b"e") == [4]
        assert driver.bodies() == [b"a", b"b", b"c", b"e"]
    events.take("journal may not be on the disk")
    with Driver(tmp_path) as driver:
        assert driver.bodies() == [b"a", b"b", b"c", b"e"]
    events.one("journal tail cut off")


def test_a_last_sync_that_fails_is_said(tmp_path: Path, disk: Disk, events: Events) -> None:
    driver = Driver(tmp_path, sync="off")
    driver.append(b"a")
    driver.append(b"b")
    disk.fail("fsync")
    driver.close()
    assert events.one("journal may not be on the disk")["error"] == "Input/output error"


# The cursor


def test_a_release_that_cannot_be_written_gives_nothing_up_and_is_tried_again(
    tmp_path: Path, disk: Disk, events: Events
) -> None:
    with Driver(tmp_path) as driver:
        driver.append(b"a", b"b")
        disk.fail("fdatasync")
        assert not driver.journal.release(1, {"n": 1})
        assert not driver.journal.release(2, {"n": 2})
        assert driver.journal.released == 0
        assert len(driver.segments()) == 1
        assert events.one("journal cursor cannot be written")["error"] == "Input/output error"
        disk.heal()
        wait_until(lambda: driver.journal.released == 2)
        wait_until(lambda: driver.segments() == [])
        events.one("journal cursor can be written again")
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(2, {"n": 2})


def test_a_segment_that_cannot_be_deleted_is_deleted_by_the_next_start(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with Driver(tmp_path) as driver:
        driver.append(b"a")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            assert driver.journal.release(1, {})
        assert events.one("journal segment cannot be deleted")["log_level"] == "warning"
    with Driver(tmp_path) as driver:
        assert driver.segments() == []
        assert driver.append(b"b") == [2]


# A real limit


def test_at_a_real_limit_of_the_file_size_it_refuses_and_goes_on_when_that_is_lifted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.journal.limited", str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["refusal"] == "The journal cannot be written: File too large"
    assert result["released_at_the_limit"]
    assert result["read"] == result["acknowledged"]
    assert 0 < result["at_the_limit"] < result["acknowledged"]
    with Driver(tmp_path) as driver:
        assert [int(record.body[:8]) for record in driver.read(max_bytes=1 << 20)] == result["numbers"]


def remove_segments(driver: Driver) -> None:
    for path in driver.segments():
        path.unlink()


def replace_directory(driver: Driver) -> None:
    driver.directory.rename(driver.directory.with_name("elsewhere"))
    driver.directory.mkdir()


@contextlib.contextmanager
def unwatched(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Otherwise it may be repaired before the next batch."""
    with monkeypatch.context() as patch:
        patch.setattr(driver.journal._writer, "_check_files", lambda: None)
        driver.append(b"")  # a look that was at work is over
        yield


@pytest.mark.parametrize("remove", [remove_segments, replace_directory])
def test_removed_files_are_noticed_before_the_next_answer_and_restored(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch, remove: Callable[[Driver], None]
) -> None:
    bodies = [b"%d" % n * 100 for n in range(9)]
    with Driver(tmp_path / "one", segment_bytes=300) as driver:
        driver.append(*bodies)
        assert driver.journal.release(2, {"totals": 1})
        assert len(driver.segments()) > 2
        wait_until(lambda: all(segment._fd >= 0 or segment._spare >= 0 for segment in driver.journal._state.segments))
        with unwatched(driver, monkeypatch):
            remove(driver)
            assert "were removed" in driver.refused(b"refused")[0]
        wait_until(lambda: driver.journal.problem == "")
        driver.append(b"later")
        assert driver.bodies() == [*bodies[2:], b"", b"later"]
        assert after_a_crash(driver, tmp_path / "copy", events) == [*bodies[2:], b"", b"later"]
        with Driver(tmp_path / "copy") as again:
            assert again.checkpoint == Checkpoint(2, {"totals": 1})
    assert events.one("journal files removed")["directory"] == str(driver.directory)
    assert events.one("journal files restored")["log_level"] == "info"


def test_batches_are_refused_until_a_removed_directory_is_there_again(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Driver(tmp_path / "one") as driver:
        driver.append(b"a", b"b")
        with unwatched(driver, monkeypatch):
            elsewhere = driver.directory.rename(tmp_path / "elsewhere")
            assert driver.refused(b"c") == [f"The journal's files in {driver.directory} were removed"]
        wait_until(lambda: "cannot be restored: No such file or directory" in driver.journal.problem)
        assert "cannot be restored" in driver.refused(b"d")[0]
        elsewhere.rename(driver.directory)
        wait_until(lambda: driver.journal.problem == "")
        driver.append(b"e")
        assert after_a_crash(driver, tmp_path / "copy", events) == [b"a", b"b", b"", b"e"]
    events.one("journal files removed")


def test_a_removed_file_is_noticed_without_a_request(tmp_path: Path, events: Events) -> None:
    with Driver(tmp_path / "one") as driver:
        driver.append(b"a")
        driver.journal.release(0, {"totals": 1})
        for path in [*driver.segments(), driver.directory / "cursor"]:
            path.unlink()
            wait_until(path.exists)
            wait_until(lambda: driver.journal.problem == "")
        assert after_a_crash(driver, tmp_path / "copy", events) == [b"a"]
    assert len(events.take("journal files removed")) == 2


def test_a_segment_of_which_nothing_is_left_is_said_to_be_lost(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "HELD", 0)
    with Driver(tmp_path / "one", segment_bytes=300) as driver:
        driver.append(*[b"%d" % n * 100 for n in range(6)])
        driver.journal.close(5)
    monkeypatch.setattr(writer, "HELD", 100)
    monkeypatch.setattr(Segment, "hold", lambda self: None)
    with Driver(tmp_path / "one", segment_bytes=300) as driver:
        first, *others = driver.segments()
        first.unlink()
        wait_until(lambda: any(line["event"] == "journal records lost" for line in events.captured))
        wait_until(lambda: driver.journal.problem == "")
        assert len(driver.bodies()) == 6 - 2
        assert driver.segments() == others
    events.one("journal files removed")
    assert (events.one("journal records lost")["first"], driver.journal.released) == (1, 2)
