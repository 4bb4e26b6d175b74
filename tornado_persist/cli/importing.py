"""``persistd import``: sends the rows of files to the running service. An interrupted import can be continued.

It does not use the Python client of ``clients/python``, which merges rows, goes on after a refused one and answers for
all that waits at once. An import stops at the first refused row, names its line, and notes after each batch how far the
file is durable. The service would need httpx for it, too.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, Field, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tornado_persist.cli import output
from tornado_persist.cli.client import RowRefused, Sender, add_patience, add_url, connect
from tornado_persist.cli.command import FAILED, OK, Commands, Configuration, complain, completes_files
from tornado_persist.cli.lines import Line, Unread, read
from tornado_persist.config.loading import Settings
from tornado_persist.errors import InputError
from tornado_persist.files import reason, replace_file

_BLOCK = 1 << 20  # bytes
#: Unreadable lines that are named, of one file in one run; the others are counted.
_NAMED = 20
_MORE = """Lines may come from an export, the jsonl sink, rejected.jsonl or a journal export. Rows are sent in the
order of the file, as new updates: created_at and updated_at are left out, the service sets its own. With --keep-times
a row counts as of its updated_at, and replaces nothing that is newer; then only neighbours of one time share a
request. The progress is kept in FILE.import-state: after an interruption the same command continues from there. A line
that cannot be read is named and passed over, and the exit code is then 1; a row that the service refuses ends the
import."""


def add(commands: Commands) -> None:
    parser = commands.add("import", _import, "send the rows of JSON Lines files to the running service", more=_MORE)
    files = parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="in this order: sessions before tasks"
    )
    completes_files(files)
    add_url(parser)
    parser.add_argument(
        "--keep-times",
        action="store_true",
        help='send each row with its accept time, so that newer updates stay; needs writers = "several"',
    )
    parser.add_argument("--again", action="store_true", help="send all rows, including those sent before")
    state = parser.add_argument(
        "--state", type=Path, metavar="DIRECTORY", help="keep the state there, not beside the file"
    )
    completes_files(state, "directories")
    add_patience(parser)


class Place(BaseModel):
    """How much of a file was sent to one service, with a digest of that part."""

    bytes: int = Field(0, ge=0)
    lines: int = Field(0, ge=0)
    rows: int = Field(0, ge=0)
    #: Lines among them that could not be read.
    unread: int = Field(0, ge=0)
    sha256: str = hashlib.sha256().hexdigest()
    at: datetime | None = None


class State(BaseModel):
    """The content of the state file: the progress for each service, by its URL."""

    version: int = Field(1, ge=1, le=1)
    targets: dict[str, Place] = Field(default_factory=dict)


class Importer:
    """Sends one file and records the progress in a state file."""

    def __init__(
        self, path: Path, state_file: Path, url: str, sender: Sender, *, window: int, keep_times: bool
    ) -> None:
        """``window``: rows in a step. The state is saved after each, so after a kill at most these are sent twice.

        ``keep_times``: each row counts as of the time that its line has.
        """
        self._keep_times = keep_times
        self._path = path
        self._state_file = state_file
        self._url = url
        self._sender = sender
        self._window = window
        #: Rows that this run has sent.
        self.rows = 0
        self._named = 0
        self._set_aside_before = sender.set_aside
        self.place = Place()
        self.size = 0

    @property
    def set_aside(self) -> int:
        """How many of them the service set aside."""
        return self._sender.set_aside - self._set_aside_before

    def run(self, progress: Callable[[Importer], None], *, again: bool = False) -> None:
        """Send what has not been sent yet, or all of it ``again``. ``progress`` is called at first and after each step.

        Raises:
            InputError: the file ends within a line, or the service refuses a row, and all rows before it are sent; or
                the state does not fit the file.
            NoAnswer, RequestRefused: see :meth:`Sender.send`; the next run continues after the last step.
        """
        try:
            with self._path.open("rb") as file:
                self._only_one(file)
                self.size = os.fstat(file.fileno()).st_size
                state = self._load()
                self.place = Place() if again else state.targets.get(self._url, Place())
                digest = self._digest(file)
                self._save(state)  # if that fails, send nothing
                progress(self)
                self._send(file, state, digest, progress)
        except OSError as exc:
            raise InputError(exc.filename or self._path, f"cannot be read: {reason(exc)}") from None

    def _send(self, file: BinaryIO, state: State, digest: Any, progress: Callable[[Importer], None]) -> None:
        lines = read(file, self._path, self.size, self.place.lines)
        while True:
            broken: InputError | None = None
            some: list[Line | Unread] = []
            try:
                for line in lines:
                    if self._keep_times and isinstance(line, Line) and not line.at:
                        raise InputError(self._path, "it does not say when it was accepted", line=line.number)
                    some.append(line)
                    if isinstance(line, Unread):
                        self._say_unread(line)
                    if len(some) == self._window:
                        break
            except InputError as exc:
                broken = exc
            good = len(some)
            rows = [(at, line) for at, line in enumerate(some) if isinstance(line, Line)]
            try:
                times = [line.at for _, line in rows] if self._keep_times else []
                self._sender.send([(line.kind, line.row) for _, line in rows], times)
            except RowRefused as exc:
                good, refused = rows[exc.index]
                broken = InputError(self._path, str(exc), line=refused.number)
            self._note(some[:good], digest)
            self._save(state)
            progress(self)
            if broken is not None:
                raise broken
            if good < self._window:
                return

    def _note(self, done: list[Line | Unread], digest: Any) -> None:
        """Record that these lines are durable, or passed over."""
        for line in done:
            digest.update(line.content)
            self.place.bytes += len(line.content)
            self.place.lines = line.number
            self.place.unread += isinstance(line, Unread) and bool(line.problem)
        sent = sum(isinstance(line, Line) for line in done)
        self.place.rows += sent
        self.rows += sent
        self.place.sha256 = digest.hexdigest()
        self.place.at = datetime.now(UTC)

    def _say_unread(self, line: Unread) -> None:
        if line.problem:
            self._named += 1
            if self._named <= _NAMED:
                complain(InputError(self._path, f"{line.problem}; passed over", line=line.number))
            elif self._named == _NAMED + 1:
                complain(f"{self._path}: further lines that cannot be read are only counted")

    def _only_one(self, file: BinaryIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(self._path, "another import of it is at work") from None
        except OSError:  # this file system does not lock a file that is open for reading
            pass

    def _digest(self, file: BinaryIO) -> Any:
        """Go to where the last run stopped; returns the digest of the part before."""
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
        try:
            replace_file(self._state_file, state.model_dump_json(indent=1).encode())
        except OSError as exc:
            problem = f"cannot be written: {reason(exc)}; --state DIRECTORY puts it elsewhere"
            raise InputError(self._state_file, problem) from None


def _import(configuration: Configuration, options: argparse.Namespace) -> int:
    settings = configuration.settings
    if options.url is None:
        for path in options.files:
            _refuse_own(settings, path)
    with connect(configuration, options) as client, _progress() as bar:
        sender = Sender(
            client,
            max_batch=settings.server.max_batch,
            max_bytes=settings.server.max_body_bytes,
            patience=options.patience,
            say=complain,
        )
        code = OK
        for path in options.files:
            state = _state_file(path, options.state)
            window, keep_times = settings.server.max_batch, options.keep_times
            importer = Importer(path, state, client.url, sender, window=window, keep_times=keep_times)
            _one(importer, path, options, bar)
            if importer.place.unread:
                code = FAILED
    return code


def _state_file(path: Path, directory: Path | None) -> Path:
    if directory is None:
        return path.with_name(f"{path.name}.import-state")
    # Files in different directories may have the same name.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return directory / f"{path.name}.{digest}.import-state"


def _one(importer: Importer, path: Path, options: argparse.Namespace, bar: Progress) -> None:
    task = bar.add_task(path.name, total=None, rows="")

    def progress(it: Importer) -> None:
        bar.update(task, total=it.size, completed=it.place.bytes, rows=output.count(it.place.rows, "row"))

    try:
        importer.run(progress, again=options.again)
    except BaseException:
        bar.stop()
        if importer.rows:
            complain(f"{path}: {_sums(importer)}; the same command goes on from there")
        raise
    bar.remove_task(task)
    print(f"{path}: {_sums(importer)}")


def _progress() -> Progress:
    """A progress bar on standard error, if that is a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}", markup=False),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        disable=not sys.stderr.isatty(),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _sums(importer: Importer) -> str:
    sums = f"{output.count(importer.rows, 'row')} sent"
    if importer.set_aside:
        sums += f", {importer.set_aside:,} of them set aside (see persistd rejected ls)"
    before = importer.place.rows - importer.rows
    sums += f", and {before:,} before" if before else ""
    unread = importer.place.unread
    return f"{sums}; {output.count(unread, 'line')} passed over, which could not be read" if unread else sums


def _refuse_own(settings: Settings, path: Path) -> None:
    """Refuse files that the service is writing: they would grow while they are read."""
    if settings.sink != "jsonl":
        return
    directory = settings.path(str(getattr(settings.sink_settings(), "dir", "")))
    if path.resolve().parent == directory.resolve() and path.name in ("sessions.jsonl", "tasks.jsonl"):
        raise InputError(path, "is where the service writes to; set another sink, and reload it, first")
