"""The waits between tries, as pure arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tornado_persist.pipeline.backoff import Backoff


def test_the_bound_doubles_to_30_seconds_and_starts_over_after_a_success() -> None:
    backoff = Backoff(spread=lambda low, high: high)
    assert [backoff.failed() for _ in range(11)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    backoff.succeeded()
    assert backoff.failed() == 0.1


@given(st.integers(0, 5000))
def test_the_wait_is_anywhere_between_nothing_and_the_bound(failures: int) -> None:
    backoff = Backoff()
    backoff.failures = failures
    assert 0 <= backoff.failed() <= min(30, 0.1 * 2 ** min(failures, 20))
