"""What becomes of rows on their way into the sink: each is written, or refused and put aside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from tornado_persist.errors import BatchRejected, SinkConflict, SinkError, SinkUnavailable
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.pipeline.deadletters import Refusal
from tornado_persist.records.models import KINDS, Batch, Kind
from tornado_persist.sinks.runner import SinkRunner
from tornado_persist.telemetry.metrics import Metrics

#: Tries of the same write after another writer stood in its way, before it counts as a failure.
CONFLICTS = 5
#: Failures with a code that nobody knows, one after the other, until single rows are suspected.
SUSPICION = 3
#: Single rows that fail with such a code, none having been written, until it is an outage after all.
SUSPECTS = 16

#: A stack of parts to write, and of each whether it is the first half of one that was refused, and the other half the
#: next.
_Parts = list[tuple[Batch, bool]]


class Settler:
    """Writes parts of what was taken from the buffer, and isolates the rows that the sink does not take."""

    def __init__(self, buffer: Buffer, put_aside: Callable[[list[Refusal]], Awaitable[None]], metrics: Metrics) -> None:
        """``put_aside`` makes refused rows durable elsewhere, with the reason."""
        self._buffer = buffer
        self._durably_aside = put_aside
        self._metrics = metrics

    async def settle(self, chunk: Batch, runner: SinkRunner, failures: int) -> None:
        """Write the chunk; if the sink rejects it, halve it until the rows at fault stand alone.

        k such rows among n cost about k log n writes more. Where the first half goes through, the other one is at fault
        and is halved untried, which saves a fifth of them (Sobel and Groll, "Group Testing to Eliminate Efficiently All
        Defectives in a Binomial Sample", 1959). ``failures``: how many flushes in a row have failed with a code that
        nobody knows.

        Raises:
            SinkUnavailable: what is neither written nor refused by then is untouched.
            FlushFailed, OSError: the refused rows could not be put aside.
        """
        refused: list[Refusal] = []
        suspects: list[Refusal] = []
        last: SinkUnavailable | None = None
        wrote = False
        parts = _Parts([(chunk, False)])
        try:
            while parts:
                part, is_first = parts.pop()
                try:
                    await self._write(part, runner)
                    wrote = True
                    if is_first:
                        other, _ = parts.pop()
                        if not _halve(other, parts):
                            parts.append((other, False))  # for the sink to say why
                except BatchRejected as exc:
                    if not _halve(part, parts):
                        refused.append(_refusal(part, runner, exc))
                except SinkUnavailable as exc:
                    # A code that nobody knows: the rows are at fault only if others go through while these fail.
                    if not exc.suspect or failures < SUSPICION:
                        raise
                    last = exc
                    if not _halve(part, parts):
                        suspects.append(_refusal(part, runner, exc))
                    if not wrote and len(suspects) >= SUSPECTS:
                        raise
            if last is not None and not wrote:
                raise last
            for suspect in suspects:
                # Once more, now that others go through: the outage may have ended in the midst of this.
                if await self._fails_alone(suspect, runner):
                    refused.append(suspect)
        finally:
            if refused:
                await self._put_aside(refused)

    async def _fails_alone(self, suspect: Refusal, runner: SinkRunner) -> bool:
        alone = Batch([suspect.row]) if suspect.kind == "session" else Batch(tasks=[suspect.row])
        try:
            await self._write(alone, runner)
        except BatchRejected:
            return True
        except SinkUnavailable as exc:
            if not exc.suspect:
                raise
            return True
        return False

    async def _write(self, part: Batch, runner: SinkRunner) -> None:
        for attempt in range(CONFLICTS):
            try:
                await runner.write(part)
                break
            except SinkConflict:
                if attempt == CONFLICTS - 1:
                    raise
        self._buffer.release(part)
        for kind in KINDS:
            self._metrics.totals.written[kind] += len(part.rows(kind))

    async def _put_aside(self, refused: list[Refusal]) -> None:
        await self._durably_aside(refused)
        for kind in KINDS:
            rows = [refusal.row for refusal in refused if refusal.kind == kind]
            self._buffer.release(Batch(rows) if kind == "session" else Batch(tasks=rows))
            self._metrics.totals.rejected[kind] += len(rows)
        first = refused[0]
        self._metrics.incidents.add("rejected", first.message, first.at, code=first.code, count=len(refused))


def _refusal(part: Batch, runner: SinkRunner, exc: SinkError) -> Refusal:
    kind: Kind = "session" if part.sessions else "task"
    return Refusal(kind, part.rows(kind)[0], runner.sink.name, exc.code, str(exc), datetime.now(UTC))


def _halve(part: Batch, parts: _Parts) -> bool:
    """Put both halves on the stack, the first one on top; False for a single row."""
    if len(part) == 1:
        return False
    middle = len(part) // 2
    parts += [(part.part(middle, len(part)), False), (part.part(0, middle), True)]
    return True
