"""Distributions in buckets, against the plain list of what was observed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornado_persist.telemetry.metrics import Histogram

BOUNDS = (0.1, 0.5, 1.0, 5.0)
VALUES = st.lists(st.floats(min_value=0, max_value=10), max_size=50)


def observed(values: list[float]) -> Histogram:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    return histogram


@given(VALUES)
def test_each_bucket_holds_what_is_at_most_its_bound_and_above_the_one_before(values: list[float]) -> None:
    reading = observed(values).read()
    edges = (float("-inf"), *BOUNDS, float("inf"))
    expected = [sum(low < value <= high for value in values) for low, high in itertools.pairwise(edges)]
    assert list(reading.counts) == expected
    assert reading.count == len(values)
    assert reading.sum == pytest.approx(sum(values))
    assert reading.mean == (pytest.approx(sum(values) / len(values)) if values else None)


@given(VALUES.filter(bool), st.floats(min_value=0.01, max_value=1))
def test_a_quantile_is_in_the_bucket_of_the_value_of_that_rank(values: list[float], q: float) -> None:
    found = observed(values).read().quantile(q)
    rank = next(index for index in range(1, len(values) + 1) if index >= q * len(values))
    true = sorted(values)[rank - 1]
    low = max([bound for bound in BOUNDS if bound < true], default=0.0)
    high = min([bound for bound in BOUNDS if bound >= true], default=BOUNDS[-1])
    assert found is not None
    assert min(low, BOUNDS[-1]) <= found <= high + 1e-9


def test_nothing_observed_has_no_quantile() -> None:
    assert Histogram(BOUNDS).read().quantile(0.5) is None


@given(VALUES, VALUES)
def test_what_came_between_two_readings_is_their_difference(first: list[float], second: list[float]) -> None:
    histogram = observed(first)
    before = histogram.read()
    for value in second:
        histogram.observe(value)
    difference = histogram.read() - before
    assert difference.counts == observed(second).read().counts
    assert difference.sum == pytest.approx(sum(second), abs=1e-9)
    assert (before + difference).counts == histogram.read().counts


def until(done: threading.Event, look: Callable[[], int]) -> list[int]:
    seen = [look()]
    while not done.is_set():
        seen.append(look())
    return seen


def test_a_reader_beside_the_thread_that_observes_sees_every_count_once() -> None:
    histogram, done = Histogram(BOUNDS), threading.Event()

    def observe() -> None:
        for _ in range(20_000):
            histogram.observe(0.3)
        done.set()

    thread = threading.Thread(target=observe)
    thread.start()
    seen = until(done, lambda: histogram.read().count)
    thread.join()
    assert seen == sorted(seen), "a count never goes down"
    assert histogram.read().counts == (0, 20_000, 0, 0, 0)
