"""Rows that clients say they have dropped: what was lost before it got here. Since the process started."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tornado_persist.telemetry import log
from tornado_persist.telemetry.refusals import Quota, printable

#: Sent with a batch: ``17; since=5; client=3f2a9c0d11aa22bb``.
HEADER = "X-Persist-Dropped"
#: Clients whose last number is remembered; of others the header says itself what is new.
CLIENTS = 1000

_form = re.compile(r"(\d{1,12}); ?since=(\d{1,12}); ?client=([0-9A-Za-z._-]{1,64})", re.ASCII).fullmatch

logger = log.get(__name__)


@dataclass(frozen=True, slots=True)
class ClientDrop:
    """What a client said last."""

    at: datetime  #: UTC
    rows: int  #: new ones
    client: str  #: its address
    user_agent: str


class ClientDrops:
    """Adds up what clients have dropped.

    Each process of a client has an id, and says how many rows it has dropped in all, and how many of them an earlier
    answer has confirmed. A repeated request adds nothing, since the number in all is remembered by id; nor does a
    restart of the service, since what was confirmed before it is not new.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds that never go back."""
        self._clock = clock
        self._quota = Quota()
        self._known: OrderedDict[str, int] = OrderedDict()
        self.rows = 0
        self.last: ClientDrop | None = None

    def report(self, header: str, at: datetime, client: str, user_agent: str) -> None:
        """Count what the header says; one that is malformed says nothing."""
        found = _form(header)
        if found is None:
            return
        total, since, name = int(found[1]), int(found[2]), found[3]
        new = total - max(since, self._known.get(name, 0))
        self._known[name] = max(total, self._known.get(name, 0))
        self._known.move_to_end(name)
        if len(self._known) > CLIENTS:
            self._known.popitem(last=False)
        if new <= 0:
            return
        self.rows += new
        self.last = ClientDrop(at, new, client, user_agent)
        if self._quota.take(name, self._clock()) is not None:
            logger.warning(
                "a client dropped rows", rows=new, in_all=total, client=client, user_agent=printable(user_agent)
            )
