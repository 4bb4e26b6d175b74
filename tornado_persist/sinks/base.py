"""The interface between the service and the place that stores its rows."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError

from tornado_persist.records.models import Batch, Kind
from tornado_persist.sinks.reader import Reader

#: Rows of one transaction at most, unless the settings say otherwise. Between two transactions the sink waits for the
#: busy event loop.
CHUNK_ROWS = 20_000

#: Seconds that this machine's clock and the database's may differ. NTP keeps them within some milliseconds.
MOST_SKEW = 1.0

_SIZE = TypeAdapter(ByteSize)
_NO_SIZE = 'should be a number of bytes, or one with a unit, such as "64MiB"'
_NO_DURATION = 'should be a number of seconds, or one with a unit: "500ms", "30s", "5m", "2h", "1d"'
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def read_size(value: object) -> object:
    """Bytes from a text with a unit; anything else unchanged."""
    if isinstance(value, bool):
        raise ValueError(_NO_SIZE)  # noqa: TRY004 - what pydantic asks for
    if not isinstance(value, str):
        return value
    try:
        return int(_SIZE.validate_python(value.strip()))
    except ValidationError:
        raise ValueError(_NO_SIZE) from None


def read_seconds(value: object) -> object:
    """Seconds from a text with a unit; anything else unchanged."""
    if isinstance(value, bool):
        raise ValueError(_NO_DURATION)  # noqa: TRY004 - what pydantic asks for
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        return float(value)
    found = _DURATION.fullmatch(value.strip().lower())
    if not found:
        raise ValueError(_NO_DURATION)
    return float(found[1]) * _UNITS[found[2]]


#: A setting in bytes; in the configuration also a text with a unit.
Bytes: TypeAlias = Annotated[int, BeforeValidator(read_size)]
#: A setting in seconds; in the configuration also a text with a unit.
Seconds: TypeAlias = Annotated[float, BeforeValidator(read_seconds), AllowInfNan(False)]


class SinkSettings(BaseModel):
    """The table ``[sinks.<name>]`` of the configuration; each sink derives its own settings from this class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Rows of one transaction at most, and of the first one. It becomes smaller by itself while writes are slow, fail,
    #: or conflict with other writers.
    max_chunk_rows: int = Field(default=CHUNK_ROWS, ge=1, le=1_000_000)


SettingsT = TypeVar("SettingsT", bound=SinkSettings)


class Caution(NamedTuple):
    """A problem of the place that costs no rows now, but may later."""

    problem: str
    advice: str


class Expiry(NamedTuple):
    """Which sessions are old enough to be deleted."""

    #: The status that the session must have; None: tasks whose session does not exist.
    status: str | None
    #: No row of the session, its tasks included, was updated after this time (UTC).
    before: datetime


class Removed(NamedTuple):
    """What one call has deleted, in rows."""

    sessions: int
    tasks: int
    #: So many of the session ids, from the first one on, need no other call.
    done: int


class Skew(NamedTuple):
    """How far this machine's clock is ahead of another one, in seconds; negative: behind."""

    seconds: float
    error: float  #: by so much the figure may be wrong: half of the time that the answer took

    @property
    def problem(self) -> str:
        """A sentence, if the clocks differ by more than ``MOST_SKEW``, however long the answer took; else empty."""
        if abs(self.seconds) - self.error <= MOST_SKEW:
            return ""
        where = "ahead of" if self.seconds > 0 else "behind"
        return f"this machine's clock is {abs(self.seconds):.1f} s {where} the database's"


