"""A start with changed or damaged files: it works, or refuses with one clear line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import pytest

from tests.process import COMMAND, PATIENCE, Persistd, environment, wait_until
from tests.rows import body, task
from tests.sinks.readers import read_sqlite
from tornado_persist.journal import Checkpoint
from tornado_persist.journal.cursor import Cursor
from tornado_persist.journal.record import HEADER_SIZE, encode

CONFIG = "[buffer]\nflush_interval = 3600\n[journal]\nsegment_bytes = 4096\n"
#: Batches of one row that wait in the journal; five or so in a segment.
BATCHES = 20
KEYS = [f"t{number:02}" for number in range(BATCHES)]
#: Refuses root what its owner may not do, as any other user is refused: takes away CAP_DAC_OVERRIDE and _READ_SEARCH.
AS_A_USER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() == 0 and (libc.prctl(24, 1, 0, 0, 0) or libc.prctl(24, 2, 0, 0, 0)):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a service that was killed with batches in its journal."""
    directory = tmp_path_factory.mktemp("left")
    with Persistd(directory, CONFIG) as service:
        for key in KEYS:
            assert service.post("task", task(key, source_text="x" * 500)).status_code == 200
        service.kill()
    return service.data_dir


@pytest.fixture
def data_dir(left: Path, tmp_path: Path) -> Path:
    """A copy of it, where :class:`Persistd` in ``tmp_path`` finds it."""
    return Path(shutil.copytree(left, tmp_path / "data"))


def segments(data_dir: Path) -> list[Path]:
    found = sorted((data_dir / "journal").glob("*.seg"))
    assert len(found) >= 3
    return found


def said(service: Persistd) -> list[tuple[str, str]]:
    """Level and event of all log lines above info."""
    assert "Traceback" not in service.log_text()
    return [(line["level"], line["event"]) for line in service.log() if line["level"] not in ("debug", "info")]


def stored(service: Persistd) -> list[str]:
    """The keys in the database after a flush; and the accounting holds."""
    service.flush()
    accounting = service.stats()["accounting"]
    assert accounting["pending"] == 0
    assert accounting["accepted"] == accounting["written"] + accounting["merged"] + accounting["rejected"]
    return sorted(id for _, id in read_sqlite(service.data_dir / "persist.db")["task"])


def goes_on(service: Persistd) -> None:
    """It accepts batches, and the next start reports nothing."""
    before = said(service)
    assert service.post("task", task("after")).status_code == 200
    service.kill()
    service.start()
    assert "after" in stored(service)
    assert said(service) == before


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x20
    path.write_bytes(content)


def test_a_torn_tail_is_cut_off_with_a_warning(tmp_path: Path, data_dir: Path) -> None:
    content = body("task", task("torn"))
    with segments(data_dir)[-1].open("ab") as file:
        file.write((encode(BATCHES + 1, 2, 0, 1, content) + content)[:-10])
    with Persistd(tmp_path, CONFIG) as service:
        assert said(service) == [("warning", "journal tail cut off")]
        assert stored(service) == KEYS
        goes_on(service)


@pytest.mark.parametrize("offset", [2, HEADER_SIZE + 100], ids=["header", "body"])
def test_a_damaged_record_is_set_aside_and_costs_itself_alone(tmp_path: Path, data_dir: Path, offset: int) -> None:
    path = segments(data_dir)[1]
    flip(path, offset)
    damaged = path.read_bytes()
    lost = int(path.stem) - 1
    with Persistd(tmp_path, CONFIG) as service:
        assert said(service) == [("error", "journal record damaged")]
        (saved,) = (data_dir / "damaged").iterdir()
        size = len(saved.read_bytes())
        assert saved.read_bytes() == damaged[:size]
        assert HEADER_SIZE + 500 < size < len(damaged) / 2
        (line,) = service.log("journal record damaged")
        assert (line["segment"], line["bytes"], line["saved"]) == (path.name, size, str(saved))
        assert stored(service) == KEYS[:lost] + KEYS[lost + 1 :]
        goes_on(service)
        assert list((data_dir / "damaged").iterdir()) == [saved]


def test_an_empty_segment_is_removed_with_a_warning(tmp_path: Path, data_dir: Path) -> None:
    (data_dir / "journal" / f"{BATCHES + 1:020}.seg").touch()
    with Persistd(tmp_path, CONFIG) as service:
        assert said(service) == [("warning", "journal segment without a record removed")]
        assert stored(service) == KEYS
        goes_on(service)


def test_a_missing_segment_is_named_and_the_others_are_replayed(tmp_path: Path, data_dir: Path) -> None:
    _, path, after = segments(data_dir)[:3]
    path.unlink()
    with Persistd(tmp_path, CONFIG) as service:
        assert said(service) == [("error", "journal records missing")]
        (line,) = service.log("journal records missing")
        assert (line["first"], line["last"]) == (int(path.stem), int(after.stem) - 1)
        assert stored(service) == KEYS[: int(path.stem) - 1] + KEYS[int(after.stem) - 1 :]
        goes_on(service)


def _garbage(cursor: Path) -> None:
    cursor.write_bytes(b"\0" * 100)


def _flipped(cursor: Path) -> None:
    content = cursor.read_bytes()
    for half in (content.index(b"seq"), content.rindex(b"seq")):
        flip(cursor, half)


