"""Whether a sink is up, as the calls to it tell. No I/O and no clock."""

from __future__ import annotations


class Availability:
    """After a write that failed, only a write that goes through makes the sink well.

    A ping asks less of it: a missing right, a full disk or a trigger may make every write fail, and no ping. But a ping
    that goes through after one that failed says that it is worth trying to write at once.
    """

    def __init__(self) -> None:
        self.up: bool | None = None  #: None before the first call ends
        #: Why it is down; empty while it is up.
        self.error = "not opened yet"
        self._write_failed = False
        self._unreachable = False
        self._came_back = False

    def write_ended(self, error: str = "") -> None:
        """A write went through, or failed with ``error``."""
        self._write_failed = bool(error)
        self._set(error)

    def ping_ended(self, error: str = "") -> None:
        """A call other than a write went through, or failed with ``error``."""
        self._came_back = not error and (self._came_back or self._unreachable)
        self._unreachable = bool(error)
        if error or not self._write_failed:
            self._set(error)

    def stalled(self, error: str) -> None:
        """A call takes too long; its end will tell more."""
        self._set(error)

    def came_back(self) -> bool:
        """Whether a ping has gone through after one that failed; asked once for each time."""
        came_back, self._came_back = self._came_back, False
        return came_back

    def _set(self, error: str) -> None:
        self.up, self.error = not error, error
