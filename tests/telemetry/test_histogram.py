"""Distributions in buckets, against the plain list of what was observed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram

from tornado_persist.telemetry.metrics import Reading

BOUNDS = (0.1, 0.5, 1.0, 5.0)
VALUES = st.lists(st.floats(min_value=0, max_value=10), max_size=50)


def empty() -> Histogram:
    return Histogram("seconds", "Seconds.", registry=None, buckets=BOUNDS)


def observed(values: list[float]) -> Histogram:
    histogram = empty()
    for value in values:
        histogram.observe(value)
    return histogram


@given(VALUES)
def test_each_bound_has_the_count_of_what_is_at_most_that(values: list[float]) -> None:
    reading = Reading.of(observed(values))
    assert reading.at_most == {bound: sum(value <= bound for value in values) for bound in (*BOUNDS, math.inf)}
    assert reading.count == len(values)
    assert reading.sum == pytest.approx(sum(values))
    assert reading.mean == (pytest.approx(sum(values) / len(values)) if values else None)


@given(VALUES.filter(bool), st.floats(min_value=0.01, max_value=1))
def test_a_quantile_is_told_by_the_upper_bound_of_its_bucket(values: list[float], q: float) -> None:
    found = Reading.of(observed(values)).bound(q)
    rank = next(index for index in range(1, len(values) + 1) if index >= q * len(values))
    true = sorted(values)[rank - 1]
    assert found == min([bound for bound in BOUNDS if bound >= true], default=math.inf)


def test_nothing_observed_has_no_quantile() -> None:
    assert Reading.of(empty()).bound(0.5) is None


@given(VALUES, VALUES)
def test_what_came_between_two_readings_is_their_difference(first: list[float], second: list[float]) -> None:
    histogram = observed(first)
    before = Reading.of(histogram)
    for value in second:
        histogram.observe(value)
    difference = Reading.of(histogram) - before
    assert difference.at_most == Reading.of(observed(second)).at_most
    assert difference.sum == pytest.approx(sum(second), abs=1e-9)


def until(done: threading.Event, look: Callable[[], int]) -> list[int]:
    seen = [look()]
    while not done.is_set():
        seen.append(look())
    return seen


def test_a_reader_beside_the_thread_that_observes_sees_every_count_once() -> None:
    histogram, done = empty(), threading.Event()

    def observe() -> None:
        for _ in range(20_000):
            histogram.observe(0.3)
        done.set()

    thread = threading.Thread(target=observe)
    thread.start()
    seen = until(done, lambda: Reading.of(histogram).count)
    thread.join()
    assert seen == sorted(seen), "a count never goes down"
    assert list(Reading.of(histogram).at_most.values()) == [0, *[20_000] * 4]