class Sink(ABC, Generic[SettingsT]):
    """Stores batches. Blocking; every call comes from one worker thread, never two at a time.

    A new object does no I/O: ``__init__`` only keeps its arguments. ``open`` comes first. After ``SinkUnavailable`` the
    caller does ``close`` and ``open`` before it tries again; ``close`` is fine at any time, and twice.
    """

    #: The word that selects the sink in the configuration.
    name: ClassVar[str]
    #: The model of the sink's table in the configuration.
    Settings: ClassVar[type[SinkSettings]]

    def __init__(self, settings: SettingsT, data_dir: Path) -> None:
        """Relative paths in ``settings`` start at ``data_dir``."""
        self.settings = settings
        self.data_dir = data_dir

    @abstractmethod
    def open(self) -> None:
        """Connect, and make what is missing (tables, files).

        Raises:
            SinkUnavailable: the place cannot be reached, or refuses us, or lacks what it must have.
        """

    def missing(self) -> list[str]:
        """What :meth:`open` would create, in words. Creates nothing; only ``persistd check`` needs it.

        By default ``data_dir``, if it is not there: a sink without a better answer is not opened before it is.

        Raises:
            SinkUnavailable: the place cannot be reached, or refuses us.
        """
        return [] if self.data_dir.exists() else [str(self.data_dir)]

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Commit the whole batch, sessions before tasks, durably, or raise and leave none of it behind.

        A row updates by the merge rule: a field it has replaces the stored one (``None`` clears it), a field it has not
        stays; a row that is new gets the defaults (``models.DEFAULTS``, else null). ``created_at`` is stored with a
        new row and never changed afterwards. Writing the same batch twice leaves what writing it once does.

        Raises:
            SinkUnavailable: nothing was written, and the same batch may go through later (SinkConflict: at once).
            BatchRejected: nothing was written, and a row of this batch is to blame.
        """

    @abstractmethod
    def ping(self) -> None:
        """Ask the place cheaply whether it would take a write.

        Raises:
            SinkUnavailable: it would not.
        """

    def clock_skew(self) -> Skew | None:
        """How far this machine's clock is ahead of the place's; None (the default): it has no clock of its own.

        Called after ``open``.

        Raises:
            SinkUnavailable: the place cannot be asked now.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Give up connections and files. Never raises."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people, after ``open``: product, version and place, never a password."""

    @property
    def address(self) -> str:
        """Where the rows go, as the settings say, without user and password; empty (the default): no place."""
        return ""

    def cautions(self) -> list[Caution]:
        """Problems that an operator should know of, after ``open``; ``persistd check`` shows them. None by default.

        Raises:
            SinkUnavailable: the place cannot be asked now.
        """
        return []

    def position(self) -> dict[str, Any] | None:
        """Where the next write goes, as JSON, or None (the default) for a sink whose writes are idempotent.

        A sink that appends returns it, so that :meth:`rewind` can undo, after a crash, writes that will be repeated.

        Raises:
            SinkUnavailable: it is not known now.
        """
        return None

    def rewind(self, position: dict[str, Any]) -> None:
        """Forget all that was written after :meth:`position` returned this; called after ``open``, before a write.

        A position of another place (another directory, say) is to be ignored.

        Raises:
            SinkUnavailable: it cannot be done now.
        """

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        """Those of ``session_ids`` that the sink has. Only ``records.require_session`` needs it.

        Raises:
            SinkUnavailable: the place cannot be asked now.
            NotImplementedError: this sink cannot look sessions up (the default).
        """
        raise NotImplementedError(f"sink {self.name!r} cannot look sessions up")

    def find_updated(self, kind: Kind, keys: Collection[tuple[str, ...]]) -> dict[tuple[str, ...], datetime]:
        """When those of ``keys`` (see ``models.KEYS``) that the sink has were last updated.

        Only ``persistd rejected retry`` needs it.

        Raises:
            SinkUnavailable: the place cannot be asked now.
            NotImplementedError: this sink cannot look rows up (the default).
        """
        raise NotImplementedError(f"sink {self.name!r} cannot look rows up")

    def reader(self) -> Reader | None:
        """A new reader of what is stored, or None (the default): then the service answers reads with 501.

        It is used in another thread than the sink, and while the sink is open.
        """
        return None

    def note_deletion(self, session_id: str, task_id: str, at: datetime) -> None:
        """What was accepted up to ``at`` of a session, or of one task of it (else ``""``), is about to be deleted.

        Called before the deletion, which takes one or more calls. Only a place that other instances write to, too, has
        to remember it, so that none of them brings deleted rows back. By default nothing is done.

        Raises:
            SinkUnavailable: it cannot be done now.
        """

    # Deleting is optional, all three or none; without it the service answers 501.

    def delete_sessions(
        self, session_ids: Sequence[str], limit: int, expiry: Expiry | None = None, *, dry_run: bool = False
    ) -> Removed:
        """Delete these sessions with all their tasks, in their order, ``limit`` rows at most, durably.

        A session's own row goes after its last task, so a session that is not ``done`` can be deleted again. An id that
        does not exist is done. ``expiry``: leave out those that it does not hold for now; they count as done.
        ``dry_run``: delete nothing, count everything; then there is no limit.

        Raises:
            SinkUnavailable: nothing was deleted (SinkConflict: try again at once).
            BatchRejected: the place does not allow it (a foreign key, a trigger); nothing was deleted.
            NotImplementedError: this sink cannot delete (the default).
        """
        raise NotImplementedError(f"sink {self.name!r} cannot delete rows")

    def delete_task(self, session_id: str, task_id: str) -> bool:
        """Delete one task, durably; False if it does not exist. Raises as :meth:`delete_sessions` does."""
        raise NotImplementedError(f"sink {self.name!r} cannot delete rows")

    def find_expired(self, expiry: Expiry, after: str | None, limit: int) -> tuple[list[str], str | None]:
        """Look at the next ``limit`` sessions in the order of their keys, from the first one after ``after`` on.

        Returns the ids of those that may be deleted (their tasks need not be looked at), and the id to go on after;
        None at the end. Raises as :meth:`delete_sessions` does.
        """
        raise NotImplementedError(f"sink {self.name!r} cannot delete rows")
