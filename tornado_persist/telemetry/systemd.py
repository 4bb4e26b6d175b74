"""What the service manager is told: ready, reloading, stopping, alive. Without systemd all of it is silence."""

from __future__ import annotations

import contextlib
import socket
import time

from systemd_watchdog.systemd_watchdog import WatchDog

#: Seconds by which a start or stop that is still at work asks for more time.
_EXTENSION = 60


class _Messages(WatchDog):
    """The library's, and the messages that it lacks."""

    def send(self, *assignments: str) -> None:
        # The manager's queue may be full, or the manager gone: neither may hold the service up or end it.
        with contextlib.suppress(OSError):
            self._send("\n".join(assignments) + "\n")


class ServiceManager:
    """The way to systemd, by ``sd_notify``'s protocol. Nothing here blocks or raises."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._messages = _Messages(sock=self._socket)
        self._ready = False
        self._status = ""

    @property
    def interval(self) -> float | None:
        """Seconds between two :meth:`beat`; None when nobody listens."""
        if not self._messages.is_enabled:
            return None
        return min(self._messages.timeout_td.total_seconds() / 3, _EXTENSION / 6)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._messages.send(f"STATUS={' '.join(text.split())}")

    def ready(self) -> None:
        """It serves: for the first time, or again after :meth:`reloading`."""
        self._ready = True
        self._messages.send("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again."""
        # The time is what Type=notify-reload asks for.
        self._messages.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """It drains, and takes no more."""
        self._ready = False
        self._messages.send("STOPPING=1")

    def beat(self) -> None:
        """It lives: to be called from the event loop, so that a loop that is stuck is noticed.

        A long start (the journal may be large) and a long drain are no sign of death, and get the time they need.
        """
        self._messages.send("WATCHDOG=1" if self._ready else f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}")

    def close(self) -> None:
        self._socket.close()
