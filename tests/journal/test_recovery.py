"""A start, case by case: whole records are replayed, each damaged one is reported once and costs no other."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from zlib import crc32

import pytest

from tests.journal.tools import T0, Disk, Driver, Events, fill, flip, layout
from tornado_persist.errors import StartError
from tornado_persist.journal import HEADER_SIZE, Checkpoint, Interrupted, Journal
from tornado_persist.journal.cursor import HALF
from tornado_persist.journal.record import encode, to_microseconds

BODIES = [b"%d:" % n + b"x" * (10 + n) for n in range(1, 10)]
FIELDS = {
    "magic": 0, "version": 4, "kind": 5, "padding": 6, "rows": 8, "seq": 12,
    "at": 20, "length": 28, "header checksum": 32, "checksum": 36, "body": HEADER_SIZE, "end of body": HEADER_SIZE + 9,
}  # fmt: skip
PLACES = {"first": 0, "middle": 4, "last": 8}

Where = tuple[Path, int, int]


@pytest.fixture
def segments(tmp_path: Path) -> list[Path]:
    """Nine records of growing size, three to a segment."""
    found = fill(tmp_path, *BODIES, segment_bytes=3 * (HEADER_SIZE + 20))
    assert [len(layout(path)) for path in found] == [3, 3, 3]
    return found


def where(segments: list[Path], index: int) -> Where:
    """Segment, offset and size of a record."""
    segment = segments[index // 3]
    return segment, *layout(segment)[index % 3]


def without(*indexes: int) -> list[bytes]:
    return [body for index, body in enumerate(BODIES) if index not in indexes]


def damaged(directory: Path) -> list[Path]:
    return sorted((directory / "damaged").iterdir())


def quiet_start(directory: Path, bodies: list[bytes], **options: object) -> None:
    """One more start replays the same, copies nothing, and (the fixture sees to it) says nothing."""
    before = damaged(directory)
    with Driver(directory, **options) as driver:
        assert driver.bodies() == bodies
    assert damaged(directory) == before


# A flipped bit


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", FIELDS)
def test_a_flipped_bit_costs_its_record_alone(
    tmp_path: Path, segments: list[Path], events: Events, field: str, place: str
) -> None:
    index = PLACES[place]
    segment, offset, size = where(segments, index)
    flip(segment, offset + FIELDS[field], 3)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(index)
        assert driver.journal.found.records == 8
        assert driver.journal.stats().records == 8
        assert driver.append(b"next") == [10]
        assert driver.bodies() == [*without(index), b"next"]
        driver.journal.release(10, {})
        assert driver.journal.stats().records == 0
        assert driver.segments() == []
    line = events.one("journal record damaged")
    assert (line["log_level"], line["segment"], line["offset"], line["bytes"]) == ("error", segment.name, offset, size)
    known = field in ("checksum", "body", "end of body")
    assert (line.get("seq"), line.get("rows")) == ((index + 1, 1) if known else (None, None))
    (copy,) = damaged(tmp_path)
    assert copy.name == f"{segment.stem}-{offset}.bin"
    assert copy.stat().st_size == size


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", ["magic", "body"])
def test_damage_is_reported_and_copied_once(
    tmp_path: Path, segments: list[Path], events: Events, field: str, place: str
) -> None:
    index = PLACES[place]
    segment, offset, size = where(segments, index)
    flip(segment, offset + FIELDS[field])
    content = segment.read_bytes()[offset : offset + size]
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(index)
    events.one("journal record damaged")
    assert damaged(tmp_path)[0].read_bytes() == content
    quiet_start(tmp_path, without(index))
    quiet_start(tmp_path, without(index))


def test_every_record_may_be_damaged(tmp_path: Path, segments: list[Path], events: Events) -> None:
    for index in range(9):
        segment, offset, _ = where(segments, index)
        flip(segment, offset + HEADER_SIZE)
    with Driver(tmp_path) as driver:
        assert driver.read() == []
        assert [line["seq"] for line in events.take("journal record damaged")] == list(range(1, 10))
        assert driver.append(b"next") == [10]
        assert driver.bodies() == [b"next"]
        # Nothing of them is left to be released.
        assert [path.name for path in driver.segments()] == ["00000000000000000010.seg"]
    assert len(damaged(tmp_path)) == 9
    quiet_start(tmp_path, [b"next"])


def test_neighbours_with_bad_headers_are_one_damage(tmp_path: Path, segments: list[Path], events: Events) -> None:
    (first, _), (second, _), (third, _) = layout(segments[1])
    flip(segments[1], first)
    flip(segments[1], second)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(3, 4)
    line = events.one("journal record damaged")
    assert (line["offset"], line["bytes"]) == (first, third - first)
    quiet_start(tmp_path, without(3, 4))


def test_bad_bodies_of_neighbours_are_two_damages(tmp_path: Path, segments: list[Path], events: Events) -> None:
    for index in (7, 8):
        segment, offset, _ = where(segments, index)
        flip(segment, offset + HEADER_SIZE + 2)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(7, 8)
        assert driver.append(b"next") == [10]
    assert [line["seq"] for line in events.take("journal record damaged")] == [8, 9]
    quiet_start(tmp_path, [*without(7, 8), b"next"])


def test_a_flipped_bit_in_what_is_released_is_noticed_and_costs_nothing(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(2, {})
    segment, offset, _ = where(segments, 0)
    flip(segment, offset + HEADER_SIZE)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES[2:]
        assert driver.journal.stats().records == 7
    assert events.one("journal record damaged")["seq"] == 1


def test_damage_next_to_what_is_released_is_released_with_it(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(3, {"n": 1})
    segment, offset, _ = where(segments, 3)
    flip(segment, offset)
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(4, {"n": 1})
        assert driver.bodies() == BODIES[4:]
        assert driver.journal.stats().records == 5
    events.one("journal record damaged")
    quiet_start(tmp_path, BODIES[4:])


# Bytes that are missing, or too many


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_a_whole_segment_of_other_bytes_costs_that_segment(
    tmp_path: Path, segments: list[Path], events: Events, segment: int
) -> None:
    size = segments[segment].stat().st_size
    segments[segment].write_bytes(b"\xff" * size)
    lost = range(3 * segment, 3 * segment + 3)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(*lost)
        assert driver.append(b"next")[0] >= 8
        assert driver.bodies() == [*without(*lost), b"next"]
    line = events.one("journal record damaged")
    assert (line["offset"], line["bytes"]) == (0, size)
    quiet_start(tmp_path, [*without(*lost), b"next"])


def test_zeros_inside_a_segment_are_damage(tmp_path: Path, segments: list[Path], events: Events) -> None:
    segment, offset, size = where(segments, 7)
    data = segment.read_bytes()
    segment.write_bytes(data[:offset] + bytes(size) + data[offset + size :])
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(7)
    assert events.one("journal record damaged")["bytes"] == size
    quiet_start(tmp_path, without(7))


def test_bytes_lost_from_a_body_do_not_cost_the_next_record(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    segment, offset, size = where(segments, 7)
    data = segment.read_bytes()
    segment.write_bytes(data[: offset + HEADER_SIZE + 2] + data[offset + HEADER_SIZE + 7 :])
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(7)
    assert events.one("journal record damaged")["bytes"] == size - 5


def test_bytes_lost_from_the_last_body_but_one_do_not_look_torn(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    segment, offset, _ = where(segments, 8)
    body = b"y" * 500
    head = encode(10, 2, to_microseconds(T0), 1, body)
    # Its length reaches past the end of the file, and the header of the next record is inside it.
    data = segment.read_bytes()
    segment.write_bytes(data[:offset] + head + body[:20] + encode(11, 2, to_microseconds(T0), 1, b"z") + b"z")
    with Driver(tmp_path) as driver:
        assert driver.bodies() == [*BODIES[:8], b"z"]
    line = events.one("journal record damaged")
    assert (line["seq"], line["bytes"]) == (10, HEADER_SIZE + 20)


def test_bytes_too_many_are_damage(tmp_path: Path, segments: list[Path], events: Events) -> None:
    segment, offset, _ = where(segments, 4)
    data = segment.read_bytes()
    segment.write_bytes(data[:offset] + b"what is this" + data[offset:])
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        assert driver.journal.stats().records == 9
    assert events.one("journal record damaged")["bytes"] == 12
    quiet_start(tmp_path, BODIES)


def test_a_header_is_found_wherever_it_lies_between_two_reads(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segment,) = fill(tmp_path / "0", b"a" * 150, b"b")
    for window in range(HEADER_SIZE, HEADER_SIZE + 120):
        monkeypatch.setattr("tornado_persist.journal.scanner.WINDOW", window)
        directory = tmp_path / str(window)
        shutil.copytree(tmp_path / "0", directory)
        flip(directory / "journal" / segment.name, 0)
        with Driver(directory) as driver:
            assert driver.bodies() == [b"b"]
        assert events.one("journal record damaged")["bytes"] == HEADER_SIZE + 150


def test_a_block_that_the_disk_cannot_read_costs_the_records_in_it(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [b"%d" % n * 3000 for n in range(8)]
    fill(tmp_path, *bodies)
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        if offset < 12288 and offset + size > 8192:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    with Driver(tmp_path) as driver:
        # Bytes 8192 to 12287: the third record and the fourth, and the fifth does not begin before 12160.
        assert driver.bodies() == [body for n, body in enumerate(bodies) if n not in (2, 3, 4)]
    events.take("journal record damaged")
    quiet_start(tmp_path, [body for n, body in enumerate(bodies) if n not in (2, 3, 4)])


# The tail


def test_a_last_record_cut_short_anywhere_is_cut_off(tmp_path: Path, events: Events) -> None:
    (segment,) = fill(tmp_path / "whole", *BODIES)
    data = segment.read_bytes()
    offset, size = layout(segment)[-1]
    for length in range(offset, offset + size + 1):
        directory = tmp_path / str(length)
        shutil.copytree(tmp_path / "whole", directory)
        (directory / "journal" / segment.name).write_bytes(data[:length])
        with Driver(directory) as driver:
            whole = length == offset + size
            assert driver.bodies() == (BODIES if whole else BODIES[:8])
            assert (directory / "journal" / segment.name).stat().st_size == (length if whole else offset)
            assert driver.append(b"next") == [10 if whole else 9]
        cut = events.take("journal tail cut off")
        assert [line["bytes"] for line in cut] == ([length - offset] if offset < length < offset + size else [])
        assert damaged(directory) == []


@pytest.mark.parametrize("zeros", [1, HEADER_SIZE - 1, HEADER_SIZE, 5000, 3 << 20])
def test_zeros_at_the_end_are_cut_off(tmp_path: Path, segments: list[Path], events: Events, zeros: int) -> None:
    size = segments[2].stat().st_size
    with segments[2].open("ab") as file:
        file.write(bytes(zeros))
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        assert segments[2].stat().st_size == size
    line = events.one("journal tail cut off")
    assert (line["log_level"], line["bytes"], line["reason"]) == ("warning", zeros, "torn by a crash")
    quiet_start(tmp_path, BODIES)


def test_the_cut_is_durable_before_anything_else_is_written(
    tmp_path: Path, segments: list[Path], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    inode = segments[2].stat().st_ino
    for name in ("fsync", "ftruncate"):

        def call(fd: int, *args: int, name: str = name, real: object = getattr(os, name)) -> None:
            if os.fstat(fd).st_ino == inode:
                calls.append(name)
            real(fd, *args)  # type: ignore[operator]

        monkeypatch.setattr(os, name, call)
    with segments[2].open("ab") as file:
        file.write(b"torn")
    with Driver(tmp_path):
        assert calls[:2] == ["ftruncate", "fsync"]
    events.one("journal tail cut off")


def test_what_a_killed_process_left_is_made_durable(
    tmp_path: Path, segments: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    Journal(tmp_path / "journal", tmp_path / "damaged").open()
    assert segments[2].stat().st_ino in synced
    assert (tmp_path / "journal").stat().st_ino in synced


def test_other_bytes_at_the_end_are_damage_and_stay(tmp_path: Path, segments: list[Path], events: Events) -> None:
    with segments[2].open("ab") as file:
        file.write(b"\0" * 50 + b"!" + b"\0" * 50)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        # A record may have been there, and its number with it.
        assert driver.append(b"next") == [11]
        assert driver.bodies() == [*BODIES, b"next"]
        assert driver.journal.stats().records == 10
    assert events.one("journal record damaged")["bytes"] == 101
    quiet_start(tmp_path, [*BODIES, b"next"])


def test_a_segment_cut_short_that_is_not_the_last_is_damaged(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    offset = layout(segments[1])[2][0]
    os.truncate(segments[1], offset + 30)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(5)
    line = events.one("journal record damaged")
    assert (line["offset"], line["bytes"]) == (offset, 30)
    quiet_start(tmp_path, without(5))


# Segments


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_segment_is_named_and_passed_over(
    tmp_path: Path, segments: list[Path], events: Events, which: int
) -> None:
    segments[which].unlink()
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(*range(3 * which, 3 * which + 3))
        assert driver.journal.stats().records == 6
        driver.journal.release(9, {})
        assert driver.segments() == []
    line = events.one("journal records missing")
    assert (line["log_level"], line["first"], line["last"]) == ("error", 3 * which + 1, 3 * which + 3)


def test_records_missing_at_the_end_of_a_segment_are_named(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    os.truncate(segments[0], layout(segments[0])[1][0])
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(1, 2)
    line = events.one("journal records missing")
    assert (line["first"], line["last"]) == (2, 3)


def test_an_empty_segment_is_removed(tmp_path: Path, segments: list[Path], events: Events) -> None:
    (tmp_path / "journal" / "00000000000000000010.seg").touch()
    with Driver(tmp_path) as driver:
        assert driver.segments() == segments
        assert driver.bodies() == BODIES
        assert driver.append(b"next") == [10]
    assert events.one("journal segment without a record removed")["log_level"] == "warning"
    quiet_start(tmp_path, [*BODIES, b"next"])


def test_an_emptied_segment_is_a_gap(tmp_path: Path, segments: list[Path], events: Events) -> None:
    os.truncate(segments[1], 0)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == without(3, 4, 5)
    events.one("journal segment without a record removed")
    assert events.one("journal records missing")["last"] == 6


def test_segments_whose_contents_were_swapped_are_set_aside(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    first, second = segments[0].read_bytes(), segments[1].read_bytes()
    segments[0].write_bytes(second)
    segments[1].write_bytes(first)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES[6:]
    lines = events.take("journal record damaged")
    assert [(line["offset"], line["bytes"]) for line in lines] == [(0, len(second)), (0, len(first))]
    assert [path.read_bytes() for path in damaged(tmp_path)] == [second, first]
    quiet_start(tmp_path, BODIES[6:])


def test_records_that_are_there_twice_are_replayed_once(tmp_path: Path, segments: list[Path], events: Events) -> None:
    data = segments[2].read_bytes()
    segments[2].write_bytes(data + data)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        assert driver.append(b"next")[0] >= 10
        assert driver.bodies()[:-1] == BODIES
    line = events.one("journal record damaged")
    assert (line["offset"], line["bytes"]) == (len(data), len(data))
    assert line["reason"] == "the sequence numbers do not belong here"


def test_a_copy_of_a_segment_under_another_number_is_set_aside(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    shutil.copy(segments[0], tmp_path / "journal" / "00000000000000000050.seg")
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        assert driver.append(b"next") == [51]
        assert driver.bodies() == [*BODIES, b"next"]
    events.one("journal record damaged")
    line = events.one("journal records missing")
    assert (line["first"], line["last"]) == (10, 49)


def test_what_the_next_segment_begins_with_is_void_in_the_one_before(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    size = segments[1].stat().st_size
    with segments[1].open("ab") as file:
        file.write(encode(7, 2, to_microseconds(T0), 1, b"refused") + b"refused" + b"half a record")
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
        assert segments[1].stat().st_size == size
    assert events.one("journal tail cut off")["reason"] == "void: the next segment begins before it"
    quiet_start(tmp_path, BODIES)


def test_foreign_files_are_left_alone(tmp_path: Path, segments: list[Path], events: Events) -> None:
    names = ["1.seg", "00000000000000000000.seg", "notes.txt", "00000000000000000001.seg~"]
    for name in names:
        (tmp_path / "journal" / name).write_text("x")
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
    lines = events.take("journal ignores a file that is not its own")
    assert sorted(Path(line["file"]).name for line in lines) == sorted(names)
    assert all((tmp_path / "journal" / name).read_text() == "x" for name in names)


# The cursor


@pytest.mark.parametrize("content", [b"", b"garbage", b"\0" * 2 * HALF, b"persistd-cursor 2 00000000 2\n{}\n"])
def test_a_damaged_cursor_is_moved_and_all_there_is_is_replayed(
    tmp_path: Path, segments: list[Path], events: Events, content: bytes
) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(5, {"n": 1})
    cursor = tmp_path / "journal" / "cursor"
    cursor.write_bytes(content)
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(3, {})
        assert driver.bodies() == BODIES[3:]
    line = events.one("journal cursor damaged")
    assert (line["log_level"], line["replay_from"]) == ("error", 4)
    assert [path.read_bytes() for path in damaged(tmp_path)] == [content]
    quiet_start(tmp_path, BODIES[3:])


def spoil(cursor: Path, seq: int) -> None:
    """Change the half that says this."""
    cursor.write_bytes(cursor.read_bytes().replace(b'"seq":%d,' % seq, b'"seq":0,'))


def test_a_cursor_that_a_crash_has_torn_is_the_one_before(tmp_path: Path, segments: list[Path], events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(1, {"n": 1})
        driver.journal.release(2, {"n": 2})
    spoil(tmp_path / "journal" / "cursor", 2)
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(1, {"n": 1})
        assert driver.bodies() == BODIES[1:]
    line = events.one("journal cursor torn by a crash")
    assert (line["log_level"], line["replay_from"]) == ("warning", 2)
    assert damaged(tmp_path) == []
    quiet_start(tmp_path, BODIES[1:])


def test_the_cursor_before_is_not_gone_back_to_once_its_records_are_gone(
    tmp_path: Path, segments: list[Path], events: Events
) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(1, {"n": 1})
        driver.journal.release(5, {"n": 2})
    spoil(tmp_path / "journal" / "cursor", 5)
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(3, {}), "a position of long ago would cut off what is not replayed"
        assert driver.bodies() == BODIES[3:]
    assert events.one("journal cursor damaged")["replay_from"] == 4
    assert len(damaged(tmp_path)) == 1
    quiet_start(tmp_path, BODIES[3:])


def test_a_cursor_that_is_a_directory_is_moved_too(tmp_path: Path, segments: list[Path], events: Events) -> None:
    cursor = tmp_path / "journal" / "cursor"
    cursor.unlink()
    cursor.mkdir()
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
    events.one("journal cursor damaged")
    quiet_start(tmp_path, BODIES)


def test_a_missing_cursor_where_there_was_one_is_said(tmp_path: Path, segments: list[Path], events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.journal.release(3, {"n": 1})
    (tmp_path / "journal" / "cursor").unlink()
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(3, {})
        assert driver.bodies() == BODIES[3:]
    assert events.one("journal cursor missing")["replay_from"] == 4
    quiet_start(tmp_path, BODIES[3:])


def test_a_cursor_ahead_of_the_journal_stands(tmp_path: Path, segments: list[Path], events: Events) -> None:
    with Driver(tmp_path / "ahead") as driver:
        driver.append(*[b"x"] * 20)
        driver.journal.release(20, {"n": 1})
    shutil.copy(tmp_path / "ahead" / "journal" / "cursor", tmp_path / "journal" / "cursor")
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(20, {"n": 1})
        assert driver.read() == []
        assert driver.segments() == []
        assert driver.append(b"next") == [21]
    line = events.one("journal ends before its cursor")
    assert (line["log_level"], line["last"], line["cursor"]) == ("warning", 9, 20)
    quiet_start(tmp_path, [b"next"])


# What a start cannot work with


def start_error(directory: Path) -> str:
    with pytest.raises(StartError) as caught:
        Journal(directory / "journal", directory / "damaged").open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_named_like_a_segment_ends_the_start(tmp_path: Path, segments: list[Path]) -> None:
    name = "00000000000000000099.seg"
    (tmp_path / "journal" / name).mkdir()
    assert name in start_error(tmp_path)


def test_a_segment_that_leads_nowhere_ends_the_start(tmp_path: Path, segments: list[Path]) -> None:
    (tmp_path / "journal" / "00000000000000000099.seg").symlink_to("nowhere")
    assert "99.seg cannot be used: No such file" in start_error(tmp_path)


def test_a_segment_that_may_not_be_read_ends_the_start(
    tmp_path: Path, segments: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def open_(path: object, flags: int, *args: int) -> int:
        if path == segments[1]:  # root may read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    assert start_error(tmp_path) == f"journal {segments[1]} cannot be used: Permission denied"


def test_a_directory_without_write_permission_ends_the_start(
    tmp_path: Path, segments: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "no write permission" in start_error(tmp_path)


def test_a_file_in_the_place_of_the_directory_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("")
    assert "cannot be used" in start_error(tmp_path)


def test_a_cursor_that_cannot_be_made_durable_ends_the_start_and_stays(
    tmp_path: Path, segments: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = tmp_path / "journal" / "cursor"
    real, content = os.fsync, cursor.read_bytes()

    def fsync(fd: int) -> None:
        if os.path.sameopenfile(fd, spare):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with cursor.open("rb") as file:
        spare = file.fileno()
        monkeypatch.setattr(os, "fsync", fsync)
        assert "cannot be used: Input/output error" in start_error(tmp_path)
    assert (cursor.read_bytes(), damaged(tmp_path)) == (content, [])


@pytest.mark.parametrize(("version", "kind"), [(2, 2), (1, 3)])
def test_a_record_of_a_later_version_ends_the_start_and_is_not_taken_for_damage(
    tmp_path: Path, segments: list[Path], version: int, kind: int
) -> None:
    segment, offset, _ = where(segments, 4)
    data = bytearray(segment.read_bytes())
    data[offset + 4], data[offset + 5] = version, kind
    data[offset + 32 : offset + 36] = crc32(data[offset : offset + 32]).to_bytes(4, "little")
    segment.write_bytes(data)
    assert f"{segment.name} holds a record of format {version}.{kind}" in start_error(tmp_path)


def test_with_the_disk_full_it_starts_and_what_waits_is_read(
    tmp_path: Path, segments: list[Path], events: Events, disk: Disk
) -> None:
    (tmp_path / "journal" / "cursor").unlink()
    disk.fail("writev", error=errno.ENOSPC)
    with Driver(tmp_path) as driver:
        assert driver.bodies() == BODIES
    events.one("journal cursor cannot be written now")


def test_damage_that_cannot_be_copied_is_said_and_its_segment_is_kept_whole(
    tmp_path: Path, segments: list[Path], events: Events, disk: Disk
) -> None:
    segment, offset, _ = where(segments, 4)
    flip(segment, offset + HEADER_SIZE)
    content = segment.read_bytes()
    disk.fail("writev", error=errno.ENOSPC)
    with Driver(tmp_path) as driver:
        disk.heal()
        line = events.one("journal record damaged")
        assert (line["saved"], line["not_saved"]) == (None, "No space left on device")
        driver.journal.release(9, {})
        assert driver.segments() == []
    assert [path.read_bytes() for path in damaged(tmp_path)] == [content]


def test_a_new_journal_does_not_overwrite_an_older_copy(tmp_path: Path, events: Events) -> None:
    for letter in (b"a", b"b"):
        (segment,) = fill(tmp_path, letter * 10, b"c")
        flip(segment, HEADER_SIZE)
        with Driver(tmp_path) as driver:
            assert driver.bodies() == [b"c"]
        events.one("journal record damaged")
        shutil.rmtree(tmp_path / "journal")
    assert [path.name for path in damaged(tmp_path)] == [f"{1:020}-0.1.bin", f"{1:020}-0.bin"]


# Damage that comes while it runs


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("field", ["magic", "length", "body"])
def test_damage_found_while_reading_is_set_aside_the_same_way(
    tmp_path: Path, segments: list[Path], events: Events, field: str, place: str
) -> None:
    index = PLACES[place]
    segment, offset, size = where(segments, index)
    with Driver(tmp_path) as driver:
        assert driver.journal.found.records == 9
        flip(segment, offset + FIELDS[field])
        assert driver.bodies() == without(index)
        line = events.one("journal record damaged")
        assert (line["segment"], line["offset"], line["bytes"]) == (segment.name, offset, size)
        assert driver.journal.stats().records == 8
        assert driver.bodies(after=0) == without(index)
        # It is never read, so the release of the records before it releases it too.
        seqs = [seq for seq in range(1, 10) if seq != index + 1]
        driver.journal.release(seqs[-1], {})
        assert driver.journal.stats().records == 0
        assert driver.segments() == []
        driver.append(b"next")
    quiet_start(tmp_path, [b"next"])


def test_a_segment_cut_short_while_it_runs_is_passed_over(tmp_path: Path, segments: list[Path], events: Events) -> None:
    with Driver(tmp_path) as driver:
        os.truncate(segments[1], layout(segments[1])[1][0] + 10)
        assert driver.bodies() == without(4, 5)
    assert events.take("journal record damaged")


def test_a_start_that_is_told_to_stop_ends_between_two_records_and_the_next_one_finds_all(tmp_path: Path) -> None:
    fill(tmp_path, *[b"%d" % n for n in range(9)])
    journal, asked = Journal(tmp_path / "journal", tmp_path / "damaged"), iter([False, False, True])
    with pytest.raises(Interrupted):
        journal.open(lambda: next(asked))
    with Driver(tmp_path) as driver:
        assert driver.bodies() == [b"%d" % n for n in range(9)]
