"""Long pieces of work do not pile up in one round of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from tornado_persist.pipeline.turns import Turns


@pytest.mark.gen_test
async def test_each_round_of_the_loop_has_one_turn_and_the_first_comes_first() -> None:
    turns, rounds, done = Turns(), 0, []

    async def work(name: str) -> None:
        await turns.take()
        done.append((name, rounds))

    def count() -> None:
        nonlocal rounds
        rounds += 1
        if len(done) < 8:
            asyncio.get_running_loop().call_soon(count)

    count()
    await asyncio.gather(*map(work, "abcdefgh"))
    assert [name for name, _ in done] == list("abcdefgh")
    assert len({round_ for _, round_ in done}) == 8, "two of them shared a round"


@pytest.mark.gen_test
async def test_whoever_is_gone_gives_the_turn_to_the_next() -> None:
    turns = Turns()
    tasks = [asyncio.ensure_future(turns.take()) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait_for(tasks[3], 5)
    await asyncio.wait_for(turns.take(), 5)
    assert [task.cancelled() for task in tasks] == [False, True, True, False]
