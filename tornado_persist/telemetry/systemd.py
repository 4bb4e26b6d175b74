"""Tells systemd that the service is ready, reloading, stopping or alive. Without systemd it does nothing."""

from __future__ import annotations

import contextlib
import socket
import time

from systemd_watchdog.systemd_watchdog import WatchDog

#: Seconds by which a long start or stop extends its time limit.
_EXTENSION = 60


class _Messages(WatchDog):
    """Adds the messages that the library lacks."""

    def send(self, *assignments: str) -> None:
        # systemd's queue may be full, or systemd restarting: neither may block or end the service.
        with contextlib.suppress(OSError):
            self._send("\n".join(assignments) + "\n")


class ServiceManager:
    """Sends messages to systemd by the ``sd_notify`` protocol. Never blocks or raises."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._messages = _Messages(sock=self._socket)
        self._ready = False
        self._status = ""

    @property
    def interval(self) -> float | None:
        """Seconds between two calls of :meth:`beat`; None without systemd."""
        if not self._messages.is_enabled:
            return None
        return min(self._messages.timeout_td.total_seconds() / 3, _EXTENSION / 6)

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        if text != self._status:
            self._status = text
            self._messages.send(f"STATUS={' '.join(text.split())}")

    def ready(self) -> None:
        """The service answers requests: after the start, or again after :meth:`reloading`."""
        self._ready = True
        self._messages.send("READY=1")

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        # Type=notify-reload needs the time.
        self._messages.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service drains, and accepts nothing more."""
        self._ready = False
        self._messages.send("STOPPING=1")

    def beat(self) -> None:
        """Tell the watchdog that the service is alive. Call it from the event loop, so that a stuck loop is noticed.

        A start that reads a large journal, and a long drain, ask for more time instead.
        """
        self._messages.send("WATCHDOG=1" if self._ready else f"EXTEND_TIMEOUT_USEC={_EXTENSION * 1_000_000}")

    def close(self) -> None:
        self._socket.close()
