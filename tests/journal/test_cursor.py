"""The cursor is the old one or the new one, whatever happens, and asks for no room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.journal.tools import Disk, flip
from tornado_persist.journal.cursor import SIZE, Checkpoint, Cursor, CursorDamaged

STATE = {"accepted": {"task": 12}, "sink": {"tasks.jsonl": 3456}, "名": "值"}


@pytest.fixture
def cursor(tmp_path: Path) -> Cursor:
    cursor = Cursor(tmp_path)
    cursor.prepare()
    cursor.write(Checkpoint(5, STATE))
    return cursor


def inodes(cursor: Cursor) -> set[int]:
    return {cursor.path.stat().st_ino, cursor.reserve.stat().st_ino}


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert Cursor(tmp_path).read() is None


def test_what_was_written_last_is_read(cursor: Cursor) -> None:
    assert cursor.read() == Checkpoint(5, STATE)
    cursor.write(Checkpoint(6, {}))
    assert Cursor(cursor.path.parent).read() == Checkpoint(6, {})


def test_writing_goes_round_between_two_files_that_have_their_blocks(cursor: Cursor) -> None:
    # What a full disk leaves: no new inode and no new block are ever asked for.
    cursor.write(Checkpoint(6, STATE))
    before, blocks = inodes(cursor), cursor.reserve.stat().st_blocks
    assert blocks * 512 >= SIZE
    for seq in range(7, 12):
        cursor.write(Checkpoint(seq, STATE))
        assert inodes(cursor) == before
        assert cursor.path.stat().st_blocks == cursor.reserve.stat().st_blocks == blocks
    assert sorted(os.listdir(cursor.path.parent)) == ["cursor", "cursor.reserve"]  # noqa: PTH208


def test_a_state_larger_than_the_reserve_is_kept_and_so_is_its_room(cursor: Cursor) -> None:
    large = {"x": "y" * 3 * SIZE}
    for seq in (6, 7):
        cursor.write(Checkpoint(seq, large))
        assert cursor.read() == Checkpoint(seq, large)
    cursor.write(Checkpoint(8, {}))
    assert cursor.read() == Checkpoint(8, {})
    assert cursor.path.stat().st_size > 3 * SIZE


def test_a_flipped_bit_anywhere_in_it_is_noticed(cursor: Cursor) -> None:
    content = cursor.path.read_bytes()
    for offset in range(len(content.rstrip())):
        flip(cursor.path, offset, 4)
        with pytest.raises(CursorDamaged):
            cursor.read()
        cursor.path.write_bytes(content)


def test_cut_off_anywhere_it_is_noticed(cursor: Cursor) -> None:
    content = cursor.path.read_bytes().rstrip()
    for length in range(len(content)):
        cursor.path.write_bytes(content[:length])
        with pytest.raises(CursorDamaged):
            cursor.read()


@pytest.mark.parametrize("call", ["fsync", "writev"])
def test_when_the_disk_fails_the_old_one_stays(cursor: Cursor, disk: Disk, call: str) -> None:
    disk.fail(call)
    with pytest.raises(OSError, match="Input/output error"):
        cursor.write(Checkpoint(6, {}))
    assert cursor.read() == Checkpoint(5, STATE)
    disk.heal()
    cursor.write(Checkpoint(7, {}))
    assert cursor.read() == Checkpoint(7, {})


@pytest.mark.parametrize("crash", ["after link", "after the first rename", "before the reserve"])
def test_a_crash_amid_the_renames_leaves_a_cursor_and_a_reserve(cursor: Cursor, crash: str) -> None:
    replaced = cursor.path.with_name("cursor.old")
    if crash == "after link":
        replaced.hardlink_to(cursor.path)
    elif crash == "after the first rename":
        cursor.reserve.rename(replaced)
    else:
        cursor.reserve.unlink()
    again = Cursor(cursor.path.parent)
    assert again.read() == Checkpoint(5, STATE)
    again.prepare()
    assert again.reserve.stat().st_size == SIZE
    assert not replaced.exists()
    again.write(Checkpoint(6, {}))
    assert again.read() == Checkpoint(6, {})


def test_a_reserve_that_is_the_cursor_itself_is_not_written_into(cursor: Cursor, disk: Disk) -> None:
    cursor.reserve.unlink()
    cursor.reserve.hardlink_to(cursor.path)
    disk.fail("fsync")
    with pytest.raises(OSError, match="Input/output error"):
        cursor.write(Checkpoint(6, {}))
    assert cursor.read() == Checkpoint(5, STATE)


def test_without_hard_links_it_works_as_well(cursor: Cursor, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*args: object, **kwargs: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    for seq in (6, 7):
        cursor.write(Checkpoint(seq, STATE))
        assert cursor.read() == Checkpoint(seq, STATE)
        assert cursor.reserve.stat().st_size == SIZE
