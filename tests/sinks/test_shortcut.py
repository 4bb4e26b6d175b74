"""A shortcut that failed is tried more and more seldom, until it works again."""

from __future__ import annotations

from tornado_persist.sinks.postgres import Shortcut


def test_a_try_in_vain_is_not_repeated_for_longer_and_longer() -> None:
    shortcut = Shortcut()

    def pause() -> int:
        """Times that it is left out until the next try."""
        count = 0
        while not shortcut.worth_a_try():
            count += 1
        return count

    pauses = []
    for _ in range(9):
        pauses.append(pause())
        shortcut.failed()
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 64, 64]
    assert pause() == 64
    shortcut.succeeded()
    assert pause() == 0
    shortcut.failed()
    assert pause() == 1
