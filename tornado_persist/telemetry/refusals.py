"""Refused batches: counted, remembered, and logged at a bounded rate. Never holds the content of a row."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from tornado_persist.records.models import KINDS, Kind
from tornado_persist.telemetry import log
from tornado_persist.telemetry.redaction import mask

#: The kind of the rows in a batch; ``none`` where the request does not tell.
RefusedKind: TypeAlias = Kind | Literal["none"]

#: Why a batch is refused, with its status. A label of the metrics, so there are few.
REASONS: dict[str, int] = {
    "not_json": 400,
    "compression": 400,
    "method": 405,
    "timeout": 408,
    "too_large": 413,
    "content_type": 415,
    "invalid": 422,
    "no_token": 401,
    "unknown_token": 401,
    "scope": 403,
    "origin": 403,
    "host": 403,
    "bug": 500,
    "not_accepting": 503,
    "busy": 503,
}
#: The same, for requests that name no kind.
REASONS_WITHOUT_KIND: dict[str, int] = {"malformed": 400, "path": 404, "method": 405}

#: Those that depend on who asks.
DENIED = ("no_token", "unknown_token", "scope", "origin", "host")

#: Seconds between two lines about the same fault, and lines a second about all of them.
EVERY = 10.0
LINES_A_SECOND = 5
#: Faults whose last line is remembered.
FAULTS = 256
#: Characters of a client's text that the log and ``/stats`` show.
LONGEST = 200

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused batch."""

    at: datetime  #: UTC
    kind: RefusedKind
    status: int
    reason: str
    detail: str  #: the sentence that the client got
    client: str  #: its address
    user_agent: str
    request_id: str
    path: str
    rows: int | None = None  #: None where the rows were not counted
    loc: tuple[str | int, ...] = ()  #: of the first error
    msg: str = ""
    token: str = ""  #: the name of the client's token

    @property
    def field(self) -> str:
        """The wrong field, the same for each row: ``tasks.*.status``."""
        return printable(".".join("*" if isinstance(step, int) else step for step in self.loc))


class Quota:
    """Which lines of a flood are written: one for each key every ``EVERY`` seconds, and few a second in all."""

    def __init__(self) -> None:
        #: By key: when its last line was written, and how many were held back since. The latest last.
        self._keys: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._second = 0.0
        self._lines = 0
        #: Lines held back whose keys are forgotten.
        self._forgotten = 0

    def take(self, key: Hashable, now: float) -> tuple[int, int] | None:
        """None: hold this line back. Otherwise write it; it tells how many were held back before.

        The first number is of this key, the second of keys that are forgotten since the last line. ``now`` in seconds.
        """
        last, held = self._keys.get(key, (-math.inf, 0))
        if now - self._second >= 1:
            self._second, self._lines = now, 0
        if now - last < EVERY or self._lines >= LINES_A_SECOND:
            self._keep(key, last, held + 1)
            return None
        self._lines += 1
        forgotten, self._forgotten = self._forgotten, 0
        self._keep(key, now, 0)
        return held, forgotten

    def _keep(self, key: Hashable, last: float, held: int) -> None:
        self._keys[key] = last, held
        self._keys.move_to_end(key)
        if len(self._keys) > FAULTS:
            _, (_, lost) = self._keys.popitem(last=False)
            self._forgotten += lost