def _directory(cursor: Path) -> None:
    cursor.unlink()
    cursor.mkdir()


@pytest.mark.parametrize("spoil", [_garbage, _flipped, _directory])
def test_a_cursor_that_cannot_be_read_is_moved_away_and_all_is_replayed(
    tmp_path: Path, data_dir: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(data_dir / "journal" / "cursor")
    with Persistd(tmp_path, CONFIG) as service:
        assert said(service) == [("error", "journal cursor damaged")]
        assert [path.name for path in (data_dir / "damaged").iterdir()] == ["cursor.bin"]
        assert stored(service) == KEYS
        goes_on(service)


def test_a_cursor_ahead_of_the_journal_is_reported_and_new_batches_come_after_it(
    tmp_path: Path, data_dir: Path
) -> None:
    Cursor(data_dir / "journal").write(Checkpoint(1000))
    with Persistd(tmp_path, CONFIG) as service:
        assert [level for level, _ in said(service)] == ["warning"]
        (line,) = service.log("journal ends before its cursor")
        assert (line["last"], line["cursor"]) == (BATCHES, 1000)
        assert stored(service) == [], "as far as the cursor says all is in the database"
        goes_on(service)


# Starts that are refused


def refused(directory: Path, code: int = 1, prefix: Sequence[str] = ()) -> str:
    """The one line of a start that is refused."""
    done = subprocess.run(
        [*prefix, *COMMAND, "run"],
        cwd=directory,
        env=environment(PERSISTD_SERVER__PORT="0"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("persistd: ")
    return done.stderr


def test_a_file_in_the_journals_place_refuses_the_start(tmp_path: Path, data_dir: Path) -> None:
    journal = data_dir / "journal"
    journal.rename(data_dir / "elsewhere")
    journal.touch()
    assert str(journal.relative_to(tmp_path)) in refused(tmp_path)


def test_a_directory_in_a_segments_place_refuses_the_start(tmp_path: Path, data_dir: Path) -> None:
    path = segments(data_dir)[1]
    path.unlink()
    path.mkdir()
    assert f"{path.name} cannot be used: it is no regular file" in refused(tmp_path)


def test_a_record_of_a_later_version_refuses_the_start(tmp_path: Path, data_dir: Path) -> None:
    path = segments(data_dir)[-1]
    header = bytearray(encode(BATCHES + 1, 2, 0, 1, b"{}"))
    header[4] = 2
    header[32:36] = crc32(header[:32]).to_bytes(4, "little")
    header[36:40] = crc32(header[:36] + b"{}").to_bytes(4, "little")
    with path.open("ab") as file:
        file.write(header + b"{}")
    assert "which this version of tornado-persist does not know" in refused(tmp_path)


@pytest.mark.parametrize(("name", "code"), [("journal", 1), (".", 2)])
def test_a_directory_without_write_permission_refuses_the_start(
    tmp_path: Path, data_dir: Path, name: str, code: int
) -> None:
    directory = data_dir / name
    directory.chmod(0o500)
    try:
        line = refused(tmp_path, code, prefix=(sys.executable, "-c", AS_A_USER))
    finally:
        directory.chmod(0o700)
    assert ("data_dir" if code == 2 else "journal") in line
    assert "permission" in line.lower()


def test_journal_files_removed_under_the_service_are_noticed_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    with Persistd(tmp_path, CONFIG) as service:
        acknowledged = [f"t{number:02}" for number in range(12)]
        for key in acknowledged:
            assert service.post("task", task(key, source_text="x" * 500)).status_code == 200
        directory = service.data_dir / "journal"
        wait_until(lambda: str(segments(service.data_dir)[0]) in service.open_files(), "the first segment to be held")
        shutil.rmtree(directory)
        refused = service.post("task", task("refused"))
        assert refused.status_code == 503
        assert "were removed" in refused.json()["detail"]
        health = service.http.get("/health")
        assert health.status_code == 503
        assert "were removed" in health.text
        directory.mkdir()
        wait_until(lambda: service.http.get("/health/ready").status_code == 200, "readiness")
        assert service.post("task", task("t99")).status_code == 200
        assert ("error", "journal files removed") in said(service)
        service.kill()
        service.start()
        assert stored(service) == [*acknowledged, "t99"]


def test_a_stop_during_a_long_recovery_ends_it_soon_and_loses_nothing(tmp_path: Path) -> None:
    count = 80_000
    content = body("task", task("a"))
    journal = tmp_path / "data" / "journal"
    journal.mkdir(parents=True)
    records = (encode(seq, 2, seq, 1, content) + content for seq in range(1, count + 1))
    (journal / f"{1:020}.seg").write_bytes(b"".join(records))
    with Persistd(tmp_path, CONFIG) as service:
        assert service.stats()["accounting"]["accepted"] == count
        service.kill()
        reader = service.begin()
        try:
            wait_until(lambda: (service.data_dir / "persistd.pid").read_text() == f"{service.process.pid}\n", "signals")
            assert service.stop() == 0
        finally:
            os.close(reader)
        assert len(service.log("stopped before it served; all that waits stays in the journal")) == 1
        assert len(service.log("serving")) == 1
        service.start()
        assert service.stats()["accounting"]["accepted"] == count
