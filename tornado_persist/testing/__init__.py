"""For tests: sinks in memory, and the contract that every sink keeps, as a class of pytest tests to subclass.

The author of a sink says how to get one and how to read back what it stored::

    from tornado_persist.testing import SinkContract

    class TestElasticSink(SinkContract):
        @pytest.fixture
        def sink(self, tmp_path):
            sink = ElasticSink(ElasticSink.Settings(url=...), tmp_path)
            sink.open()  # on an empty place
            yield sink
            sink.close()

        def read(self, sink):  # not by the sink's own code, lest a mistake in both cancel out
            return {"session": {row["session_id"]: row for row in ...}, "task": {...}}

``read`` gives rows as Python values: text, integers, floats, dicts for JSON objects, times as aware datetimes in UTC or
as the texts that rows hold, ``None`` for null, every field of the model with ``created_at`` and ``updated_at``.
Override :meth:`SinkContract.fault` too if a write can be made to fail, and :attr:`SinkContract.durable` and
:attr:`SinkContract.shared` where they do not hold.

None of it needs pytest before a test is run, so the sinks serve elsewhere as well.
"""

from __future__ import annotations

from tornado_persist.testing.comparison import same
from tornado_persist.testing.contract import SinkContract
from tornado_persist.testing.samples import JSON_OBJECTS, KEYS_ALIKE, SECOND, T0, TEXTS, session, task
from tornado_persist.testing.sinks import FIELDS, AppendSink, FlakySink, MemorySink, Stored, complete, merge, nothing

__all__ = [
    "FIELDS",
    "JSON_OBJECTS",
    "KEYS_ALIKE",
    "SECOND",
    "T0",
    "TEXTS",
    "AppendSink",
    "FlakySink",
    "MemorySink",
    "SinkContract",
    "Stored",
    "complete",
    "merge",
    "nothing",
    "same",
    "session",
    "task",
]
