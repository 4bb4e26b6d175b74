"""From the bytes of a request to rows, or to what is wrong with them.

There are two ways, and they agree on every body: the :mod:`decoder <tornado_persist.records.decoder>`, which takes
nearly all that comes in a fraction of the time, and the :mod:`judge <tornado_persist.records.judge>`, which names the
errors.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from datetime import UTC, tzinfo
from typing import Literal

from tornado_persist.records.decoder import Decoder
from tornado_persist.records.judge import Judge
from tornado_persist.records.models import KINDS, STATUSES, Kind, shapes_with
from tornado_persist.records.rules import Parsed, Rules

#: Bytes from which on rows are counted before they are read: 10 MiB of small ones would be read in vain. Counting costs
#: a tenth of the reading.
_LARGE = 1 << 20


class Parser:
    """Turns request bodies into rows, or says what is wrong with them."""

    def __init__(
        self,
        *,
        max_batch: int | None = None,
        unknown_fields: Literal["ignore", "reject"] = "ignore",
        statuses: Sequence[str] = STATUSES,
        timezone: tzinfo = UTC,
        invalid_rows: Literal["refuse", "set_aside"] = "refuse",
        replay: bool = False,
    ) -> None:
        """What bodies may hold.

        ``max_batch``: rows in one body at most; ``unknown_fields``: drop them, or refuse the batch; ``timezone``: that
        of times without an offset; ``invalid_rows``: refuse the batch, or set them aside. ``replay``: bodies come from
        the journal, so they were accepted, perhaps under other settings; then a status is any text of its length.
        """
        rules = Rules(
            max_batch, unknown_fields, None if replay else tuple(statuses), timezone, invalid_rows, replay=replay
        )
        self._max_batch = max_batch
        shapes = {kind: shapes_with(kind, rules.statuses) for kind in KINDS}
        self._decoders = {kind: Decoder(kind, shapes[kind], rules) for kind in KINDS}
        self._judges = {kind: Judge(kind, shapes[kind], rules) for kind in KINDS}

    def parse(self, kind: Kind, body: bytes) -> Parsed:
        """What a request body holds. A byte order mark before it is skipped.

        Raises:
            NotJSON: the body is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        body = body.removeprefix(BOM_UTF8)
        most = self._max_batch
        if most is not None and len(body) > _LARGE and body.count(b"{") > most + 1:
            self._judges[kind].count(body)
        parsed = self._decoders[kind].decode(body)
        return self._judges[kind].judge(body) if parsed is None else parsed

    def validate(self, kind: Kind, body: bytes) -> Parsed:
        """:meth:`parse` without the fast path."""
        return self._judges[kind].judge(body.removeprefix(BOM_UTF8))
