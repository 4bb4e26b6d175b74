"""The rejected rows and what was done about each, as the commands read and note it, and the options that select some.

Only the service writes to ``rejected.jsonl``: it knows the length, and cuts the file back before a replay. So the
commands record what was done about an entry in a second file, which is only appended to; the service notes
there what a ``DELETE`` closes.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from tornado_persist.cli.command import FAILED, OK, complain
from tornado_persist.cli.lines import as_sent, decode, encode
from tornado_persist.errors import ConfigError, InputError, PersistError
from tornado_persist.files import fsync_directory, open_private, reason
from tornado_persist.records.models import KEYS, KINDS, Fields, Kind
from tornado_persist.records.rules import INVALID

State: TypeAlias = Literal["open", "sending", "retried", "dropped"]

#: Seconds after which an unfinished last line is not one that the service is still writing.
_GRACE = 0.2
_UNFINISHED = "the file ends within this line"


@dataclass(frozen=True, slots=True)
class Entry:
    """One rejected row. ``line`` counts from 1, ``offset`` is in bytes; ``problem`` is set if the line is no entry.

    ``sha256`` is of the line without its newline, and identifies the entry wherever in the file it is: a line has the
    microsecond of its rejection, so the same row, rejected again, is another entry.
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
        """As a client sends it. One that was set aside at the door is as it came, and may be no object."""
        row: Any = self.found["row"]
        if not isinstance(row, dict):
            return {}
        return row if self.code == INVALID else as_sent(row)

    @property
    def key(self) -> tuple[str, ...]:
        # A row that was set aside at the door may lack any field.
        return tuple(str(self.row.get(name, "")) for name in KEYS[self.kind])

    @property
    def shown_key(self) -> str:
        """For people: a task's is ``session_id/task_id``."""
        return "/".join(self.key)

    @property
    def code(self) -> str:
        return str(self.found.get("code", ""))

    @property
    def updated_at(self) -> datetime:
        """When the last update in it was accepted."""
        return datetime.fromisoformat(self.found["updated_at"])

    def exported(self) -> Fields:
        """As ``rejected ls --json`` prints it and ``retry --from`` reads it."""
        place = {"line": self.line, "offset": self.offset, "sha256": self.sha256, "state": self.state}
        return place | ({"problem": self.problem} if self.problem else self.found)


class Rejections:
    """Both files. Reading takes no lock; :meth:`working` excludes a second retry or drop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settled_path = path.with_name(path.stem + ".settled.jsonl")
        self._settled: BinaryIO | None = None

    def entries(self, after: int = 0) -> list[Entry]:
        """All entries from offset ``after`` on, each with its state. Includes lines that are no entries.

        Raises:
            InputError: a file cannot be read, or the second has a line that is no note.
        """
        entries = list(self._read(after))
        if entries and entries[-1].problem.startswith(_UNFINISHED):
            # The service may still be writing it.
            time.sleep(_GRACE)
            entries = list(self._read(after))
        notes = self._notes()
        here = {(entry.offset, entry.sha256) for entry in entries}
        states: dict[tuple[int, str], State] = {}
        moved: dict[str, State] = {}
        for offset, sha256, state in notes:
            states[offset, sha256] = state
            if (offset, sha256) not in here:
                moved[sha256] = state  # rejected.jsonl was edited, so the entry moved
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
            fd = open_private(self.settled_path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
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
                file.truncate(whole)  # a crash tore this note, so its entry is open
            fsync_directory(self.path.parent)
            self._settled = file
            try:
                yield
            finally:
                self._settled = None

    def note(self, entries: Iterable[Entry], state: State, **facts: Any) -> None:
        """Record durably what was done about these. A dict in ``facts`` has a value for each entry, by its line."""
        assert self._settled is not None, "only while working"
        at = datetime.now(UTC).isoformat()
        lines = []
        for entry in entries:
            own = {name: fact.get(entry.line) if isinstance(fact, dict) else fact for name, fact in facts.items()}
            note = {"line": entry.line, "offset": entry.offset, "sha256": entry.sha256, "state": state, "at": at}
            note |= {} if entry.problem else {"kind": entry.kind, "key": entry.shown_key}
            note |= {name: fact for name, fact in own.items() if fact is not None}
            lines.append(encode(note) + "\n")
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
        """Offset, digest and state of each note, oldest first."""
        try:
            content = self.settled_path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise InputError(self.settled_path, f"cannot be read: {reason(exc)}") from None
        # After the last newline there may be a note that a crash tore.
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
    """Why this is no entry; empty if it is one."""
    if found.get("kind") not in KINDS:
        return "its kind is not session or task"
    row = found.get("row")
    keys = KEYS[found["kind"]]
    has_key = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in keys)
    if not has_key and found.get("code") != INVALID:
        return f"it has no row with a {' and a '.join(keys)}"
    try:
        aware = all(datetime.fromisoformat(found[name]).tzinfo for name in ("updated_at", "at"))
    except (KeyError, TypeError, ValueError):
        aware = False
    return "" if aware else "it does not say when it was updated and rejected"


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Options that select entries; an entry must match all that are given."""
    parser.add_argument("--kind", choices=KINDS, help="only these")
    parser.add_argument("--code", help="only those that were rejected with this code")
    parser.add_argument("--key", help="only this session_id, task_id or session_id/task_id")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Line numbers, filters or ``--all``; one of them is needed."""
    parser.add_argument("lines", nargs="*", type=int, metavar="LINE", help="the numbers that ls shows")
    add_filters(parser)
    parser.add_argument("--all", action="store_true", help="every row that was neither retried nor dropped")


def chosen(entries: Iterable[Entry], options: argparse.Namespace) -> list[Entry]:
    """The entries that the options select, in any state.

    Raises:
        ConfigError: nothing is selected, or there is no such line.
    """
    entries = list(entries)
    lines: list[int] | None = getattr(options, "lines", None)
    if lines is not None:
        if not (lines or options.all or options.kind or options.code is not None or options.key):
            raise ConfigError("", "say which rows: by LINE, --kind, --code or --key, or --all of them")
        unknown = sorted(set(lines) - {entry.line for entry in entries})
        if unknown:
            raise ConfigError("", f"there is no line {unknown[0]}")
    filtered = options.kind or options.code is not None or options.key
    return [
        entry
        for entry in entries
        if (not lines or entry.line in lines) and (not (filtered and entry.problem)) and _fits(entry, options)
    ]


def _fits(entry: Entry, options: argparse.Namespace) -> bool:
    if entry.problem:
        return True
    return (
        (options.kind is None or entry.kind == options.kind)
        and (options.code is None or entry.code == options.code)
        and (options.key is None or options.key in (*entry.key, entry.shown_key))
    )


def complain_of_broken(rejections: Rejections, broken: Iterable[Entry]) -> int:
    """Name each line that is no entry; returns the exit code."""
    code = OK
    for entry in broken:
        complain(InputError(rejections.path, entry.problem, line=entry.line))
        code = FAILED
    return code
