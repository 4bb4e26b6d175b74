"""A guess that did not hold is made more and more seldom, until it holds again."""

from __future__ import annotations

from tornado_persist.records.hunch import Hunch


def test_a_try_in_vain_is_not_repeated_for_longer_and_longer() -> None:
    hunch = Hunch()

    def pause() -> int:
        """Times that it is left out until the next try."""
        count = 0
        while not hunch.worth_a_try():
            count += 1
        return count

    pauses = []
    for _ in range(9):
        pauses.append(pause())
        hunch.failed()
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64, 64]
    assert pause() == 64
    hunch.succeeded()
    assert pause() == 0
    hunch.failed()
    assert pause() == 1
