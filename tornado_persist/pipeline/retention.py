"""Deletes finished sessions, and tasks without a session, once they are old enough; and decides whether the clock can
be believed.

**A clock that jumps ahead** makes every row old at once. So a run compares the wall clock with the one of the last run
(kept in ``data_dir/retention.json``) and the time that went by since. If the clock is more than a day ahead of that, or
if nothing is known of it, the retention waits for a day, and says so: a person can set the clock right meanwhile.
Waiting costs nothing, and that a clock which stays wrong for longer than a day is believed in the end is the price for
a service that was off for a month to find its way back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from tornado_persist.errors import ClockInDoubt, PersistError, RowsWait
from tornado_persist.files import replace_file
from tornado_persist.pipeline.removal import Deleted, Remover
from tornado_persist.sinks.base import Expiry
from tornado_persist.telemetry import log
from tornado_persist.telemetry.deletions import DeletedBy
from tornado_persist.telemetry.metrics import Metrics

logger = log.get(__name__)

#: How far the clock may be ahead of what was expected, and how long it is in doubt then.
LEAP = timedelta(days=1)
DOUBT = timedelta(days=1)
#: Seconds after a start or a reload until the first run, at most.
FIRST = 60.0


class Ages(NamedTuple):
    """Seconds after which rows may go, by what they are; None: never."""

    completed: float | None = None
    failed: float | None = None
    orphans: float | None = None

    def expiries(self, now: datetime) -> dict[str, Expiry]:
        """What is old enough at this time, by the name of the age."""
        statuses = {"completed": "completed", "failed": "failed", "orphans": None}
        return {
            name: Expiry(status, now - timedelta(seconds=age))
            for name, status in statuses.items()
            if (age := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True)
class ClockState:
    """The wall clock at the last look, and since when it is in doubt. No I/O and no clock."""

    seen: datetime | None = None
    doubted: datetime | None = None
    #: Why it is in doubt: it has leapt ahead, or nothing was known of it.
    leapt: bool = False

    def look(self, now: datetime, since: timedelta) -> ClockState:
        """The state after a look at ``now``; so much time has gone by ``since`` the last one, as far as is known."""
        if self.seen is None:
            return ClockState(now, now)
        if now - self.seen - since > LEAP:
            return ClockState(now, now, leapt=True)
        if self.doubted is not None and timedelta() <= now - self.doubted < DOUBT:
            return ClockState(now, self.doubted, self.leapt)
        return ClockState(now)  # it has stayed so for long enough, or was set back


class Retention:
    """Runs every so often; also on request."""

    def __init__(self, remover: Remover, metrics: Metrics, file: Path, *, timeout: float) -> None:
        """``file``: where the clock's state is kept; ``timeout``: seconds that the flush before a run may take."""
        self._remover = remover
        self._metrics = metrics
        self._file = file
        self.timeout = timeout
        self.ages = Ages()
        self._every = 3600.0
        self._changed = asyncio.Event()
        self._state = _read(file)
        self._looked_at: float | None = None
        self._at_work = asyncio.Lock()

    def configure(self, ages: Ages, every: float) -> None:
        """``every``: seconds from one run to the next."""
        self.ages, self._every = ages, every
        self._changed.set()

    async def keep(self) -> None:
        """Run for ever; the caller cancels it."""
        while True:
            self._changed.clear()
            delay = min(FIRST, self._every)
            while not await self._changes_within(delay):
                now = datetime.now(UTC)
                if any(age is not None for age in self.ages):
                    await self.run_once(now)
                else:
                    await self._look(now)  # a request may need to know
                delay = self._every

    async def run_once(self, now: datetime) -> None:
        """One run; what goes wrong is logged and counted, and the next run tries again."""
        deletions = self._metrics.deletions
        try:
            cleaned = await self.clean(self.ages, now, automatic=True)
        except ClockInDoubt as exc:
            deletions.ran(now, "waited", str(exc))
            logger.warning("retention waits", reason=str(exc))
        except PersistError as exc:
            deletions.ran(now, "failed", str(exc))
            logger.warning("retention failed", error=str(exc))
        except Exception:
            deletions.ran(now, "failed", "a bug; the log has its traceback")
            logger.exception("a bug in the retention")
        else:
            deletions.ran(now, "done")
            figures = {
                "sessions": sum(part.sessions for part in cleaned.values()),
                "tasks": sum(part.tasks for part in cleaned.values()),
                "waiting": sum(part.waiting for part in cleaned.values()),
            }
            logger.info("retention", **figures)

    async def clean(
        self, ages: Ages, now: datetime, *, automatic: bool = False, dry_run: bool = False, trust_clock: bool = False
    ) -> dict[str, Deleted]:
        """Delete what is older than these ages; what went, by the name of the age.

        Raises:
            ClockInDoubt: see above. A request (not ``automatic``) goes on unless the clock has leapt.
            RowsWait: another run is at work, and this one is a request.
            PersistError: see :meth:`Remover.clean`; what was deleted before stays deleted.
        """
        if self._at_work.locked() and not automatic:
            raise RowsWait("A cleanup is at work already")
        async with self._at_work:
            state = await self._look(now)
            if state.doubted and (automatic or state.leapt) and not (trust_clock or dry_run):
                why = (
                    "it is more than a day ahead of what was expected" if state.leapt else "nothing is known of it yet"
                )
                until = (state.doubted + DOUBT).isoformat(timespec="seconds")
                raise ClockInDoubt(
                    f"The clock says {now.isoformat(timespec='seconds')}, and {why}: if it still says so, old rows are"
                    f" deleted from {until} on"
                )
            by: DeletedBy = "retention" if automatic else "cleanup"

            def wanted() -> bool:
                return not automatic or self.ages == ages  # a reload may have turned it off

            return {
                name: await self._remover.clean(expiry, by, self.timeout, dry_run=dry_run, wanted=wanted)
                for name, expiry in ages.expiries(now).items()
            }

    async def _look(self, now: datetime) -> ClockState:
        clock = time.monotonic()
        since = timedelta(seconds=clock - self._looked_at) if self._looked_at is not None else timedelta()
        self._looked_at = clock
        self._state = self._state.look(now, since)
        try:
            await asyncio.to_thread(_write, self._file, self._state)
        except OSError as exc:
            logger.warning("retention.json cannot be written", error=exc.strerror)
        return self._state

    async def _changes_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        return self._changed.is_set()


def _read(file: Path) -> ClockState:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        seen, doubted = found["seen"], found["doubted"]
        since = datetime.fromisoformat(doubted).astimezone(UTC) if doubted else None
        return ClockState(datetime.fromisoformat(seen).astimezone(UTC), since, bool(found["leapt"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ClockState()


def _write(file: Path, state: ClockState) -> None:
    times = {name: at and at.isoformat() for name, at in (("seen", state.seen), ("doubted", state.doubted))}
    replace_file(file, json.dumps({**times, "leapt": state.leapt}).encode() + b"\n", durable=False)
