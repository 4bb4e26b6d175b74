"""Work that nobody waits for at once. The event loop alone keeps no hold on its tasks: one could be lost half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """Tasks of one owner, each held until it is done."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin with it in the next round of the running loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout: float | None = None) -> None:
        """Wait until all that was begun is done; ``timeout`` seconds at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=None if timeout is None else max(0.0, timeout))
