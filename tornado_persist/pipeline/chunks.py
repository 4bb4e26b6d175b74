"""How many rows go into one transaction of the sink. No I/O and no clock."""

from __future__ import annotations

#: Rows of the first try after a failure: in an outage more would be wasted.
FIRST_TRY = 100
#: After a write that takes longer (seconds) the next ones are smaller. The sink counts as stalled after five.
SLOW = 2.0
#: Successful writes at the limit that a failure has set, until the limit doubles.
PATIENCE = 8


class ChunkSize:
    """Starts at the most, falls to a few rows with a failure, and doubles while writes are quick.

    The size alone may cause a failure: a time limit, a transaction that is too large. So half of the rows that failed
    are the limit for a while.
    """

    def __init__(self, most: int) -> None:
        """``most`` rows."""
        self._most = most
        #: Rows of the next write.
        self.rows = most
        self._limit = most
        self._passed = 0

    def failed(self, rows: int) -> None:
        """A write of so many rows failed."""
        self._limit = max(1, rows // 2)
        self.rows = min(self._limit, FIRST_TRY)
        self._passed = 0

    def conflicted(self, rows: int) -> None:
        """So many rows conflicted with other writers, and half of them did not: fewer hold fewer locks, and shorter."""
        self.rows = self._limit = max(1, rows // 2)
        self._passed = 0

    def succeeded(self, rows: int, seconds: float) -> None:
        """A write of so many rows went through."""
        if seconds > SLOW:
            self.rows = self._limit = max(1, rows // 2)
            self._passed = 0
        elif rows < self.rows or seconds > SLOW / 2:
            pass  # it says nothing about more rows
        elif self.rows < self._limit:
            self.rows = min(2 * self.rows, self._limit)
        else:
            self._passed += 1
            if self._passed >= PATIENCE:
                self.rows = self._limit = min(2 * self._limit, self._most)
                self._passed = 0
