"""Reading what a sink has stored: the interface, and the threads in which the service reads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tornado_persist.errors import NotReadable, ReadFailed, SinkUnavailable
from tornado_persist.records.models import Fields
from tornado_persist.records.queries import Query
from tornado_persist.telemetry import log, redaction

T = TypeVar("T")

logger = log.get(__name__)

#: Seconds that a read may take.
READ_TIMEOUT = 5.0
#: Threads that read whatever comes, each with a connection of its own. One more reads single rows alone, so that slow
#: lists do not hold them up.
THREADS = 2

_SLOW = f"The read took more than {READ_TIMEOUT:g} seconds; ask for fewer rows, or with other conditions"
_BUSY = f"Other reads have kept the database busy for {READ_TIMEOUT:g} seconds; try again later"


class Page(NamedTuple):
    """Rows in the order of the query."""

    rows: list[Fields]
    more: bool  #: whether others come after these


class Reader(ABC):
    """Reads rows beside the sink's writes, which it never holds up. Blocking; every call comes from one thread.

    A new object does no I/O. ``open`` comes first, and again after ``SinkUnavailable`` and ``close``. A row has the
    fields that the place has, times as texts in UTC (``models.Batch``), free JSON as ``dict`` or as its text in a
    ``msgspec.Raw``. Each method sees one state of the place, and gives up after ``READ_TIMEOUT`` seconds.
    """

    @abstractmethod
    def open(self) -> None:
        """Connect. Creates nothing.

        Raises:
            SinkUnavailable: the place cannot be reached, or refuses us. So does every other method.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up the connection. Never raises."""

    @abstractmethod
    def page(self, query: Query, max_bytes: int) -> Page:
        """The first rows of the query, up to its limit; fewer if their texts take more than ``max_bytes``.

        At least one, if there is any. The order is one of the keys, the same at each call.
        """

    @abstractmethod
    def count(self, query: Query) -> int:
        """How many rows meet the query's conditions, whatever its ``after`` and ``limit`` are."""

    @abstractmethod
    def count_tasks(self, session_ids: Collection[str]) -> Mapping[str, Mapping[str, int]]:
        """For each of these sessions that has tasks: how many of each status."""


@dataclass(slots=True, eq=False)
class _Call:
    function: Callable[[Reader], Any]
    future: asyncio.Future[Any]
    one_row: bool
    begun: bool = False


class _Calls:
    """Calls that wait for a thread. Clients take turns: one with a hundred lists keeps no other from being the next.

    Their number needs no limit: each waits for ``READ_TIMEOUT`` at most, and counts as a connection.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: By client, that whose turn is next first.
        self._calls: dict[str, deque[_Call]] = {}
        self._closed = False

    def put(self, client: str, call: _Call) -> None:
        with self._changed:
            self._calls.setdefault(client, deque()).append(call)
            self._changed.notify_all()

    def get(self, *, one_row: bool) -> _Call | None:
        """The next one, None at the end; ``one_row``: of those for single rows."""
        with self._changed:
            while True:
                for client, calls in self._calls.items():
                    call = next((call for call in calls if call.one_row or not one_row), None)
                    if call is not None:
                        calls.remove(call)
                        del self._calls[client]
                        if calls:
                            self._calls[client] = calls  # the last now
                        return call
                if self._closed:
                    return None
                self._changed.wait()

    def close(self) -> None:
        """No more come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class ReadPool:
    """Runs reads in ``THREADS`` daemon threads and one for single rows, which start with the first read.

    Clients, by token or else by address, take turns.
    """

    def __init__(self, make: Callable[[], Reader | None], name: str) -> None:
        """``make`` is :meth:`Sink.reader`; ``name`` the sink's."""
        self._name = name
        self._readers = [reader for _ in range(THREADS + 1) if (reader := make())]
        self._calls = _Calls()
        self._loop = asyncio.get_running_loop()
        self._threads: list[threading.Thread] = []
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def read(self, function: Callable[[Reader], T], *, one_row: bool = False) -> T:
        """What ``function`` returns, in ``READ_TIMEOUT`` seconds. ``one_row``: it reads a single row, which is quick.

        Raises:
            NotReadable: the sink offers no reads.
            ReadFailed: it cannot be read now, or the read took too long.
        """
        if not self._readers:
            raise NotReadable(f"sink {self._name} cannot be read through the service; look at the place itself")
        if self._closed:
            raise ReadFailed("The sink is closed")
        if not self._threads:
            self._start()
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        call = _Call(function, future, one_row)
        address, token = log.client.get() or ("", "")
        self._calls.put(token or address, call)
        try:
            async with asyncio.timeout(READ_TIMEOUT + 0.5):  # what the database says at its limit tells more
                return await future
        except TimeoutError:
            raise ReadFailed(_SLOW if call.begun else _BUSY) from None

    async def close(self, timeout: float = 1.0) -> None:
        """Close the connections; after ``timeout`` seconds abandon reads that still run. Never raises."""
        if self._closed:
            return
        self._closed = True
        self._calls.close()
        deadline = time.monotonic() + timeout
        while any(thread.is_alive() for thread in self._threads) and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        for future in self._waiting:
            if not future.done():
                future.set_exception(ReadFailed("The sink was closed"))

    def _start(self) -> None:
        for number, reader in enumerate(self._readers):
            name = f"read-{self._name}-{number}"
            thread = threading.Thread(target=self._run, args=[reader, number == THREADS], name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    # In a thread.

    def _run(self, reader: Reader, one_row: bool) -> None:
        is_open = False
        while (call := self._calls.get(one_row=one_row)) is not None:
            function, future = call.function, call.future
            if future.done():  # nobody waits any more
                continue
            call.begun = True
            result: Any = None
            error: BaseException | None = None
            began = time.monotonic()
            try:
                is_open, result = self._read(reader, function, is_open)
            except SinkUnavailable as exc:
                is_open = False
                slow = time.monotonic() - began > READ_TIMEOUT * 0.9
                error = ReadFailed(_SLOW if slow else f"The database cannot be read: {redaction.mask(str(exc))}")
            except Exception as exc:
                is_open = False
                reader.close()
                logger.exception("a bug in the reader", sink=self._name)
                error = ReadFailed(f"A bug in the reader of sink {self._name}: {type(exc).__name__}")
            del call, function
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(settle, future, result, error)
            del result, error
        reader.close()

    @staticmethod
    def _read(reader: Reader, function: Callable[[Reader], T], is_open: bool) -> tuple[bool, T]:
        """Read; a connection that was open before may be broken by now, so it gets a second try."""
        began = time.monotonic()
        while True:
            try:
                if not is_open:
                    reader.open()
                return True, function(reader)
            except SinkUnavailable:
                reader.close()
                if not is_open or time.monotonic() - began > 1.0:
                    raise
                is_open = False


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Give a call's result, or its error, to the caller, who may have given up by now. On the event loop."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
