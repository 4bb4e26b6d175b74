"""The rows that the sink refused, as ``rejected.jsonl`` has them, and what was done about each.

The service alone writes to ``rejected.jsonl``: it knows its length, and cuts it back to that before a replay. So what
becomes of an entry is noted in a file beside it, which is only ever appended to, and which the service does not know.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from tornado_persist.cli.lines import decode
from tornado_persist.errors import InputError, PersistError
from tornado_persist.files import fsync_directory, reason
from tornado_persist.records.models import KEYS, KINDS, Fields, Kind

State: TypeAlias = Literal["open", "sending", "retried", "dropped"]

#: Seconds after which a last line without an end is one that nobody is just writing.
_GRACE = 0.2
_UNFINISHED = "the file ends within this line"


@dataclass(frozen=True, slots=True)
class Entry:
    """One refusal. ``line`` counts from 1, ``offset`` is in bytes; ``problem`` is set where the line is none.

    ``sha256`` is of the line without its end. It tells the entry for ever: a line has the microsecond of the refusal,
    so the same row, refused again, is another entry, wherever in the file it stands.
    """

    line: int
    offset: int
    sha256: str
    state: State
    found: Fields
    problem: str = ""

    @property
    def kind(self) -> Kind:
        kind: Kind = self.found["kind"]
        return kind

    @property
    def row(self) -> Fields:
        row: Fields = self.found["row"]
        return row

    @property
    def key(self) -> str:
        return str(self.row[KEYS[self.kind]])

    @property
    def code(self) -> str:
        return str(self.found.get("code", ""))

    @property
    def updated_at(self) -> datetime:
        """When the last update in it was accepted."""
        return datetime.fromisoformat(self.found["updated_at"])

    def exported(self) -> Fields:
        """As ``rejected ls --json`` shows it, and ``retry`` takes it back."""
        place = {"line": self.line, "offset": self.offset, "sha256": self.sha256, "state": self.state}
        return place | ({"problem": self.problem} if self.problem else self.found)


class Rejections:
    """Both files. Reading takes no lock; :meth:`working` keeps a second retry or drop out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settled_path = path.with_name(path.stem + ".settled.jsonl")
        self._settled: BinaryIO | None = None

    def entries(self, after: int = 0) -> list[Entry]:
        """All entries from offset ``after`` on, with the state that each is in; lines that are none too.

        Raises:
            InputError: a file cannot be read, or what was done cannot be told from the second.
        """
        entries = list(self._read(after))
        if entries and entries[-1].problem.startswith(_UNFINISHED):
            # The service may be just writing it.
            time.sleep(_GRACE)
            entries = list(self._read(after))
        notes = self._notes()
        here = {(entry.offset, entry.sha256) for entry in entries}
        states: dict[tuple[int, str], State] = {}
        moved: dict[str, State] = {}
        for offset, sha256, state in notes:
            states[offset, sha256] = state
            if (offset, sha256) not in here:
                moved[sha256] = state  # the file was shortened by hand
        return [
            replace(entry, state=states.get((entry.offset, entry.sha256)) or moved.get(entry.sha256) or "open")
            for entry in entries
        ]

    def length(self) -> int:
        """Bytes of ``rejected.jsonl``. Raises OSError."""
        return self.path.stat().st_size if self.path.exists() else 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around all calls of :meth:`note`.

        Raises:
            InputError: the second file cannot be written.
            PersistError: another retry or drop is at work.
        """
        try:
            fd = os.open(self.settled_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            raise InputError(self.settled_path, f"cannot be written: {reason(exc)}") from None
        with os.fdopen(fd, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PersistError(f"{self.path}: another retry or drop is at work") from None
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)  # a note that a crash cut short; what it was about is open
            fsync_directory(self.path.parent)
            self._settled = file
            try:
                yield
            finally:
                self._settled = None

    def note(self, entries: Iterable[Entry], state: State, **facts: Any) -> None:
        """Durably say what becomes of these. ``facts`` with the value of each entry's line where they are dicts."""
        assert self._settled is not None, "only while working"
        at = datetime.now(UTC).isoformat()
        lines = []
        for entry in entries:
            own = {name: fact.get(entry.line) if isinstance(fact, dict) else fact for name, fact in facts.items()}
            note = {"line": entry.line, "offset": entry.offset, "sha256": entry.sha256, "state": state, "at": at}
            note |= {} if entry.problem else {"kind": entry.kind, "key": entry.key}
            note |= {name: fact for name, fact in own.items() if fact is not None}
            lines.append(json.dumps(note, ensure_ascii=False) + "\n")
        try:
            self._settled.write("".join(lines).encode())
            self._settled.flush()
            os.fsync(self._settled.fileno())
        except OSError as exc:
            raise InputError(self.settled_path, f"cannot be written: {reason(exc)}") from None

    def _read(self, after: int) -> Iterator[Entry]:
        try:
            with self.path.open("rb") as file:
                offset = 0
                for number, content in enumerate(file, 1):
                    if offset >= after:
                        yield _entry(number, offset, content)
                    offset += len(content)
        except FileNotFoundError:
            if not self.path.parent.exists():
                raise InputError(self.path.parent, "there is no such directory") from None
        except OSError as exc:
            raise InputError(self.path, f"cannot be read: {reason(exc)}") from None

    def _notes(self) -> Iterator[tuple[int, str, State]]:
        """Offset, digest and state, the last state of an entry last."""
        try:
            content = self.settled_path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise InputError(self.settled_path, f"cannot be read: {reason(exc)}") from None
        # What follows the last line's end is a note that a crash cut short.
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                note = decode(line)
                yield int(note["offset"]), str(note["sha256"]), note["state"]
            except (ValueError, KeyError, TypeError):
                raise InputError(self.settled_path, "this is no note of a retry or drop", line=number) from None


def _entry(number: int, offset: int, content: bytes) -> Entry:
    text = content.removesuffix(b"\n")
    sha256 = hashlib.sha256(text).hexdigest()
    problem, found = "", Fields()
    try:
        found = decode(text)
        problem = _problem(found)
    except ValueError as exc:
        problem = str(exc)
    if problem and text == content:
        problem = f"{_UNFINISHED} ({problem})"
    return Entry(number, offset, sha256, "open", found, problem)


def _problem(found: Fields) -> str:
    """Why this is no entry; empty when it is one."""
    if found.get("kind") not in KINDS:
        return "its kind is not session or task"
    row = found.get("row")
    if not isinstance(row, dict) or not isinstance(row.get(KEYS[found["kind"]]), str):
        return f"it has no row with a {KEYS[found['kind']]}"
    try:
        aware = all(datetime.fromisoformat(found[name]).tzinfo for name in ("updated_at", "at"))
    except (KeyError, TypeError, ValueError):
        aware = False
    return "" if aware else "it does not say when it was updated and refused"
