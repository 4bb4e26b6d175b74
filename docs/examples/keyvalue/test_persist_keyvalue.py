"""The contract of every sink, over this one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from persist_keyvalue import KeyValueSettings, KeyValueSink

from tornado_persist.testing import SinkContract, Stored


class TestKeyValueSink(SinkContract):
    @pytest.fixture
    def sink(self, tmp_path: Path) -> Iterator[KeyValueSink]:
        sink = KeyValueSink(KeyValueSettings(), tmp_path)
        sink.open()
        yield sink
        sink.close()

    def read(self, sink: KeyValueSink) -> Stored:
        stored: Stored = {"session": {}, "task": {}}
        with closing(sqlite3.connect(sink.path)) as store:
            for kind, key, value in store.execute("SELECT kind, key, value FROM rows"):
                stored[kind][tuple(json.loads(key))] = json.loads(value)
        return stored

    @contextmanager
    def fault(self, sink: KeyValueSink) -> Iterator[None]:
        with closing(sqlite3.connect(sink.path, isolation_level=None)) as store:
            store.execute(
                "CREATE TRIGGER not_this BEFORE INSERT ON rows WHEN json_extract(NEW.key, '$[1]') = 'refused'"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
            yield
            store.execute("DROP TRIGGER not_this")
