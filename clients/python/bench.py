"""The client beside the specification's example: how long an event loop stands still, and calls a second.

``python clients/python/bench.py http://localhost:8001``, in a checkout, with a service running there. Its rows are
written to that service.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "clients" / "python" / "src")]

from tests.spec_client import PersistenceClient  # type: ignore[attr-defined]  # noqa: E402
from tornado_persist.client import Client  # noqa: E402

ROUNDS = 5
SECONDS = 2.0
#: Rows a second in the event loop.
RATE = 2000
CALLS = 100_000


def row(number: int) -> dict[str, object]:
    return {
        "session_id": "bench",
        "task_id": f"t{number}",
        "batch_id": "b1",
        "sheet_name": "Sheet1",
        "row_index": number,
        "column_name": "Text",
        "source_text": "Hello, world. " * 10,
        "target_text": "你好，世界。" * 10,
        "status": "completed",
        "confidence": 0.95,
    }


async def stall(add: Callable[[dict[str, object]], Awaitable[None]]) -> float:
    """The longest time in seconds by which an event loop was late, while it adds rows and sleeps 1 ms in between."""
    worst, number = 0.0, 0
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < SECONDS:
        while number < (now - began) * RATE:
            await add(row(number))
            number += 1
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - before - 0.001, before - now)
    return worst


async def idle() -> float:
    async def nothing(_: dict[str, object]) -> None:
        return None

    return await stall(nothing)


async def ours(url: str) -> float:
    async with Client(url, interval=0.5) as persist:

        async def add(fields: dict[str, object]) -> None:
            persist.task(**fields)  # type: ignore[arg-type, misc]

        return await stall(add)


async def example(url: str) -> float:
    return await stall(PersistenceClient(url).add_task)


def main() -> None:
    url = sys.argv[1]
    for name, run in (("nothing", idle), ("this client", lambda: ours(url)), ("the example", lambda: example(url))):
        worst = sorted(asyncio.run(run()) * 1000 for _ in range(ROUNDS))
        print(f"worst stall, {name}: median {statistics.median(worst):.1f} ms ({worst[0]:.1f} to {worst[-1]:.1f})")
    rows = [row(number) for number in range(CALLS)]
    with Client(url, max_rows=CALLS) as persist:
        began = time.perf_counter()
        for fields in rows:
            persist.task(**fields)  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
    print(f"calls of task(): {CALLS / seconds:,.0f} a second; {persist.stats}")


if __name__ == "__main__":
    main()