class Refusals:
    """Counts refused batches, since the process started."""

    def __init__(
        self,
        note: Callable[[str, datetime], None] = lambda message, at: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``note`` gets a sentence for each refused batch, one of few; ``clock``: seconds that never go back."""
        self._note = note
        self._clock = clock
        self._quota = Quota()
        #: By kind, status and reason. Those that are expected are known from the start, so that the first of each
        #: shows as a rise from 0.
        self.by_reason: dict[tuple[RefusedKind, int, str], int] = {
            **{(kind, status, reason): 0 for kind in KINDS for reason, status in REASONS.items()},
            **{("none", status, reason): 0 for reason, status in REASONS_WITHOUT_KIND.items()},
        }
        #: Rows of refused batches, as far as they were counted.
        self.rows: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.last: Refusal | None = None

    @property
    def batches(self) -> int:
        """All refused batches."""
        return sum(self.by_reason.values())

    def add(self, refusal: Refusal) -> None:
        """Count and remember one refused batch, and log it unless too many were logged already.

        Who may not send it at all is for :class:`Denials` to log.
        """
        kind, status, reason = key = (refusal.kind, refusal.status, refusal.reason)
        self.by_reason[key] = self.by_reason.get(key, 0) + 1
        if kind != "none" and refusal.rows:
            self.rows[kind] += refusal.rows
        self.last = refusal
        batch = "A request" if kind == "none" else f"A batch of {kind}s"
        self._note(f"{batch} was refused with {status} ({reason})", refusal.at)
        if refusal.reason not in DENIED:
            self._tell("batch refused", refusal)

    def set_aside(self, refusal: Refusal) -> None:
        """Tell of rows that were set aside while the others of their batch were accepted. Not counted here."""
        self._note(f"Rows of a batch of {refusal.kind}s were set aside", refusal.at)
        self._tell("rows set aside", refusal)

    def _tell(self, event: str, refusal: Refusal) -> None:
        held = self._quota.take((refusal.kind, refusal.status, refusal.field), self._clock())
        if held is None:
            return
        more = {
            "token": refusal.token,
            "rows": refusal.rows,
            "loc": refusal.field,
            "held_back": held[0],
            "others_held_back": held[1],
        }
        logger.warning(
            event,
            kind=refusal.kind,
            status=refusal.status,
            reason=refusal.reason,
            msg=printable(refusal.msg or refusal.detail),
            client=refusal.client,
            user_agent=printable(refusal.user_agent),
            path=printable(refusal.path),
            request_id=refusal.request_id,
            **{name: value for name, value in more.items() if value},
        )


class Denials:
    """Counts requests that were denied because of who asks, since the process started; one line a second at most."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds that never go back."""
        self._clock = clock
        self.by_reason = dict.fromkeys(DENIED, 0)
        self._told = -math.inf
        self._held_back = 0

    def add(
        self, reason: str, *, detail: str, client: str, token: str, method: str, path: str, request_id: str
    ) -> None:
        """Count one, and log it with the number of those that were not logged since the last line."""
        self.by_reason[reason] += 1
        now = self._clock()
        if now - self._told < 1:
            self._held_back += 1
            return
        more = {"token": token, "held_back": self._held_back}
        self._told, self._held_back = now, 0
        logger.warning(
            "request denied",
            reason=reason,
            msg=printable(detail),
            client=client,
            method=printable(method),
            path=printable(path),
            request_id=request_id,
            **{name: value for name, value in more.items() if value},
        )


def printable(text: str) -> str:
    """At most ``LONGEST`` characters of a client's text, without control characters and without a token in full."""
    text = mask(text[: 2 * LONGEST])  # first: half of a token would not be found
    shown = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:LONGEST]
    )
    return shown + "…" if len(text) > LONGEST else shown


#: Seconds between two lines that name the dropped fields of a kind.
TELL_EVERY = 60.0


class DroppedFields:
    """Counts rows of accepted batches that had fields which were dropped, since the process started."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds that never go back."""
        self._clock = clock
        self.rows: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._told: dict[Kind, tuple[float, int]] = {}

    def add(self, kind: Kind, rows: int, names: Sequence[str]) -> None:
        """Count the rows of one batch; once a minute the log names the fields."""
        self.rows[kind] += rows
        at, before = self._told.get(kind, (-TELL_EVERY, 0))
        now = self._clock()
        if now - at >= TELL_EVERY:
            self._told[kind] = now, self.rows[kind]
            logger.info("fields dropped", kind=kind, fields=list(names), rows=self.rows[kind] - before)
