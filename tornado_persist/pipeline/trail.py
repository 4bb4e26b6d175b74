"""Which requests the rows on their way to the sink came with, as far as the log has to name them."""

from __future__ import annotations

from collections import deque

#: Requests remembered; an outage may hold back more of them than anybody would read.
REMEMBERED = 1000
#: Requests that one line names.
NAMED = 20


class Trail:
    """The ids of accepted batches that are not settled yet, in the journal's order."""

    def __init__(self) -> None:
        self._ids: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)

    def add(self, seq: int, request_id: str) -> None:
        """The journal's record ``seq`` came with this request."""
        if request_id:
            self._ids.append((seq, request_id))

    def pop_through(self, seq: int) -> list[str]:
        """Forget the batches up to the record ``seq``, and name the first of them."""
        named: list[str] = []
        ids = self._ids
        while ids and ids[0][0] <= seq:
            _, id = ids.popleft()
            if len(named) < NAMED:
                named.append(id)
        return named
