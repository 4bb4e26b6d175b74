"""A guess that mostly holds: what to do when it does not."""

from __future__ import annotations

#: Times that a guess is left out at most.
_LONGEST = 64


class Hunch:
    """Whether a guess is worth a try. After one in vain it is left out 1, 2, 4, … 64 times: for some clients it never
    holds.
    """

    def __init__(self) -> None:
        self._pause = self._left = 0

    def worth_a_try(self) -> bool:
        """Asked once each time."""
        self._left = max(0, self._left - 1)
        return not self._left

    def failed(self) -> None:
        self._pause = min(2 * self._pause or 1, _LONGEST)
        self._left = self._pause + 1

    def succeeded(self) -> None:
        self._pause = 0
