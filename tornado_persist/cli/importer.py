"""A file's rows into a running service, once: where an import stopped, the next one goes on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, Field, ValidationError

from tornado_persist.cli.lines import Line, read
from tornado_persist.cli.sender import RowRefused, Sender
from tornado_persist.errors import InputError
from tornado_persist.files import fsync_directory, reason

_BLOCK = 1 << 20  # bytes


class Place(BaseModel):
    """How far a file was sent to one service, and by what the sent part is known again."""

    bytes: int = Field(0, ge=0)
    lines: int = Field(0, ge=0)
    rows: int = Field(0, ge=0)
    sha256: str = hashlib.sha256().hexdigest()
    at: datetime | None = None


class State(BaseModel):
    """The state file: by the URL of the service."""

    version: int = Field(1, ge=1, le=1)
    targets: dict[str, Place] = Field(default_factory=dict)


class Importer:
    """Sends one file, and keeps account of it in a state file."""

    def __init__(self, path: Path, state_file: Path, url: str, sender: Sender, *, window: int) -> None:
        """``window``: rows between two writes of the state file, and what a kill costs at most: they are sent twice."""
        self._path = path
        self._state_file = state_file
        self._url = url
        self._sender = sender
        self._window = window
        #: Rows that this run has sent.
        self.rows = 0
        self.place = Place()
        self.size = 0

    def run(self, progress: Callable[[Importer], None], *, again: bool = False) -> None:
        """Send what has not been sent yet, or all of it ``again``. ``progress`` is called at first and after each step.

        Raises:
            InputError: the file, or what the state file says of it, is not as it should be; what comes before the line
                is sent.
            NoAnswer, RequestRefused: see :meth:`Sender.send`; the same run goes on from the last step.
        """
        try:
            with self._path.open("rb") as file:
                self._only_one(file)
                self.size = os.fstat(file.fileno()).st_size
                state = self._load()
                self.place = Place() if again else state.targets.get(self._url, Place())
                digest = self._digest(file)
                self._save(state)  # where that fails, nothing should be sent
                progress(self)
                self._send(file, state, digest, progress)
        except OSError as exc:
            raise InputError(exc.filename or self._path, f"cannot be read: {reason(exc)}") from None

    def _send(self, file: BinaryIO, state: State, digest: Any, progress: Callable[[Importer], None]) -> None:
        lines = read(file, self._path, self.size, self.place.lines)
        while True:
            broken: InputError | None = None
            some: list[Line] = []
            try:
                for line in lines:
                    some.append(line)
                    if len(some) == self._window:
                        break
            except InputError as exc:
                broken = exc
            good = len(some)
            try:
                self._sender.send([(line.kind, line.row) for line in some])
            except RowRefused as exc:
                good = exc.index
                broken = InputError(self._path, str(exc), line=some[good].number)
            self._note(some[:good], digest)
            self._save(state)
            progress(self)
            if broken is not None:
                raise broken
            if good < self._window:
                return

    def _note(self, sent: list[Line], digest: Any) -> None:
        """These lines are durable."""
        for line in sent:
            digest.update(line.content)
            self.place.bytes += len(line.content)
            self.place.lines = line.number
        self.place.rows += len(sent)
        self.rows += len(sent)
        self.place.sha256 = digest.hexdigest()
        self.place.at = datetime.now(UTC)

    def _only_one(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(self._path, "another import of it is at work") from None
        except OSError:  # a file system that does not lock what is only read
            pass

    def _digest(self, file: BinaryIO) -> Any:
        """Leave the file where the last run stopped; the digest of what is before."""
        digest = hashlib.sha256()
        place = self.place
        left = place.bytes
        while left and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != place.sha256:
            when = f" on {place.at:%Y-%m-%d at %H:%M:%S} UTC" if place.at else ""
            raise InputError(
                self._path,
                f"its first {place.bytes} bytes, {place.lines} lines, are not as they were when they were sent{when}; "
                "--again sends all of it",
            )
        return digest

    def _load(self) -> State:
        try:
            return State.model_validate_json(self._state_file.read_bytes())
        except FileNotFoundError:
            return State()
        except ValidationError:
            raise InputError(self._state_file, "is no state of an import; without it all rows are sent") from None

    def _save(self, state: State) -> None:
        state.targets[self._url] = self.place
        aside = self._state_file.with_name(self._state_file.name + ".new")
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(state.model_dump(mode="json"), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(self._state_file)
            fsync_directory(self._state_file.parent)
        except OSError as exc:
            problem = f"cannot be written: {reason(exc)}; --state DIRECTORY puts it elsewhere"
            raise InputError(self._state_file, problem) from None
