"""The JSONL sink alone: its lines, and failing disks."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
import structlog

from tests.sinks.limits import file_size_limit
from tests.sinks.readers import read_jsonl
from tornado_persist.errors import BatchRejected, SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks.jsonl import JSONLSink
from tornado_persist.testing import SECOND, T0, complete, session, task


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[JSONLSink]:
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    sink.open()
    yield sink
    sink.close()


def lines(sink: JSONLSink, kind: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sink.path(kind).read_bytes().split(b"\n")[:-1]]


def full(number: int = errno.ENOSPC) -> Callable[..., Any]:
    """A system call on a full disk."""

    def fail(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# Lines


def test_a_line_holds_the_fields_that_were_sent_and_the_two_times(sink: JSONLSink) -> None:
    later = datetime(2025, 10, 1, tzinfo=UTC)
    sink.write(Batch([], [task("t", target_text=None, end_time=T0, at=T0, updated_at=later)]))
    (content,) = lines(sink, "task")
    assert content == {
        **task("t", target_text=None),
        "end_time": "2025-09-30T16:35:00.123456+00:00",
        "created_at": "2025-09-30T16:35:00.123456+00:00",
        "updated_at": "2025-10-01T00:00:00.000000+00:00",
    }


def test_a_later_update_is_another_line_and_folding_gives_the_state(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("t", target_text="x", confidence=0.5)]))
    sink.write(Batch([], [task("t", target_text=None, at=T0 + SECOND)]))
    assert len(lines(sink, "task")) == 2
    expected = complete("task", task("t", confidence=0.5, updated_at=T0 + SECOND))
    assert read_jsonl(sink.directory)["task"] == {("s", "t"): expected}


def test_lines_are_compact_utf_8_in_the_order_of_the_batch(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("b", source_text="你好\u2028\n\x85"), task("a")]))
    content = sink.path("task").read_bytes()
    assert "你好\u2028\\n\x85".encode() in content
    assert b": " not in content.replace(b"16:35", b"")
    assert content.count(b"\n") == 2
    assert [row["task_id"] for row in lines(sink, "task")] == ["b", "a"]


def test_a_row_that_json_cannot_hold_is_rejected_and_nothing_of_its_batch_stays(sink: JSONLSink) -> None:
    with pytest.raises(BatchRejected, match="a task cannot be written as JSON"):
        sink.write(Batch([session()], [*(task(f"t{i}") for i in range(2000)), task("t", source_text="\ud800")]))
    assert sink.path("session").stat().st_size == sink.path("task").stat().st_size == 0
    sink.write(Batch([session()]))


# Places


def test_the_directory_is_made_below_data_dir_with_its_parents(tmp_path: Path) -> None:
    sink = JSONLSink(JSONLSink.Settings(dir="a/b"), tmp_path / "data")
    sink.open()
    sink.close()
    assert sorted(path.name for path in (tmp_path / "data/a/b").iterdir()) == ["sessions.jsonl", "tasks.jsonl"]


def test_an_absolute_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    sink = JSONLSink(JSONLSink.Settings(dir=str(tmp_path / "abs")), tmp_path / "data")
    sink.open()
    assert sink.describe() == f"JSON lines in {tmp_path / 'abs'}"
    sink.close()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("value", ["", "a\0b"])
def test_a_directory_that_no_system_has_is_a_wrong_setting(value: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="dir"):
        JSONLSink.Settings.model_validate({"dir": value})


def test_a_new_object_touches_nothing(tmp_path: Path) -> None:
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    sink.close()
    assert not list(tmp_path.iterdir())


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "jsonl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/tasks.jsonl").symlink_to(tmp_path / "far.jsonl")
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    sink.open()
    sink.write(Batch([session()], [task()]))
    sink.write(Batch([session()], [task()]))
    sink.close()
    assert (tmp_path / "elsewhere/sessions.jsonl").read_bytes().count(b"\n") == 2
    assert (tmp_path / "far.jsonl").read_bytes().count(b"\n") == 2


def _file_for_directory(path: Path) -> None:
    path.write_text("")


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "missing")


def _directory_for_file(path: Path) -> None:
    (path / "tasks.jsonl").mkdir(parents=True)


def _fifo_for_file(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "sessions.jsonl")


@pytest.mark.parametrize(
    ("make", "code", "name"),
    [
        (_file_for_directory, "ENOTDIR", "jsonl/sessions.jsonl"),
        (_dangling_link, "EEXIST", "jsonl"),
        (_directory_for_file, "EISDIR", "jsonl/tasks.jsonl"),
        (_fifo_for_file, "EINVAL", "jsonl/sessions.jsonl"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, make: Callable[[Path], None], code: str, name: str
) -> None:
    make(tmp_path / "jsonl")
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    with pytest.raises(SinkUnavailable) as failure:
        sink.open()
    assert failure.value.code == code
    assert str(failure.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(failure.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="the tests run as root, whom no permission keeps from writing")
def test_a_directory_without_write_permission_is_unavailable_until_it_has_it(tmp_path: Path) -> None:
    (tmp_path / "jsonl").mkdir(mode=0o555)
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    with pytest.raises(SinkUnavailable) as failure:
        sink.open()
    assert failure.value.code == "EACCES"
    (tmp_path / "jsonl").chmod(0o755)
    sink.open()
    sink.close()


def test_opening_a_read_only_file_fails_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", full(errno.EROFS))
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    with pytest.raises(SinkUnavailable) as failure:
        sink.open()
    assert failure.value.code == "EROFS"


def test_a_closed_sink_is_unavailable(sink: JSONLSink) -> None:
    position = sink.position()
    sink.close()
    for call in (
        sink.ping,
        sink.position,
        lambda: sink.write(Batch([session()])),
        lambda: sink.find_sessions(["s"]),
        lambda: sink.rewind(position),
    ):
        with pytest.raises(SinkUnavailable, match="not open"):
            call()


def test_open_leaks_no_descriptor_when_it_fails_or_is_repeated(tmp_path: Path) -> None:
    _directory_for_file(tmp_path / "jsonl")
    broken, fine = (JSONLSink(JSONLSink.Settings(dir=name), tmp_path) for name in ("jsonl", "fine"))
    fine.open()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        fine.open()
        with pytest.raises(SinkUnavailable):
            broken.open()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    fine.close()


# Files that change under the service


def test_a_file_that_is_renamed_is_created_again(sink: JSONLSink) -> None:
    sink.write(Batch([session("s1")], [task("t1")]))
    sink.path("task").rename(sink.directory / "tasks.1.jsonl")
    sink.write(Batch([session("s2")], [task("t2")]))
    assert [row["task_id"] for row in lines(sink, "task")] == ["t2"]
    assert len(lines(sink, "session")) == 2


def test_a_directory_that_is_removed_is_created_again(sink: JSONLSink) -> None:
    for path in (sink.path("session"), sink.path("task")):
        path.unlink()
    sink.directory.rmdir()
    sink.ping()
    sink.write(Batch([session("s")]))
    assert len(lines(sink, "session")) == 1


def test_a_file_that_is_truncated_goes_on_from_its_new_end(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("t1"), task("t2")]))
    os.truncate(sink.path("task"), 0)
    sink.write(Batch([], [task("t3")]))
    assert [row["task_id"] for row in lines(sink, "task")] == ["t3"]


# A write that fails


def test_a_write_that_stops_in_the_middle_is_cut_off(sink: JSONLSink) -> None:
    sink.write(Batch([session("s1")], [task("t1")]))
    before = read_jsonl(sink.directory)
    batch = Batch([session("s2")], [task(f"u{i}") for i in range(3000)])
    with file_size_limit(50_000), pytest.raises(SinkUnavailable) as failure:
        sink.write(batch)
    assert failure.value.code == "EFBIG"
    assert str(failure.value) == f"{sink.path('task')}: File too large"
    assert read_jsonl(sink.directory) == before
    sink.write(batch)
    assert len(lines(sink, "task")) == 3001


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_whose_fsync_fails_leaves_nothing(
    sink: JSONLSink, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls: list[int] = []

    def second_fails(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:
            full(number)()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", second_fails)
        with pytest.raises(SinkUnavailable) as failure:
            sink.write(Batch([session()], [task()]))
    assert failure.value.code == errno.errorcode[number]
    assert read_jsonl(sink.directory) == {"session": {}, "task": {}}


@pytest.mark.parametrize("reopen", [True, False])
def test_what_cannot_be_cut_off_at_once_is_cut_later(
    sink: JSONLSink, monkeypatch: pytest.MonkeyPatch, reopen: bool
) -> None:
    sink.write(Batch([session("s1")], [task("t1")]))
    before = read_jsonl(sink.directory)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full(errno.EIO))
        patch.setattr(os, "ftruncate", full(errno.EIO))
        for _ in range(2):  # the second one fails before it writes anything
            with pytest.raises(SinkUnavailable):
                sink.write(Batch([session("s2")], [task("t2")]))
    assert len(lines(sink, "task")) == 2
    if reopen:
        sink.close()
        sink.open()
        assert read_jsonl(sink.directory) == before
    sink.write(Batch([session("s3")], [task("t3")]))
    assert [row["task_id"] for row in lines(sink, "task")] == ["t1", "t3"]
    assert [row["session_id"] for row in lines(sink, "session")] == ["s1", "s3"]


def test_every_file_is_fsynced_before_write_returns(sink: JSONLSink, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[Path, int] = {}
    fsync = os.fsync

    def note(fd: int) -> None:
        fsync(fd)
        synced[Path(f"/proc/self/fd/{fd}").readlink()] = os.fstat(fd).st_size

    monkeypatch.setattr(os, "fsync", note)
    sink.write(Batch([session()], [task()]))
    assert synced == {sink.path(kind): sink.path(kind).stat().st_size for kind in ("session", "task")}


def test_new_files_and_directories_are_fsynced_into_their_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(Path(f"/proc/self/fd/{fd}").readlink()))
    sink = JSONLSink(JSONLSink.Settings(dir="a/b"), tmp_path)
    sink.open()
    sink.close()
    assert synced >= {tmp_path, tmp_path / "a", tmp_path / "a/b"}


# After a crash


@pytest.mark.parametrize("torn", [b"{", b'{"task_id":"x"', b"x" * 200_000, b"\0" * 5000, '{"é":"你'.encode()[:-1]])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_first_write_cuts_a_torn_line_off_with_a_warning_and_opening_leaves_it(
    tmp_path: Path, torn: bytes, rows: int
) -> None:
    path = tmp_path / "jsonl/tasks.jsonl"
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    sink.open()
    sink.write(Batch([], [task(f"t{i}") for i in range(rows)]))
    sink.close()
    before = path.read_bytes()
    path.write_bytes(before + torn)
    with structlog.testing.capture_logs() as events:
        sink.open()
        assert path.read_bytes() == before + torn, "another service may just be writing it"
        sink.write(Batch([], [task("new")]))
        sink.write(Batch([], [task("newer")]))
    sink.close()
    assert path.read_bytes().startswith(before)
    assert [row["task_id"] for row in lines(sink, "task")][rows:] == ["new", "newer"]
    assert events == [
        {
            "event": "torn line cut off",
            "log_level": "warning",
            "sink": "jsonl",
            "file": str(path),
            "bytes": len(torn),
        }
    ]


def test_a_whole_object_without_a_newline_is_never_cut_off(tmp_path: Path) -> None:
    sink = JSONLSink(JSONLSink.Settings(), tmp_path)
    sink.open()
    sink.write(Batch([], [task("t")]))
    path = sink.path("task")
    os.truncate(path, path.stat().st_size - 1)
    sink.write(Batch([], [task("u")]))
    os.truncate(path, path.stat().st_size - 1)
    sink.close()
    sink.open()
    position = sink.position()
    assert position["files"]["task"]["bytes"] == path.stat().st_size
    sink.write(Batch([], [task("v")]))
    assert [row["task_id"] for row in lines(sink, "task")] == ["t", "u", "v"]
    sink.rewind(position)
    sink.write(Batch([], [task("w")]))
    assert [row["task_id"] for row in lines(sink, "task")] == ["t", "u", "w"]
    sink.close()


def test_a_row_has_its_own_line_when_another_program_cuts_the_file_in_the_middle_of_one(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("t1"), task("t2")]))
    path = sink.path("task")
    os.truncate(path, path.stat().st_size - 20)
    with structlog.testing.capture_logs() as events:
        sink.write(Batch([], [task("t3")]))
    first, half, last = path.read_bytes().splitlines()
    assert json.loads(first)["task_id"] == "t1"
    assert half.startswith(b'{"task_id":"t2"'), "what another program left is not ours to cut off"
    assert json.loads(last)["task_id"] == "t3"
    assert [event["event"] for event in events] == ["last line had no newline: another program has changed the file"]


def test_a_second_service_on_the_same_directory_is_refused_and_changes_nothing(sink: JSONLSink, tmp_path: Path) -> None:
    sink.write(Batch([], [task("t1")]))
    position = sink.position()
    sink.write(Batch([], [task("t2")]))
    before = sink.path("task").read_bytes()
    other = JSONLSink(JSONLSink.Settings(), tmp_path)
    other.open()  # to look, as `persistd check` does
    other.ping()
    for act in (lambda: other.write(Batch([], [task("x")])), lambda: other.rewind(position), other.position):
        with pytest.raises(SinkUnavailable, match="another service writes to it"):
            act()
    assert sink.path("task").read_bytes() == before
    sink.close()
    other.write(Batch([], [task("t3")]))
    assert [row["task_id"] for row in lines(other, "task")] == ["t1", "t2", "t3"]
    other.close()


def test_a_batch_that_is_replayed_after_half_of_it_was_written_gives_the_same_state(sink: JSONLSink) -> None:
    batch = Batch([session("s", total_tasks=1)], [task("t", target_text="x")])
    sink.write(Batch(batch.sessions))  # its tasks fell to the crash
    sink.write(batch)
    once = read_jsonl(sink.directory)
    assert once["session"][("s",)] == complete("session", batch.sessions[0])
    sink.write(batch)
    assert read_jsonl(sink.directory) == once


# The position


def again(sink: JSONLSink) -> JSONLSink:
    """The sink as the next process opens it."""
    sink.close()
    newer = JSONLSink(sink.settings, sink.data_dir)
    newer.open()
    return newer


def test_the_position_is_the_length_of_both_files_at_the_commit(sink: JSONLSink) -> None:
    for batch in (Batch(), Batch([session("s")]), Batch([session("s")], [task("t")])):
        sink.write(batch)
        position = json.loads(json.dumps(sink.position()))
        assert position["directory"] == str(sink.directory)
        for kind in ("session", "task"):
            assert position["files"][kind]["bytes"] == sink.path(kind).stat().st_size


def test_the_position_leaves_out_a_torn_line_and_cuts_nothing(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("t")]))
    expected = sink.position()
    with sink.path("task").open("ab") as file:
        file.write(b'{"task_id":')
    size = sink.path("task").stat().st_size
    newer = again(sink)
    assert newer.position() == expected
    assert newer.path("task").stat().st_size == size
    newer.close()


def test_the_position_leaves_out_what_is_still_to_be_cut_off(sink: JSONLSink, monkeypatch: pytest.MonkeyPatch) -> None:
    sink.write(Batch([session("s")], [task("t")]))
    expected = sink.position()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full(errno.EIO))
        patch.setattr(os, "ftruncate", full(errno.EIO))
        with pytest.raises(SinkUnavailable):
            sink.write(Batch([session("s2")], [task("t2")]))
    assert len(lines(sink, "task")) == 2
    assert sink.position() == expected


def test_a_rewind_cuts_off_durably_what_was_written_later_and_says_so(
    sink: JSONLSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.write(Batch([session("s1")], [task("t1")]))
    position = sink.position()
    before = {kind: sink.path(kind).read_bytes() for kind in ("session", "task")}
    sink.write(Batch([], [task("t2"), task("t3")]))
    with sink.path("task").open("ab") as file:
        file.write(b'{"task_id":"torn')
    surplus = sink.path("task").stat().st_size - len(before["task"])
    newer = again(sink)
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    for name in ("ftruncate", "fsync"):
        monkeypatch.setattr(os, name, noted(name))
    with structlog.testing.capture_logs() as events:
        newer.rewind(position)
        newer.write(Batch([], [task("t2")]))
    assert calls[:2] == ["ftruncate", "fsync"]
    assert [event.pop("event") for event in events] == ["lines cut off to write them again"]
    assert events == [
        {"log_level": "warning", "sink": "jsonl", "file": str(newer.path("task")), "bytes": surplus},
    ]
    assert newer.path("session").read_bytes() == before["session"]
    assert [row["task_id"] for row in lines(newer, "task")] == ["t1", "t2"]
    newer.close()


def test_a_rewind_to_the_end_does_and_says_nothing(sink: JSONLSink) -> None:
    sink.write(Batch([session("s")], [task("t")]))
    before = read_jsonl(sink.directory)
    newer = again(sink)
    with structlog.testing.capture_logs() as events:
        newer.rewind(newer.position())
    assert events == []
    assert read_jsonl(newer.directory) == before
    newer.close()


def test_a_rewind_to_the_beginning_empties_the_files(sink: JSONLSink) -> None:
    position = sink.position()
    sink.write(Batch([session("s")], [task("t")]))
    newer = again(sink)
    newer.rewind(position)
    assert read_jsonl(newer.directory) == {"session": {}, "task": {}}
    newer.close()


def _rotated_by_rename(path: Path) -> None:
    path.rename(path.with_suffix(".1"))


def _rotated_by_copy(path: Path) -> None:
    path.with_suffix(".1").write_bytes(path.read_bytes())
    os.truncate(path, 0)


def _removed(path: Path) -> None:
    path.unlink()  # the next file may well get its inode


@pytest.mark.parametrize("rotate", [_rotated_by_rename, _rotated_by_copy, _removed])
@pytest.mark.parametrize("rows", [1, 100], ids=["shorter", "longer"])
def test_a_rewind_leaves_a_file_that_was_rotated_since_with_a_warning(
    sink: JSONLSink, rotate: Callable[[Path], None], rows: int
) -> None:
    sink.write(Batch([], [task("old", context="x" * 2000)]))
    position = sink.position()
    rotate(sink.path("task"))
    sink.write(Batch([], [task(f"t{i}") for i in range(rows)]))
    content = sink.path("task").read_bytes()
    newer = again(sink)
    with structlog.testing.capture_logs() as events:
        newer.rewind(position)
    assert newer.path("task").read_bytes() == content
    (event,) = events
    assert event["log_level"] == "warning"
    assert event["file"] == str(newer.path("task"))
    assert event["event"].startswith("file is not as it was left")
    newer.close()


def test_a_rewind_leaves_a_file_that_took_the_place_of_an_empty_one(sink: JSONLSink) -> None:
    position = sink.position()
    _rotated_by_rename(sink.path("task"))
    sink.write(Batch([], [task("t")]))
    newer = again(sink)
    with structlog.testing.capture_logs() as events:
        newer.rewind(position)
    assert [event["bytes"] for event in events] == [newer.path("task").stat().st_size]
    assert len(lines(newer, "task")) == 1
    newer.close()


@pytest.mark.parametrize("length", [0, 5])
def test_a_rewind_leaves_a_file_that_became_shorter_with_a_warning(sink: JSONLSink, length: int) -> None:
    sink.write(Batch([], [task("t")]))
    position = sink.position()
    os.truncate(sink.path("task"), length)
    newer = again(sink)
    with structlog.testing.capture_logs() as events:
        newer.rewind(position)
    assert [event["log_level"] for event in events] == ["warning"]
    assert newer.path("task").stat().st_size == length
    newer.close()


def test_a_rewind_finds_its_file_again_after_it_was_restored_from_a_copy(sink: JSONLSink) -> None:
    sink.write(Batch([], [task("t1")]))
    position = sink.position()
    sink.write(Batch([], [task("t2")]))
    sink.close()
    copy = sink.directory / "copy"
    copy.write_bytes(sink.path("task").read_bytes())
    copy.rename(sink.path("task"))
    newer = again(sink)
    newer.rewind(position)
    assert [row["task_id"] for row in lines(newer, "task")] == ["t1"]
    newer.close()


def test_a_position_in_another_directory_is_ignored(sink: JSONLSink, tmp_path: Path) -> None:
    position = sink.position()
    sink.close()
    sink.directory.rename(tmp_path / "moved")
    moved = JSONLSink(JSONLSink.Settings(dir="moved"), tmp_path)
    moved.open()
    moved.write(Batch([], [task("t")]))
    with structlog.testing.capture_logs() as events:
        moved.rewind(position)
        moved.rewind({"directory": 5})
    assert events == []
    assert len(lines(moved, "task")) == 1
    moved.close()


def test_a_rewind_that_the_disk_refuses_is_an_outage(sink: JSONLSink, monkeypatch: pytest.MonkeyPatch) -> None:
    position = sink.position()
    sink.write(Batch([], [task("t")]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full(errno.EIO))
        with pytest.raises(SinkUnavailable) as failure:
            sink.rewind(position)
    assert failure.value.code == "EIO"
    sink.rewind(position)
    assert lines(sink, "task") == []


def test_find_sessions_forgets_what_a_rewind_cuts_off(sink: JSONLSink) -> None:
    sink.write(Batch([session("s1")]))
    position = sink.position()
    sink.write(Batch([session("s2")]))
    assert sink.find_sessions(["s1", "s2"]) == {"s1", "s2"}
    sink.rewind(position)
    assert sink.find_sessions(["s1", "s2"]) == {"s1"}


# Questions


def test_find_sessions_passes_over_damaged_lines_with_a_warning(sink: JSONLSink) -> None:
    sink.write(Batch([session("s1")]))
    with sink.path("session").open("ab") as file:
        file.write(b"not JSON\n[]\n{}\n\xff\n")
    sink.write(Batch([session("s2")]))
    with structlog.testing.capture_logs() as events:
        assert sink.find_sessions(["s1", "s2", "s3"]) == {"s1", "s2"}
        assert sink.find_sessions(["s1"]) == {"s1"}
    assert [(event["log_level"], event["lines"]) for event in events] == [("warning", 4)]


def test_find_sessions_knows_nothing_of_a_write_that_failed(sink: JSONLSink, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sink.find_sessions(["s"]) == set()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full())
        with pytest.raises(SinkUnavailable):
            sink.write(Batch([session("s")]))
    assert sink.find_sessions(["s"]) == set()
    sink.write(Batch([session("s")]))
    assert sink.find_sessions(["s"]) == {"s"}


def test_ping_tells_of_a_full_or_read_only_disk(sink: JSONLSink, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, available, code in ((0, 0, "ENOSPC"), (os.ST_RDONLY, 100, "EROFS")):
        disk = SimpleNamespace(f_flag=flags, f_blocks=1000, f_bavail=available)
        monkeypatch.setattr(os, "statvfs", lambda path, disk=disk: disk)
        with pytest.raises(SinkUnavailable) as failure:
            sink.ping()
        assert failure.value.code == code


def test_files_obey_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        sink = JSONLSink(JSONLSink.Settings(), tmp_path)
        sink.open()
        sink.close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(sink.path("task").stat().st_mode) == 0o640
