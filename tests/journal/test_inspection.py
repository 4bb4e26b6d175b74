"""An inspection sees what a start would, changes nothing, and copes with a journal that changes meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.journal.tools import Driver, Events, fill, flip, layout
from tests.process import AtWork
from tornado_persist.errors import InputError, StartError
from tornado_persist.journal import Begin, Damage, Entry, Gap, Inspection, Tail
from tornado_persist.journal.record import HEADER_SIZE

BODIES = [b"body %d " % n * 20 for n in range(9)]


def look(directory: Path) -> list[object]:
    return [item for item in Inspection(directory / "journal").items() if not isinstance(item, Begin)]


def bodies(items: Sequence[object]) -> list[bytes]:
    return [bytes(item.body) for item in items if isinstance(item, Entry)]


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_undamaged_journal_is_its_records_and_stays_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path, *BODIES, segment_bytes=600)
    before = files(tmp_path)
    journal = Inspection(tmp_path / "journal")
    found = [item for item in journal.items() if isinstance(item, Entry)]
    assert [entry.seq for entry in found] == list(range(1, 10))
    assert [bytes(entry.body) for entry in found] == BODIES
    assert (journal.released, journal.problem) == (0, "")
    assert files(tmp_path) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_with_any_bits_flipped_it_finds_the_records_that_a_start_replays(
    tmp_path_factory: pytest.TempPathFactory, events: Events, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    segments = fill(directory, *BODIES, segment_bytes=600)
    for _ in range(data.draw(st.integers(0, 4))):
        segment = data.draw(st.sampled_from(segments))
        flip(segment, data.draw(st.integers(0, segment.stat().st_size - 1)), data.draw(st.integers(0, 7)))
    cut = data.draw(st.integers(0, 200))
    if cut:
        last = segments[-1].read_bytes()
        segments[-1].write_bytes(last[: max(0, len(last) - cut)])
    before = files(directory)
    try:
        found = look(directory)
    except StartError:  # a version that does not exist yet: the start ends as well
        with pytest.raises(StartError):
            Driver(directory)
        return
    assert files(directory) == before
    with Driver(directory) as driver:
        assert driver.bodies() == bodies(found)
        assert bool(list(driver.damaged_dir.glob("*.bin"))) == any(isinstance(item, Damage) for item in found)
    events.captured.clear()  # what a start says of damage is tested elsewhere


def test_damage_is_named_and_numbers_that_nothing_explains_are_missing(tmp_path: Path) -> None:
    segments = fill(tmp_path, *BODIES, segment_bytes=600)
    offset, size = layout(segments[0])[0]
    flip(segments[0], offset + HEADER_SIZE)
    segments[1].unlink()
    found = [item for item in look(tmp_path) if not isinstance(item, Entry)]
    assert found == [
        Damage(segments[0].name, offset, size, "the checksum does not hold", 1, "task", 1),
        Gap(1, 1, damaged=True),
        Gap(int(segments[1].stem), int(segments[2].stem) - 1, damaged=False),
    ]


def test_a_torn_end_is_a_tail_and_what_a_next_segment_makes_void_too(tmp_path: Path) -> None:
    (segment,) = fill(tmp_path, *BODIES)
    segment.write_bytes(segment.read_bytes()[:-5])
    offset, size = layout_until_torn(segment)
    assert look(tmp_path)[-1] == Tail(offset, size, torn=True)
    (tmp_path / "journal" / f"{9:020}.seg").write_bytes(b"")
    assert look(tmp_path)[-1] == Tail(offset, size, torn=False)


def layout_until_torn(segment: Path) -> tuple[int, int]:
    size = HEADER_SIZE + len(BODIES[-1])
    return size * 8, segment.stat().st_size - size * 8


def test_what_is_released_is_known_by_the_cursor_or_else_all_counts(tmp_path: Path, events: Events) -> None:
    with Driver(tmp_path) as driver:
        driver.append(*BODIES)
        for seq in (3, 4):
            driver.journal.release(seq, {})
    journal = Inspection(tmp_path / "journal")
    assert (journal.released, journal.problem, journal.torn) == (4, "", False)
    cursor = tmp_path / "journal" / "cursor"
    content = cursor.read_bytes().replace(b'"seq":4', b'"seq":5')
    cursor.write_bytes(content)
    journal = Inspection(tmp_path / "journal")
    assert (journal.released, journal.problem, journal.torn) == (3, "", True)
    cursor.write_bytes(content.replace(b'"seq":3', b'"seq":5'))
    journal = Inspection(tmp_path / "journal")
    assert (journal.released, journal.problem) == (0, "its checksum does not hold")


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing/journal: cannot be read: No such file or directory"):
        Inspection(tmp_path / "nothing" / "journal")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    os.mkfifo(tmp_path / "journal" / f"{1:020}.seg")
    with pytest.raises(InputError, match="is no regular file"):
        look(tmp_path)


def test_a_segment_deleted_before_it_is_read_was_released(tmp_path: Path) -> None:
    with Driver(tmp_path, segment_bytes=600) as driver:
        driver.append(*BODIES)
        journal = Inspection(tmp_path / "journal")
        walk = journal.items()
        next(walk)
        driver.journal.release(7, {})
        found = [item for item in walk if not isinstance(item, Begin)]
    assert not [item for item in found if not isinstance(item, Entry)]
    assert journal.released == 7
    assert bodies(found)[-2:] == BODIES[7:]


def test_a_failed_write_that_is_cut_off_while_it_is_read_is_no_damage(tmp_path: Path) -> None:
    first, second = fill(tmp_path, *BODIES[:4], segment_bytes=2 * (HEADER_SIZE + len(BODIES[0])))
    whole = first.stat().st_size
    with first.open("ab") as file:
        file.write(b"half of a group" * 10)
    second.unlink()
    items = Inspection(tmp_path / "journal").items()
    assert isinstance(next(items), Begin)
    os.truncate(first, whole)
    found = list(items)
    assert bodies(found) == BODIES[:2]
    assert not [item for item in found if isinstance(item, Damage)]


def test_no_damage_is_seen_in_a_journal_that_is_written_and_released_meanwhile(tmp_path: Path) -> None:
    problems: list[object] = []
    seen = [0]

    def watch() -> None:
        found = look(tmp_path)
        problems.extend(item for item in found if isinstance(item, Damage | Gap))
        seqs = [item.seq for item in found if isinstance(item, Entry)]
        seen[0] += len(seqs)
        if seqs != sorted(seqs):
            problems.append(seqs)

    with Driver(tmp_path, segment_bytes=4096, sync="off") as driver, AtWork(watch):
        for _ in range(300):
            last = driver.append(*BODIES)[-1]
            if last % 5 == 0:
                driver.journal.release(last - 20, {})
    assert problems == []
    assert seen[0] > 0
