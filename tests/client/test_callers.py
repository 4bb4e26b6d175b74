"""What a caller may do: callbacks that fail, log handlers that call back, values out of range. It is never hurt."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.process import wait_until
from tests.rows import task
from tornado_persist.client import Client
from tornado_persist.client.client import _clients
from tornado_persist.client.testing import Recorder

LOGGER = logging.getLogger("tornado_persist.client")


class Calling(logging.Handler):
    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def emit(self, _: logging.LogRecord) -> None:
        self._call()


def fail() -> None:
    raise RuntimeError("from the handler")


@pytest.fixture
def handled_by() -> Iterator[Callable[[Callable[[], object]], None]]:
    """What the client logs calls a function."""
    handlers: list[logging.Handler] = []

    def add(call: Callable[[], object]) -> None:
        handlers.append(Calling(call))
        LOGGER.addHandler(handlers[-1])

    yield add
    for handler in handlers:
        LOGGER.removeHandler(handler)


def leave(*_: object) -> None:
    raise SystemExit


def divide(*_: object) -> float:
    return 1 / 0


@pytest.mark.parametrize("on_drop", [divide, leave])
def test_an_on_drop_that_fails_is_logged_once_a_minute_and_nothing_else(
    on_drop: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    recorder.fail(500, times=4)
    with Client(transport=recorder, max_rows=1, interval=60, on_drop=on_drop) as persist:
        with persist._changed:  # nothing is sent meanwhile
            for number in range(10):  # in the thread that calls
                persist.task(**task(str(number)))
            assert persist.stats.dropped == {"full": 9}
        persist.flush()
        for number in range(3):  # in the client's, which goes on
            persist.task(**task(str(number)))
            persist.flush()
        persist.task(**task("last"))
        assert persist.flush()
    assert recorder.tasks.keys() == {("s1", "last")}
    assert persist.stats.calls == 14
    assert [it.exc_info is not None for it in caplog.records if it.message == "on_drop failed"] == [True]


def test_an_on_drop_may_use_the_client() -> None:
    calls = 0
    seconds: list[float] = []

    def again(rows: Sequence[dict[str, Any]], _: str) -> None:
        nonlocal calls
        for row in rows:
            persist.task(**row)
        calls += 1
        began = time.monotonic()
        if threading.current_thread().name == "tornado-persist-client":
            assert not persist.flush(), "it would wait for itself"
        seconds.append(time.monotonic() - began)

    recorder = Recorder()
    recorder.fail(500)
    persist = Client(transport=recorder, max_rows=1, interval=60, on_drop=again)
    with persist._changed:  # nothing is sent meanwhile
        for number in range(3):
            persist.task(**task(str(number)))
        assert (calls, persist.stats.dropped) == (2, {"full": 4}), "what it gives in turn is counted, and not told"
    persist.flush()
    persist.close()
    assert persist.stats.calls == 6
    assert (persist.stats.sent, persist.stats.dropped) == (1, {"full": 4, "refused": 1})
    assert max(seconds) < 5


def test_an_on_drop_that_hangs_does_not_hold_up_the_close() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        entered.set()
        go_on.wait(60)

    recorder = Recorder()
    recorder.fail(500)
    persist = Client(transport=recorder, max_batch=1, on_drop=hang)
    persist.task(**task("a"))
    assert entered.wait(20)
    persist.task(**task("b"))
    began = time.monotonic()
    persist.close(0.1)
    assert time.monotonic() - began < 20
    assert persist.stats.dropped == {"refused": 1, "closed": 1}
    go_on.set()


def test_a_log_handler_that_fails_hurts_neither_the_caller_nor_the_thread(handled_by: Any) -> None:
    handled_by(fail)
    recorder = Recorder()
    recorder.fail(500)
    with Client(transport=recorder, max_rows=1, on_drop=divide) as persist:
        with persist._changed:  # nothing is sent meanwhile
            persist.task(**task("a"))
            persist.task(**task("b"))
        persist.flush()
        persist.task(**task("c"))
        assert persist.flush()
        persist.close()
        persist.task(**task("d"))
    assert persist.stats.dropped == {"full": 1, "refused": 1, "closed": 1}


def test_a_log_handler_may_log_through_the_client(handled_by: Any) -> None:
    recorder = Recorder()
    recorder.fail(500)
    with Client(transport=recorder, max_rows=1, interval=60) as persist:
        logged = 0

        def log() -> None:
            nonlocal logged
            logged += 1
            persist.task(**task("logged"))

        handled_by(log)
        persist.task(**task("a"))
        persist.flush()
        wait_until(lambda: logged == 1, "the warning")
        assert persist.flush()
        assert recorder.tasks.keys() == {("s1", "logged")}
    persist.task(**task("late"))
    assert persist.stats.calls == 2 + logged


def test_a_client_that_the_program_has_forgotten_is_closed_at_the_exit() -> None:
    recorder = Recorder()
    Client(transport=recorder, interval=60).task(**task())
    gc.collect()
    (forgotten,) = [it for it in list(_clients) if it._address._transport is recorder]
    forgotten.close()
    assert recorder.tasks


def test_endless_times_are_times_and_what_is_no_number_is_an_error() -> None:
    endless = float("inf")
    persist = Client(transport=Recorder(), interval=endless, max_rows=1)
    assert persist.tasks([task("a"), task("a")], wait=endless) == 2
    assert persist.flush(endless)
    assert asyncio.run(persist.aflush(endless))
    persist.task(**task("b"))
    persist.flush(0)
    persist.flush(-1)
    asyncio.run(persist.aflush(0))
    persist.close(endless)
    assert persist.stats.dropped == {}
    for name in ("interval", "max_batch", "max_bytes", "max_rows", "timeout"):
        for number in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=name):
                Client(**{name: number})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retries"):
        Client(retries=-1)


def test_a_signal_handlers_row_waits_for_the_call_that_it_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(transport=Recorder(), interval=60) as persist:
        put = persist._queue.put
        order: list[str] = []

        def interrupted(kind: Any, row: dict[str, Any]) -> Any:
            order.append("begins")
            if len(order) == 1:
                persist.task(**task("of the handler"))
            order.append("ends")
            return put(kind, row)

        monkeypatch.setattr(persist._queue, "put", interrupted)
        persist.task(**task("a"))
        assert order == ["begins", "ends"] * 2
        assert persist.stats.calls == 2


def test_flushes_that_nobody_waits_for_any_longer_are_forgotten() -> None:
    recorder = Recorder()
    recorder.fail(503, times=100)
    persist = Client(transport=recorder, retries=100)
    persist.task(**task())
    for _ in range(20):
        persist.flush(0.001)
    assert len(persist._sender._flushes) <= 2
    persist.close(0)
