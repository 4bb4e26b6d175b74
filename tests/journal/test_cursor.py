"""After any crash the cursor is the old one or the new one, and a write needs no free space."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.journal.tools import Disk, flip
from tornado_persist.errors import StartError
from tornado_persist.journal import Inspection, Journal
from tornado_persist.journal.cursor import HALF, Checkpoint, Cursor, CursorDamaged

STATE = {"accepted": {"task": 12}, "sink": {"tasks.jsonl": 3456}, "名": "值"}
#: As if the journal had all its records, or none.
ALL, NONE = 1, None
SECTOR, SECTORS = 512, 6


@pytest.fixture
def cursor(tmp_path: Path) -> Cursor:
    cursor = Cursor(tmp_path)
    cursor.write(Checkpoint(4, {}))
    cursor.write(Checkpoint(5, STATE))
    return cursor


def again(cursor: Cursor) -> Cursor:
    """The cursor as the next process reads it."""
    return Cursor(cursor.path.parent)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert Cursor(tmp_path).read(ALL) is None


@pytest.mark.parametrize("halves", [(3, 2), (2, 3), (12, 12)])
def test_one_of_a_later_version_ends_the_start_and_stays(tmp_path: Path, halves: tuple[int, int]) -> None:
    (tmp_path / "journal").mkdir()
    cursor = Cursor(tmp_path / "journal")
    cursor.write(Checkpoint(0, STATE))
    content = cursor.path.read_bytes()
    parts = (content[:HALF], content[HALF:])
    later = b"".join(part.replace(b"cursor 2", b"cursor %d" % n)[:HALF] for part, n in zip(parts, halves, strict=True))
    cursor.path.write_bytes(later)
    journal = Journal(tmp_path / "journal", tmp_path / "damaged")
    with pytest.raises(StartError, match=f"cursor has format {max(halves)}, which this version .* does not know"):
        journal.open()
    assert cursor.path.read_bytes() == later
    with pytest.raises(StartError, match="does not know"):
        Inspection(tmp_path / "journal")


def test_what_was_written_last_is_read(cursor: Cursor) -> None:
    for seq in range(6, 10):
        assert cursor.read(NONE) == again(cursor).read(NONE) == Checkpoint(seq - 1, STATE)
        assert not cursor.torn
        cursor.write(Checkpoint(seq, STATE))


def test_a_new_process_goes_on_with_the_other_half(cursor: Cursor) -> None:
    for seq in range(6, 10):
        again(cursor).write(Checkpoint(seq, STATE))
        assert again(cursor).read(NONE) == Checkpoint(seq, STATE)


def test_writing_needs_one_sync_and_no_room(cursor: Cursor, disk: Disk) -> None:
    before = cursor.path.stat()
    assert before.st_blocks * 512 >= 2 * HALF
    for seq in range(6, 12):
        cursor.write(Checkpoint(seq, STATE))
        after = cursor.path.stat()
        assert (after.st_ino, after.st_size, after.st_blocks) == (before.st_ino, before.st_size, before.st_blocks)
    assert (disk.count["fdatasync"], disk.count["fsync"]) == (6, 0)
    assert os.listdir(cursor.path.parent) == ["cursor"]  # noqa: PTH208


def test_a_state_larger_than_a_half_is_kept_and_so_is_its_room(cursor: Cursor) -> None:
    large = {"x": "y" * 3 * HALF}
    for seq in (6, 7):
        cursor.write(Checkpoint(seq, large))
        assert again(cursor).read(NONE) == Checkpoint(seq, large)
    inode = cursor.path.stat().st_ino
    for seq, state in ((8, {}), (9, large)):
        cursor.write(Checkpoint(seq, state))
        assert again(cursor).read(NONE) == Checkpoint(seq, state)
    assert cursor.path.stat().st_ino == inode


@given(written=st.lists(st.booleans(), min_size=SECTORS, max_size=SECTORS), torn=st.integers(0, SECTOR))
def test_a_crash_during_a_write_leaves_the_old_one_or_the_new_one(
    tmp_path_factory: pytest.TempPathFactory, written: list[bool], torn: int
) -> None:
    """Of the half that was written some sectors may be on the disk, and others in part."""
    checkpoints = {seq: Checkpoint(seq, {"n": seq, "x": "y" * (SECTORS - 1) * SECTOR}) for seq in (4, 5, 6)}
    cursor = Cursor(tmp_path_factory.mktemp("cursor"))
    cursor.write(checkpoints[4])
    cursor.write(checkpoints[5])
    found = bytearray(cursor.path.read_bytes())
    cursor.write(checkpoints[6])
    after = cursor.path.read_bytes()
    for start in (0, HALF):
        for sector, whole in enumerate(written):
            part = slice(start + sector * SECTOR, start + sector * SECTOR + (SECTOR if whole else torn))
            found[part] = after[part]
    cursor.path.write_bytes(found)
    assert again(cursor).read(oldest=6) in (checkpoints[5], checkpoints[6])
    again(cursor).write(Checkpoint(7, {}))
    last = again(cursor)
    assert (last.read(NONE), last.torn) == (Checkpoint(7, {}), False)


def halves(cursor: Cursor) -> dict[int, int]:
    """Where the checkpoints 4 and 5 lie in the file."""
    content = cursor.path.read_bytes()
    return {seq: content.index(b'"seq":%d' % seq) // HALF * HALF for seq in (4, 5)}


@pytest.mark.parametrize(("spoilt", "left"), [(5, Checkpoint(4, {})), (4, Checkpoint(5, STATE))])
def test_a_flipped_bit_anywhere_in_a_half_is_noticed(cursor: Cursor, spoilt: int, left: Checkpoint) -> None:
    content = cursor.path.read_bytes()
    start = halves(cursor)[spoilt]
    for offset in range(len(content[start : start + HALF].rstrip())):
        flip(cursor.path, start + offset, 4)
        found = again(cursor)
        assert (found.read(left.seq + 1), found.torn) == (left, True)
        # What followed it is gone, so it was not the last one, or that is unknown.
        for oldest in (left.seq + 2, NONE):
            with pytest.raises(CursorDamaged, match="a half of it"):
                found.read(oldest)
        cursor.path.write_bytes(content)


def test_a_file_cut_off_anywhere_is_noticed(cursor: Cursor) -> None:
    content = cursor.path.read_bytes()
    for length in (*range(0, 300, 7), *range(300, 2 * HALF, 1021), 2 * HALF - 1):
        cursor.path.write_bytes(content[:length])
        with pytest.raises(CursorDamaged):
            again(cursor).read(NONE)
        again(cursor).write(Checkpoint(6, {}))
        assert again(cursor).read(ALL) == Checkpoint(6, {})


@pytest.mark.parametrize("call", ["fdatasync", "writev"])
def test_when_the_disk_fails_the_old_one_stays_and_the_same_half_is_written_again(
    cursor: Cursor, disk: Disk, call: str
) -> None:
    before = halves(cursor)
    old = cursor.path.read_bytes()[before[5] : before[5] + HALF]
    disk.fail(call, written=20)
    for seq in (6, 7):
        with pytest.raises(OSError, match="Input/output error"):
            cursor.write(Checkpoint(seq, {}))
        # The one on the disk is not touched, even if the system shows the other one as well.
        assert cursor.path.read_bytes()[before[5] : before[5] + HALF] == old
    disk.heal()
    cursor.write(Checkpoint(8, {}))
    assert again(cursor).read(NONE) == Checkpoint(8, {})


@pytest.mark.parametrize("call", ["fsync", "writev"])
def test_a_new_file_that_cannot_be_written_leaves_the_old_one(cursor: Cursor, disk: Disk, call: str) -> None:
    disk.fail(call, written=20)
    with pytest.raises(OSError, match="Input/output error"):
        cursor.write(Checkpoint(6, {"x": "y" * HALF}))
    assert again(cursor).read(NONE) == Checkpoint(5, STATE)
    disk.heal()
    cursor.write(Checkpoint(7, {"x": "y" * HALF}))
    assert again(cursor).read(NONE) == Checkpoint(7, {"x": "y" * HALF})


def test_what_cannot_be_read_now_is_not_written_over(cursor: Cursor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(OSError, match="Input/output error"):
            again(cursor).write(Checkpoint(6, {}))
    assert again(cursor).read(NONE) == Checkpoint(5, STATE)


def test_a_deleted_file_is_created_again(cursor: Cursor) -> None:
    cursor.path.unlink()
    cursor.write(Checkpoint(6, STATE))
    assert again(cursor).read(NONE) == Checkpoint(6, STATE)
