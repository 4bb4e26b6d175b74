"""Random batches, flushes, failures, deletes, fresh reads and restarts, against a dict."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from tests.rig import Rig, run
from tornado_persist.errors import NothingThere, ReadFailed, SinkUnavailable
from tornado_persist.pipeline.removal import Deleted
from tornado_persist.testing import FlakySink

IDS = ("a", "b", "c")
KEYS = ("1", "2", "3", "4")
FIELDS = st.fixed_dictionaries({}, optional={"context": st.sampled_from(["x", "y", None]), "retry_count": st.just(7)})

#: A step: its name, and what it needs.
Step: TypeAlias = tuple[Any, ...]
Model: TypeAlias = dict[tuple[str, ...], dict[str, Any]]

STEPS = st.one_of(
    st.tuples(st.just("session"), st.sampled_from(IDS)),
    st.tuples(st.just("tasks"), st.sampled_from(IDS), st.lists(st.sampled_from(KEYS), min_size=1), FIELDS),
    st.tuples(st.just("flush")),
    st.tuples(st.just("fail")),
    st.tuples(st.just("delete"), st.sampled_from(IDS)),
    st.tuples(st.just("delete task"), st.sampled_from(IDS), st.sampled_from(KEYS)),
    st.tuples(st.just("read"), st.sampled_from(IDS), st.sampled_from(KEYS)),
    st.tuples(st.just("crash")),
)


@given(st.lists(STEPS, max_size=25))
def test_any_sequence_leaves_what_a_dict_would_hold(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run(_follow(Path(directory), steps))


async def _follow(directory: Path, steps: list[Step]) -> None:
    sink, model = FlakySink(), Model()
    it = Rig(directory / "0", sink)
    await it.start()
    for number, step in enumerate(steps, 1):
        match step:
            case ("session", id):
                await it.add(id, kind="session")
                model.setdefault((id,), {})
            case ("tasks", id, keys, fields):
                await it.add(*keys, session_id=id, **fields)
                for key in keys:
                    model.setdefault((id, key), {"context": None, "retry_count": 0}).update(fields)
            case ("flush",):
                await it.flusher.flush(5)
            case ("fail",):
                sink.fail_next()
            case ("delete", id):
                before = {key for key in model if key[0] == id}
                await _delete(partial(it.remover.delete_session, id, 5), len(before))
                for key in before:
                    del model[key]
            case ("delete task", id, key):
                await _delete(partial(it.remover.delete_task, id, key, 5), int((id, key) in model))
                model.pop((id, key), None)
            case ("read", id, key):
                with contextlib.suppress(ReadFailed):  # for a failure that was ordered
                    await it.reads.freshen(5)
                    row = await it.reads.row("task", (id, key))
                    expected = model.get((id, key))
                    assert (row is None) == (expected is None)
                    assert {name: (row or {})[name] for name in expected or {}} == (expected or {})
            case ("crash",):
                # What is on the disk now, with the same database.
                shutil.copytree(it.data_dir, directory / str(number))
                await it.stop()
                sink.close()
                it = Rig(directory / str(number), sink)
                await it.start()
    while (await it.flusher.flush(5)).error is not None:
        pass
    it.assert_conserved()
    stored = {**sink.stored["session"], **sink.stored["task"]}
    await it.stop()
    assert stored.keys() == model.keys()
    for key, fields in model.items():
        assert {name: stored[key][name] for name in fields} == fields


async def _delete(delete: Callable[[], Awaitable[Deleted]], rows: int) -> None:
    """A delete must go well in the end; its flush meets the failures that were ordered."""
    while True:
        try:
            deleted = await delete()
            assert deleted.sessions + deleted.tasks == rows > 0
        except SinkUnavailable:
            continue
        except NothingThere:
            assert rows == 0
        return
