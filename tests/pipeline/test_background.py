"""Work in the background is held, and can be waited for."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tornado_persist.pipeline.background import Background


@pytest.mark.gen_test
async def test_what_was_begun_is_done_before_finish_returns() -> None:
    background, done = Background(), []

    async def work(number: int) -> None:
        await asyncio.sleep(0.01 * number)
        done.append(number)

    for number in range(3):
        background.spawn(work(number))
    gc.collect()
    await background.finish()
    assert done == [0, 1, 2]


@pytest.mark.gen_test
async def test_the_wait_has_its_bound_and_the_work_goes_on() -> None:
    background, go, done = Background(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        done.set()

    background.spawn(work())
    await background.finish(0.01)
    assert not done.is_set()
    go.set()
    await background.finish(-1)
    await background.finish()
    assert done.is_set()
