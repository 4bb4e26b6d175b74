"""Writes a chunk: whole if the sink accepts it, else halved until each bad row is alone.

A chunk that conflicts with other writers is halved, too. Of several writers of one row the first to commit wins, so a
long transaction may lose to short ones for ever.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.pipeline.deadletters import RefusedRow
from tornado_persist.records.models import Batch, Kind
from tornado_persist.sinks.runner import SinkRunner

#: After so many single rows that fail with an unknown code, while none was written, it counts as an outage.
UNKNOWN_ROWS = 16
#: Seconds of conflicts without a written row, after which they count as a failure. The wait for a lock that another
#: writer never releases ends in a conflict, too.
CONFLICT_TIME = 20.0

#: A stack of parts to write. The flag says that a part is the first half of one that was rejected, and that the other
#: half is next.
_Parts = list[tuple[Batch, bool]]


@dataclass(slots=True)
class Outcome:
    """The result of a chunk. Rows that are neither written nor rejected are untouched: ``error`` stopped the write."""

    written: list[Batch] = field(default_factory=list)
    refused: list[RefusedRow] = field(default_factory=list)
    error: SinkUnavailable | None = None
    conflicting_rows: int = 0  #: the least number of rows that conflicted with another writer; 0: none did


async def write(chunk: Batch, runner: SinkRunner, *, isolate_unknown: bool = False) -> Outcome:
    """Write the chunk; if the sink rejects it, halve it until each bad row is alone. Raises nothing.

    k bad rows among n cost about k log n more writes. If the first half goes through, the other one is at fault and is
    halved untried, which saves a fifth of them (Sobel and Groll, "Group Testing to Eliminate Efficiently All Defectives
    in a Binomial Sample", 1959).

    ``isolate_unknown``: also look for bad rows after an error with an unknown code. They are bad only if others are
    written while these fail.
    """
    outcome = Outcome()
    try:
        await _bisect(chunk, runner, outcome, isolate_unknown)
    except SinkUnavailable as exc:
        outcome.error = exc
    return outcome


async def _bisect(chunk: Batch, runner: SinkRunner, outcome: Outcome, isolate_unknown: bool) -> None:
    doubtful: list[tuple[Batch, RefusedRow]] = []
    unknown: SinkUnavailable | None = None
    parts = _Parts([(chunk, False)])
    last_success = time.monotonic()
    while parts:
        part, is_first_half = parts.pop()
        if outcome.conflicting_rows and len(part) >= outcome.conflicting_rows and len(part) > 1:
            _halve(part, parts, is_doubtful=False)
            continue
        try:
            await runner.write(part)
        except BatchRejected as exc:
            if not _halve(part, parts):
                outcome.refused.append(_refused(part, runner, exc))
        except SinkConflict as exc:
            outcome.conflicting_rows = len(part)
            if time.monotonic() - last_success > CONFLICT_TIME or not _halve(part, parts, is_doubtful=False):
                runner.gave_up(exc)
                raise
        except SinkUnavailable as exc:
            if not exc.unknown_code or not isolate_unknown:
                raise
            unknown = exc
            if not _halve(part, parts):
                doubtful.append((part, _refused(part, runner, exc)))
            if not outcome.written and len(doubtful) >= UNKNOWN_ROWS:
                raise
        else:
            outcome.written.append(part)
            last_success = time.monotonic()
            if is_first_half:
                other, _ = parts.pop()
                if not _halve(other, parts):
                    parts.append((other, False))  # to get the sink's reason
    if unknown is not None and not outcome.written:
        raise unknown
    for part, refused in doubtful:
        # Once more, now that others are written: the outage may have ended in the meantime.
        try:
            await runner.write(part)
            outcome.written.append(part)
        except BatchRejected:
            outcome.refused.append(refused)
        except SinkUnavailable as exc:
            if not exc.unknown_code:
                raise
            outcome.refused.append(refused)


def _halve(part: Batch, parts: _Parts, *, is_doubtful: bool = True) -> bool:
    """Put both halves on the stack, the first one on top; False for a single row.

    ``is_doubtful``: if the first half goes through, the other one is at fault.
    """
    if len(part) == 1:
        return False
    middle = len(part) // 2
    parts += [(part.part(middle, len(part)), False), (part.part(0, middle), is_doubtful)]
    return True


def _refused(part: Batch, runner: SinkRunner, exc: SinkError) -> RefusedRow:
    kind: Kind = "session" if part.sessions else "task"
    return RefusedRow(kind, part.rows(kind)[0], runner.sink.name, exc.code, str(exc), datetime.now(UTC))
