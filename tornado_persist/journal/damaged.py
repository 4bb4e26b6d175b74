"""Copies damaged bytes aside, and reports them, once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from tornado_persist.files import fsync_directory, read_at, reason, write_all
from tornado_persist.journal.scanner import WINDOW, Damage
from tornado_persist.telemetry import log

logger = log.get(__name__)


class DamagedDirectory:
    """Copies of damaged bytes, for later inspection.

    A copy is named by its segment and offset. As long as it is there, the same damage is not reported again: neither
    by the next start nor by a later read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, segment: Path, damage: Damage) -> bool:
        """Copy the bytes aside, durably, and report them; False when they could not be copied."""
        error: str | None = None
        saved: Path | None = None
        try:
            saved = self._copy(segment, damage)
            if saved is None:
                return True
        except OSError as exc:
            error = reason(exc)
        facts = {"seq": damage.seq, "kind": damage.kind, "rows": damage.rows, "not_saved": error}
        logger.error(
            "journal record damaged",
            segment=damage.segment,
            offset=damage.offset,
            bytes=damage.size,
            reason=damage.reason,
            saved=str(saved) if saved else None,
            **{name: value for name, value in facts.items() if value is not None},
        )
        return error is None

    def move(self, file: Path) -> Path:
        """Take a whole file out of the journal; where it is now. Raises OSError."""
        target = next(path for path in self._names(file.name) if not path.exists())
        file.rename(target)
        fsync_directory(self.path)
        fsync_directory(file.parent)
        return target

    def find(self, segment: Path, damage: Damage) -> Path | None:
        """The copy of this damage, if there is one. Raises OSError."""
        source = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
        try:
            names = itertools.takewhile(Path.exists, self._names(f"{segment.stem}-{damage.offset}"))
            return next((target for target in names if _same(source, damage, target)), None)
        finally:
            os.close(source)

    def _copy(self, segment: Path, damage: Damage) -> Path | None:
        """None when there is a copy already."""
        if self.find(segment, damage) is not None:
            return None
        target = next(path for path in self._names(f"{segment.stem}-{damage.offset}") if not path.exists())
        source = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # It gets its name once it is whole: after a crash half a copy must not count as known.
            unfinished = self.path / "unfinished"
            fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                for offset in range(0, damage.size, WINDOW):
                    size = min(WINDOW, damage.size - offset)
                    write_all(fd, [read_at(source, damage.offset + offset, size)])
                os.fsync(fd)
            except OSError:
                unfinished.unlink()
                raise
            finally:
                os.close(fd)
            unfinished.rename(target)
            fsync_directory(self.path)
            return target
        finally:
            os.close(source)

    def _names(self, stem: str) -> Iterator[Path]:
        """``stem.bin``, then ``stem.1.bin``...: a new journal may reach the same segment and offset."""
        return (self.path / (f"{stem}.{n}.bin" if n else f"{stem}.bin") for n in itertools.count())


def _same(source: int, damage: Damage, copy: Path) -> bool:
    with copy.open("rb") as file:
        for offset in range(0, damage.size, WINDOW):
            size = min(WINDOW, damage.size - offset)
            if read_at(source, damage.offset + offset, size) != file.read(size):
                return False
        return not file.read(1)
