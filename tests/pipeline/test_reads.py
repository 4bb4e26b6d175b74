"""Reads against a model: a fresh read shows what was accepted, one that is not shows a prefix of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rig import rig, run

_KEY = st.sampled_from(["a", "b", "c"])
_STEP = st.one_of(
    st.tuples(st.just("add"), _KEY, st.integers(0, 9)),
    st.tuples(st.just("flush"), _KEY, st.just(0)),
    st.tuples(st.just("fresh"), _KEY, st.just(0)),
    st.tuples(st.just("stale"), _KEY, st.just(0)),
)


async def follow(steps: list[tuple[str, str, int]], directory: Path) -> None:
    async with rig(directory) as parts:
        await parts.runner.open()
        model: dict[str, list[int]] = {}
        for step, key, value in steps:
            if step == "add":
                await parts.add(key, row_index=value)
                model.setdefault(key, []).append(value)
            elif step == "flush":
                assert (await parts.flusher.flush(5)).error is None
            else:
                if step == "fresh":
                    await parts.reads.freshen(5)
                    assert parts.reads.pending == 0
                row: Any = await parts.reads.row("task", ("s1", key))
                seen = None if row is None else row["row_index"]
                accepted = model.get(key, [])
                assert seen in ([accepted[-1] if accepted else None] if step == "fresh" else [None, *accepted])


@given(st.lists(_STEP, max_size=25))
@settings(max_examples=40)
def test_a_fresh_read_shows_all_that_was_accepted(steps: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run(follow(steps, Path(directory)))
