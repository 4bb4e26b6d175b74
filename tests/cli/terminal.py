"""A command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
import threading
from pathlib import Path
from typing import Self

from tests.process import COMMAND, environment


class OnTerminal:
    """Runs from the beginning of the context to its end; what it has said is in ``said`` by then, and before."""

    def __init__(self, *words: str, cwd: Path) -> None:
        self._main_side, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        self.process = subprocess.Popen(
            [*COMMAND, *words], cwd=cwd, env=environment(), stdin=terminal, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        self._seen: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def said(self) -> bytes:
        return b"".join(self._seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._main_side)

    def _read(self) -> None:
        try:
            while data := os.read(self._main_side, 65536):
                self._seen.append(data)
        except OSError:  # the end of a terminal
            pass
