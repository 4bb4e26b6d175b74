"""Rows that wait for a flush, merged by key. No I/O and no clock.

A row is in one of two places: it *waits*, and newer updates merge into it, or it is *taken*, on its way to the sink,
and newer updates of its key wait beside it. What was taken is either released (committed) or restored: put back under
newer updates.

Beside the rows it holds the sizes of their records, as counts of rows in the same order. A size counts until all rows
that its record brought are released, so :attr:`Buffer.bytes` is never too low.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeAlias

from tornado_persist.records.models import KINDS, SHAPES, Batch, Kind, Row

#: For each record: how many of its rows are left, and its bytes.
_Sizes: TypeAlias = dict[Kind, deque[tuple[int, int]]]


class Buffer:
    """Two dicts by key, one a kind, in the order in which keys were first accepted."""

    def __init__(self, *, timed: bool = False) -> None:
        """``timed``: merged rows hold the times of fields that their newest update lacks."""
        self.timed = timed
        self._waiting: dict[Kind, dict[str, Row]] = {kind: {} for kind in KINDS}
        self._taken: dict[Kind, dict[str, Row]] = {kind: {} for kind in KINDS}
        self._waiting_sizes: _Sizes = {kind: deque() for kind in KINDS}
        self._taken_sizes: _Sizes = {kind: deque() for kind in KINDS}
        #: Bytes of the records whose rows are here.
        self.bytes = 0

    def add(self, kind: Kind, rows: Sequence[Row], at: str, size: int = 0) -> int:
        """Merge rows by the merge rule: a field given replaces, a field left out stays.

        ``at`` is when they were accepted, as rows hold times; ``size`` the bytes of their record. Takes ownership of
        the row objects. Returns how many rows were merged into a waiting one.
        """
        if not rows:
            return 0
        waiting, merge = self._waiting[kind], self._merge(kind)
        merged = 0
        for key, row in zip(_keys(kind, rows), rows, strict=True):
            row.created_at = row.updated_at = at  # type: ignore[assignment]
            older = waiting.setdefault(key, row)
            if older is not row:
                waiting[key] = merge(older, row)
                merged += 1
        self.bytes += size
        if merged < len(rows):
            self._waiting_sizes[kind].append((len(rows) - merged, size))
        else:  # endless updates of one key must not make this longer
            count, before = self._waiting_sizes[kind].pop()
            self._waiting_sizes[kind].append((count, before + size))
        return merged

    def take(self) -> Batch:
        """All waiting rows, as one batch; they count as waiting until they are released or restored.

        Raises:
            RuntimeError: rows taken before are not all released or restored.
        """
        if any(self._taken.values()):
            raise RuntimeError("the last batch taken is still out")
        self._taken = self._waiting
        self._waiting = {kind: {} for kind in KINDS}
        self._taken_sizes, self._waiting_sizes = self._waiting_sizes, {kind: deque() for kind in KINDS}
        return Batch(sessions=list(self._taken["session"].values()), tasks=list(self._taken["task"].values()))

    def fitting(self, rows: int, size: int) -> int:
        """How many of the next ``rows`` rows to release are from records of ``size`` bytes, or from a single record.

        Where rows were merged it is a little off.
        """
        count = filled = 0
        for brought, bytes_ in chain.from_iterable(self._taken_sizes[kind] for kind in KINDS):
            if count and filled + bytes_ > size:
                break
            count += brought
            filled += bytes_
            if count >= rows:
                break
        return max(1, min(count, rows))

    def release(self, batch: Batch) -> None:
        """Forget rows of the last batch taken: the sink has committed them."""
        for kind in KINDS:
            taken = self._taken[kind]
            rows = batch.rows(kind)
            sizes = self._taken_sizes[kind]
            if len(rows) == len(taken):  # the usual case
                self._taken[kind] = {}
                self.bytes -= sum(size for _, size in sizes)
                sizes.clear()
                continue
            for key in _keys(kind, rows):
                del taken[key]
            left = len(rows)
            while left and sizes:
                count, size = sizes.popleft()
                if count > left:
                    sizes.appendleft((count - left, size))
                    break
                left -= count
                self.bytes -= size

    def restore(self) -> dict[Kind, int]:
        """Put back rows that were taken and not released, under newer updates.

        Returns by kind how many rows that came since were merged into one put back.
        """
        merged = dict.fromkeys(KINDS, 0)
        for kind in KINDS:
            rows, merge = self._taken[kind], self._merge(kind)
            if not rows:  # the usual case; many rows may wait
                continue
            for key, newer in self._waiting[kind].items():
                older = rows.setdefault(key, newer)
                if older is not newer:
                    rows[key] = merge(older, newer)
                    merged[kind] += 1
            self._waiting[kind] = rows
            self._taken[kind] = {}
            self._taken_sizes[kind] += self._waiting_sizes[kind]
            self._waiting_sizes[kind] = self._taken_sizes[kind]
            self._taken_sizes[kind] = deque()
        return merged

    def _merge(self, kind: Kind) -> Callable[[Row, Row], Row]:
        return SHAPES[kind].merge_timed if self.timed else SHAPES[kind].merge

    def count(self, kind: Kind) -> int:
        """Rows of this kind that wait, those on their way to the sink included."""
        return len(self._waiting[kind]) + len(self._taken[kind])

    def waiting(self) -> int:
        """Rows that the next :meth:`take` would return."""
        return sum(map(len, self._waiting.values()))

    def has_session(self, session_id: str) -> bool:
        """Whether this session waits or is on its way."""
        return session_id in self._waiting["session"] or session_id in self._taken["session"]

    def __len__(self) -> int:
        return sum(map(self.count, KINDS))


def _keys(kind: Kind, rows: Sequence[Row]) -> list[str]:
    """A text for each row that no other key has: keys hold no NUL.

    With tuples, each of them one more object for the garbage collector, :meth:`Buffer.add` took half as long again.
    """
    if kind == "session":
        return [row["session_id"] for row in rows]
    return [f"{row.session_id}\0{row.task_id}" for row in rows]  # type: ignore[attr-defined]
