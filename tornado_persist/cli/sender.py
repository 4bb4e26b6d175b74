"""Sends rows through the API: in batches, again where the service cannot take them now, and never past a wrong one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime

from tornado_persist.cli.client import Client
from tornado_persist.errors import NoAnswer, PersistError, RequestRefused
from tornado_persist.pipeline.backoff import Backoff
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind

#: Seconds between tries at most.
LONGEST_PAUSE = 5.0
#: Answers by which the data of a batch are at fault, or its size.
_BLAME = (400, 413, 422)


class RowRefused(PersistError):
    """The service does not take a row: ``index`` among those that were to be sent."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index


class Sender:
    """Sends to one service."""

    def __init__(
        self,
        client: Client,
        *,
        max_batch: int,
        max_bytes: int,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        """``max_batch`` rows and ``max_bytes`` in a request; a service that takes less gets less.

        ``patience``: seconds that a service may refuse, or not answer, until this gives up; ``say`` is told of waiting.
        """
        self._client = client
        self._max_batch = max_batch
        self._max_bytes = max_bytes
        self._patience = patience
        self._say = say
        self._reached = False
        #: When the service took the last batch, as its answer says.
        self.accepted_at: datetime | None = None

    def send(self, rows: Sequence[tuple[Kind, Fields]]) -> None:
        """Send them; for each key in this order, and sessions before tasks. All are durable when this returns.

        Raises:
            RowRefused: one is wrong; all before it are durable, and maybe sessions after it.
            NoAnswer: there was no answer, or there has been none for too long; what is durable is not known.
            RequestRefused: the service refused for too long, or does not take batches at all.
        """
        fault: RowRefused | None = None
        for kind in KINDS:
            # Keys of different kinds never meet, and a task's session has to be known, if anything has to.
            some = [(i, row) for i, (its, row) in enumerate(rows) if its == kind and (fault is None or i < fault.index)]
            try:
                self._send_kind(kind, some)
            except RowRefused as exc:
                fault = exc
        if fault is not None:
            raise fault

    def _send_kind(self, kind: Kind, rows: list[tuple[int, Fields]]) -> None:
        chunk: list[tuple[int, bytes]] = []
        size = room = self._max_bytes - 100  # for what is around the rows
        for index, row in rows:
            try:
                text = json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                self._post(kind, chunk)
                raise RowRefused(index, "it has a character that is none (an unpaired surrogate)") from None
            if chunk and (len(text) + 2 > room or len(chunk) == self._max_batch):
                self._post(kind, chunk)
                chunk, room = [], size
            chunk.append((index, text))
            room -= len(text) + 2
        self._post(kind, chunk)

    def _post(self, kind: Kind, chunk: list[tuple[int, bytes]]) -> None:
        if not chunk:
            return
        name = PLURALS[kind]
        body = b'{"%b": [%b]}' % (name.encode(), b", ".join(text for _, text in chunk))
        try:
            answer = self._patiently(kind, body)
        except RequestRefused as exc:
            if exc.status not in _BLAME:
                raise
            wrong = [error for error in exc.errors if len(error["loc"]) > 1 and error["loc"][0] == name]
            if wrong:
                first = min(wrong, key=lambda error: int(error["loc"][1]))
                row, *where = first["loc"][1:]
                self._post(kind, chunk[: int(row)])
                field = ".".join(map(str, where))
                problem = f"{field}: {first['msg']}" if field else first["msg"]
                raise RowRefused(chunk[int(row)][0], f"the service refuses it: {problem}") from None
            if len(chunk) == 1:
                raise RowRefused(chunk[0][0], f"the service refuses it: {exc}") from None
            # The batch is too large for it, or it does not say which row it is.
            if exc.status == 413:
                self._max_bytes = min(self._max_bytes, len(body) // 2)
            elif exc.status == 422:
                self._max_batch = min(self._max_batch, len(chunk) // 2)
            middle = len(chunk) // 2
            self._post(kind, chunk[:middle])
            self._post(kind, chunk[middle:])
        else:
            self.accepted_at = datetime.fromisoformat(answer["timestamp"])

    def _patiently(self, kind: Kind, body: bytes) -> dict[str, str]:
        """The answer, when there is one at last. Sending a batch again does no harm."""
        began = time.monotonic()
        pauses = Backoff(most=LONGEST_PAUSE)
        while True:
            problem: NoAnswer | RequestRefused
            try:
                answer = self._client.send(kind, body)
            except NoAnswer as exc:
                if not self._reached:
                    raise
                problem, pause = exc, pauses.failed()
            except RequestRefused as exc:
                self._reached = True
                if exc.status != 503:
                    raise
                problem = exc
                pause = pauses.failed() if exc.retry_after is None else exc.retry_after
            else:
                self._reached = True
                return answer
            left = self._patience - (time.monotonic() - began)
            if left <= 0:
                raise problem
            self._say(f"waiting: {problem}")
            time.sleep(min(pause, left))
