"""Whether a sink is up, as its calls tell: a write that failed outweighs a ping that goes through."""

from __future__ import annotations

from tornado_persist.sinks.availability import Availability


def test_only_a_write_that_goes_through_mends_a_write_that_failed() -> None:
    sink = Availability()
    assert (sink.up, sink.error) == (None, "not opened yet")
    sink.ping_ended()
    assert (sink.up, sink.error) == (True, "")
    sink.write_ended("no rights")
    for _ in range(3):
        sink.ping_ended()
        assert (sink.up, sink.error) == (False, "no rights")
        assert not sink.came_back(), "it was there all the time"
    sink.write_ended()
    assert (sink.up, sink.error) == (True, "")


def test_a_ping_mends_what_a_ping_found() -> None:
    sink = Availability()
    sink.ping_ended("refused")
    assert (sink.up, sink.error) == (False, "refused")
    sink.ping_ended()
    assert (sink.up, sink.error) == (True, "")


def test_coming_back_is_told_once() -> None:
    sink = Availability()
    sink.write_ended("refused")
    for _ in range(2):
        sink.ping_ended("refused")
        assert not sink.came_back()
        sink.ping_ended()
        sink.ping_ended()
        assert sink.came_back()
        assert not sink.came_back()
        assert not sink.up


def test_coming_and_going_again_is_no_coming_back() -> None:
    sink = Availability()
    sink.ping_ended("refused")
    sink.ping_ended()
    sink.ping_ended("refused")
    assert not sink.came_back()


def test_a_call_that_takes_too_long_is_mended_by_its_end() -> None:
    sink = Availability()
    sink.write_ended()
    sink.stalled("silent")
    assert (sink.up, sink.error) == (False, "silent")
    sink.write_ended()
    assert sink.up
