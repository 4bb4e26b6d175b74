"""How many rows go into a transaction: fewer after a failure or a slow write, more while all goes well."""

from __future__ import annotations

from tornado_persist.pipeline.chunks import FIRST_TRY, PATIENCE, ChunkSize


def drain(size: ChunkSize, rows: int, *, seconds_a_row: float, limit: float, shortest: float = 0.001) -> float:
    """Write so many rows into a sink that needs that time for a row and fails after ``limit`` seconds; the time."""
    time = 0.0
    while rows > 0:
        count = min(rows, size.rows)
        needed = max(shortest, count * seconds_a_row)
        time += min(needed, limit)
        if needed > limit:
            size.failed(count)
        else:
            size.succeeded(count, needed)
            rows -= count
    return time


def test_a_sink_that_is_well_gets_the_most_at_once() -> None:
    size = ChunkSize(20_000)
    assert drain(size, 60_000, seconds_a_row=0.00001, limit=60) == 3 * 0.2
    assert size.rows == 20_000


def test_in_an_outage_fewer_and_fewer_rows_are_tried_and_afterwards_more_and_more() -> None:
    size = ChunkSize(20_000)
    tried = []
    for _ in range(10):
        tried.append(size.rows)
        size.failed(size.rows)
    assert tried == [20_000, FIRST_TRY, 50, 25, 12, 6, 3, 1, 1, 1]
    # The longest outage costs a second of small transactions.
    assert drain(size, 200_000, seconds_a_row=0.00001, limit=60) < 2 + 1
    assert size.rows > 10_000


def test_one_failure_costs_a_few_small_writes() -> None:
    size = ChunkSize(20_000)
    size.failed(20_000)
    tried = []
    for _ in range(10):
        tried.append(size.rows)
        size.succeeded(size.rows, 0.01)
    assert tried == [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]


def test_a_time_limit_is_found_and_rarely_met_again() -> None:
    # 4 ms a row and a limit of 5 s: 1,250 rows pass.
    time = drain(ChunkSize(20_000), 20_000, seconds_a_row=0.004, limit=5)
    assert time < 80 + 2 * 5
    # Where a single row takes a second, rows go one by one.
    assert drain(ChunkSize(20_000), 20, seconds_a_row=1, limit=1.5) < 20 + 20 * 1.5


def test_a_limit_on_the_size_alone_is_found_and_tried_again_now_and_then() -> None:
    size = ChunkSize(20_000)
    failures = 0
    for _ in range(200):
        if size.rows > 3000:
            failures += 1
            size.failed(size.rows)
        else:
            size.succeeded(size.rows, 0.01)
    assert 2 < failures < 200 / PATIENCE
    for _ in range(200):
        size.succeeded(size.rows, 0.01)
    assert size.rows == 20_000


def test_a_slow_write_makes_the_next_smaller_and_few_rows_say_nothing() -> None:
    size = ChunkSize(20_000)
    size.succeeded(20_000, 8.0)
    assert size.rows == 10_000
    size.succeeded(10_000, 1.5)
    assert size.rows == 10_000
    for _ in range(100):
        size.succeeded(5, 0.01)
    assert size.rows == 10_000
