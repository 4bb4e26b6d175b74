"""The client: rows go into a queue at once, and a thread of its own sends them."""

from __future__ import annotations

import asyncio
import atexit
import os
import ssl
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, cast

import httpx

from tornado_persist.client.connection import Address
from tornado_persist.client.queue import Queue, Reason, Stats
from tornado_persist.client.reading import Reader
from tornado_persist.client.sender import Sender, Settings
from tornado_persist.client.tables import rows_of
from tornado_persist.client.values import Kind, Row, Session, Task, prepare

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

#: Seconds in which all clients of a process must have sent what waits, when it ends.
AT_EXIT = 5.0

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client(Reader):
    """Sends sessions and tasks to the service, in the background; reads them back while the caller waits.

    :meth:`session` and :meth:`task` return at once and raise nothing because of the network. One object serves any
    number of threads and event loops. After a ``fork`` the child has an empty queue and a thread of its own.

    Use it as a context manager, synchronous or asynchronous, or call :meth:`close` in the end. At the exit of the
    process that is done, for at most ``AT_EXIT`` seconds.
    """

    def __init__(
        self,
        url: str = "http://localhost:8001",
        *,
        token: str | None = None,
        uds: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | ssl.SSLContext | None = None,
        interval: float = 10.0,
        max_batch: int = 500,
        max_bytes: int = 1_000_000,
        gzip_from: int | None = 2048,
        max_rows: int = 10_000,
        retries: int = 0,
        timeout: float = 10.0,
        on_drop: Callable[[Sequence[Row], Reason], object] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """``url``: of the service, with the path that a proxy adds; ``http+unix://%2Frun%2Fpersistd.sock`` is a socket.

        ``token``: sent as ``Authorization: Bearer``; empty: none is. ``uds``: path of a Unix socket to connect to.
        ``ca``: a file with the certificates to trust, or a TLS context.

        ``interval``: seconds that a row waits at most until it is sent; ``max_batch`` rows are sent at once.
        ``max_batch`` rows and ``max_bytes`` bytes of JSON are in one request; bodies are compressed from ``gzip_from``
        bytes on, None: never.

        ``max_rows``: keys that wait at most; further ones are dropped. A full queue is sent at once.

        ``retries``: how often a batch is sent again that got no answer, or 503. 0, as the HTTP interface advises: it is
        dropped. ``timeout``: seconds for the connection, and for each wait for the service; no caller waits for it.

        ``on_drop``: called with the rows that were dropped and the reason, in whichever thread drops them: the caller's
        if the queue is full, and that of :meth:`close`. Not called for rows that it adds itself.
        ``transport``: takes the place of the network, such as ``testing.Recorder``.

        Raises:
            ValueError: a number is out of range, ``url`` is not one, or ``token`` has a character that no header has.
            OSError: ``ca`` cannot be read.
        """
        positive = {"interval": interval, "max_batch": max_batch, "max_bytes": max_bytes, "max_rows": max_rows}
        for name, number in {**positive, "timeout": timeout}.items():
            if not number > 0:  # nor NaN
                raise ValueError(f"{name} must be above 0")
        if retries < 0:
            raise ValueError("retries must not be below 0")
        self._address = Address(url, uds=uds, ca=ca, token=token, timeout=timeout, transport=transport)
        # A queue that is full is sent: it would drop rows in vain until the interval is over.
        self._settings = Settings(interval, min(max_batch, max_rows), max_bytes, gzip_from, retries, on_drop)
        self._max_rows = max_rows
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """Everything that belongs to one process."""
        #: Reentrant: a signal handler may call in while its thread is in here.
        self._changed = threading.Condition(threading.RLock())
        self._queue = Queue(self._max_rows)
        self._coming: deque[tuple[Kind, Row]] = deque()
        self._putting = False
        self._sender = Sender(self._address, self._settings, self._queue, self._changed)
        self._thread: threading.Thread | None = None
        self._begin_reading()

    # Writing

    def session(self, **fields: Unpack[Session]) -> None:
        """Send a session, or an update of one: a field left out keeps its stored value, None clears it.

        Raises:
            TypeError: a field is missing, there is no such field, or a value cannot be sent.
        """
        self._put("session", cast(Row, fields))

    def task(self, **fields: Unpack[Task]) -> None:
        """Send a task, or an update of one: a field left out keeps its stored value, None clears it.

        Raises:
            TypeError: a field is missing, there is no such field, or a value cannot be sent.
        """
        self._put("task", cast(Row, fields))

    def sessions(
        self, rows: Any, columns: Mapping[str, str] | None = None, *, wait: float = 0.0, **constants: Any
    ) -> int:
        """Send many sessions; see :meth:`tasks`."""
        return self._put_all("session", rows_of("session", rows, columns or {}, constants), wait)

    def tasks(self, rows: Any, columns: Mapping[str, str] | None = None, *, wait: float = 0.0, **constants: Any) -> int:
        """Send the rows of a pandas DataFrame, or of any iterable of mappings; returns how many.

        ``columns``: the field that a column holds, by the column's name. Columns that are named as fields need no
        entry; others are left out. ``constants``: fields that have one value in all rows.

        ``wait``: seconds for which this waits, in all, where the queue is full; 0: rows are dropped then.

        Raises:
            TypeError: as :meth:`task`.
        """
        return self._put_all("task", rows_of("task", rows, columns or {}, constants), wait)

    def _put(self, kind: Kind, row: Row) -> None:
        prepare(kind, row)
        refused: list[tuple[Row, Reason]] = []
        with self._changed:
            self._coming.append((kind, row))
            # A signal handler that came in while its thread is in here leaves its row to that call.
            while self._coming and not self._putting:
                self._putting = True
                try:
                    while self._coming:
                        its, given = self._coming.popleft()
                        reason = self._queue.put(its, given)
                        if reason is not None:
                            refused.append((given, reason))
                finally:
                    self._putting = False
            if self._thread is None and not self._queue.closed:
                self._start()
            if self._queue.waiting >= self._settings.max_batch:
                self._changed.notify_all()
        for given, reason in refused:
            self._sender.dropped([given], reason)

    def _put_all(self, kind: Kind, rows: Iterable[Row], wait: float) -> int:
        deadline = time.monotonic() + wait
        count = 0
        for row in rows:
            if wait > 0:
                with self._changed:
                    while not (self._queue.room or self._queue.closed) and (left := deadline - time.monotonic()) > 0:
                        self._changed.wait(_bounded(left))
            self._put(kind, row)
            count += 1
        return count

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="tornado-persist-client", daemon=True)
        self._thread = thread  # now: a signal handler that calls in while it starts would start another
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down; what waits is counted when the client is closed
            self._thread = None
            return
        # A child of multiprocessing ends without atexit; its own list of what to do at the end is made after the fork.
        if (processes := sys.modules.get("multiprocessing")) and processes.parent_process() is not None:
            from multiprocessing.util import Finalize

            Finalize(None, _close_all, exitpriority=0)

    def _work(self) -> None:
        """The thread. It holds the client, so that one that the program has forgotten is still closed at the exit."""
        self._sender.run()

    # Waiting for it

    def flush(self, timeout: float = 10.0, *, database: bool = False) -> bool:
        """Send all that waits, and wait until that is done. Whether the service has all of it, durable.

        ``timeout`` in seconds. ``database``: have the service write all its rows to the database, too.
        """
        future = self._flush(timeout, database)
        try:
            return future.result(_bounded(timeout))
        except FutureTimeout:
            future.cancel()
            return False

    async def aflush(self, timeout: float = 10.0, *, database: bool = False) -> bool:
        """:meth:`flush` for asyncio."""
        return await _awaited(self._flush(timeout, database), timeout)

    def _flush(self, timeout: float, database: bool) -> Future[bool]:
        if self._thread is threading.current_thread():  # in on_drop; it would wait for itself
            nothing: Future[bool] = Future()
            nothing.set_result(False)
            return nothing
        with self._changed:
            if self._thread is None and not self._queue.closed:
                self._start()
        return self._sender.flush(timeout, database)

    def close(self, timeout: float = AT_EXIT) -> None:
        """Send all that waits, for at most ``timeout`` seconds, and end. Rows left over are dropped and counted.

        Later calls drop their rows. It may be called twice.
        """
        self._sender.stop()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(_bounded(timeout))
        self._sender.abandon()
        self._end_reading()

    async def aclose(self, timeout: float = AT_EXIT) -> None:
        """:meth:`close` for asyncio."""
        if self._thread is not None:
            sent = self._flush(timeout, database=False)
            self._sender.stop()  # without the rest of a pause between two tries, as close() does
            await _awaited(sent, timeout)
        self.close(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.aclose()

    @property
    def stats(self) -> Stats:
        """What became of the rows so far."""
        with self._changed:
            return self._queue.stats()

    def __repr__(self) -> str:
        return f"<tornado_persist.client.Client {self._address.url}>"


async def _awaited(future: Future[bool], timeout: float) -> bool:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
    except asyncio.TimeoutError:
        return False


def _bounded(seconds: float) -> float:
    """As many as Python can wait, and not below 0."""
    return max(0.0, min(seconds, threading.TIMEOUT_MAX))


def _close_all() -> None:
    """Close all clients, within the time of one."""
    clients = list(_clients)
    for client in clients:
        client._sender.stop()
    deadline = time.monotonic() + AT_EXIT
    for client in clients:
        client.close(deadline - time.monotonic())


def _begin_again() -> None:
    """In a child after a fork: what the parent has queued is the parent's, and so is its connection."""
    for client in list(_clients):
        closed = client._queue.closed
        client._begin()
        client._queue.closed = closed
        if closed:
            client._end_reading()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
