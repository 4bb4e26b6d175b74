"""A sink in memory."""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks.base import Sink, SinkSettings
from tornado_persist.testing.stored import Stored, merge, nothing


class MemorySink(Sink[SinkSettings]):
    """Keeps its rows in :attr:`stored`, also when it is closed and opened again."""

    name: ClassVar[str] = "memory"
    Settings: ClassVar[type[SinkSettings]] = SinkSettings

    def __init__(self, settings: SinkSettings | None = None, data_dir: Path | None = None) -> None:
        super().__init__(settings or SinkSettings(), data_dir or Path())
        self.stored: Stored = nothing()
        #: Every batch written, in order.
        self.batches: list[Batch] = []
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def write(self, batch: Batch) -> None:
        self._need_open()
        merge(self.stored, batch)
        self.batches.append(Batch(list(map(copy.copy, batch.sessions)), list(map(copy.copy, batch.tasks))))

    def ping(self) -> None:
        self._need_open()

    def close(self) -> None:
        self.is_open = False

    def describe(self) -> str:
        return "memory"

    def find_sessions(self, session_ids: Collection[str]) -> set[str]:
        self._need_open()
        return self.stored["session"].keys() & set(session_ids)

    def _need_open(self) -> None:
        if not self.is_open:
            raise SinkUnavailable("the memory sink is not open")
