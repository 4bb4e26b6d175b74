"""How long to wait before the next try."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Exponential backoff with full jitter: a wait between nothing and a bound that doubles with every failure.

    Jitter keeps the writers of a database that comes back from all calling at the same moment; after Marc Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(
        self, first: float = 0.1, most: float = 30.0, *, spread: Callable[[float, float], float] = random.uniform
    ) -> None:
        """``first`` and ``most``: bounds of the first and of the longest wait, in seconds."""
        self._first, self._most, self._spread = first, most, spread
        self.failures = 0

    def failed(self) -> float:
        """Count a failure; seconds to wait before the next try."""
        bound = min(self._most, self._first * 2 ** min(self.failures, 32))
        self.failures += 1
        return self._spread(0, bound)

    def succeeded(self) -> None:
        """Start over with the next failure."""
        self.failures = 0
