"""From the bytes of a request to rows, or to what is wrong with them.

There are two ways, and they agree on every body: the :mod:`decoder <tornado_persist.records.decoder>`, which takes
nearly all that comes in a fraction of the time, and the :mod:`judge <tornado_persist.records.judge>`, which names the
errors.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, tzinfo
from typing import Literal

import msgspec
from msgspec import Raw

from tornado_persist.errors import FieldError, InvalidBatch
from tornado_persist.records.decoder import Decoder, encode
from tornado_persist.records.freejson import find_problem, locate, mark
from tornado_persist.records.judge import Judge
from tornado_persist.records.models import EXTRA, FIELDS, KINDS, PLURALS, STATUSES, Kind, Row, shapes_with
from tornado_persist.records.rules import Parsed, Rules, UnknownFields, Wrong, shown_names

_KEPT = b'"extra"'
#: How a journalled body begins whose rows count as accepted at another time than the record's. The time follows, as
#: rows hold it.
_DATED = b'{"accepted_at":"'
_TIME = len("2025-09-30T16:35:00.000000+00:00")

_DECODE_NAMES = msgspec.json.Decoder(dict[str, Raw]).decode
_DECODE_ROWS = msgspec.json.Decoder(list[Raw]).decode

#: A body of so many bytes is parsed in a thread: 10 MiB that are made for it take half a second, in some thirty passes.
#: And its rows are counted before they are read, which costs a tenth: most such bodies have too many small ones.
HUGE = 1 << 20


def date(body: bytes, at: str) -> bytes:
    """A body for the journal, whose replay reads that the rows count as accepted ``at``; empty: when they came."""
    if at:
        return _DATED + at.encode() + b'",' + body.lstrip()[1:]
    return b" " + body if body.startswith(_DATED) else body  # a client's field of that name means nothing


def undate(body: bytes) -> tuple[str, bytes]:
    """The time that :func:`date` has put in, else empty, and the body without it."""
    if not body.startswith(_DATED):
        return "", body
    start, end = len(_DATED), len(_DATED) + _TIME
    return body[start:end].decode(), b"{" + body[end + 2 :]


class Parser:
    """Turns request bodies into rows, or says what is wrong with them. Threads may share one."""

    def __init__(
        self,
        *,
        max_batch: int | None = None,
        unknown_fields: UnknownFields = "ignore",
        statuses: Sequence[str] = STATUSES,
        timezone: tzinfo = UTC,
        invalid_rows: Literal["refuse", "set_aside"] = "refuse",
        replay: bool = False,
    ) -> None:
        """What bodies may hold.

        ``max_batch``: rows in one body at most; ``unknown_fields``: drop them, refuse the batch, or keep them in
        ``extra``; ``timezone``: that of times without an offset; ``invalid_rows``: refuse the batch, or set them aside.
        ``replay``: bodies come from the journal, so they were accepted, perhaps under other settings; then a status is
        any text of its length.
        """
        self._keep = unknown_fields == "keep"
        self._aside = invalid_rows == "set_aside"
        self._replay = replay
        if self._keep:
            unknown_fields = "ignore"  # by decoder and judge
        rules = Rules(
            max_batch, unknown_fields, None if replay else tuple(statuses), timezone, invalid_rows, replay=replay
        )
        self._max_batch = max_batch
        shapes = {kind: shapes_with(kind, rules.statuses) for kind in KINDS}
        self._decoders = {kind: Decoder(kind, shapes[kind], rules) for kind in KINDS}
        self._shapes = shapes
        self._judges = {kind: Judge(kind, shapes[kind], rules) for kind in KINDS}

    def parse(self, kind: Kind, body: bytes) -> Parsed:
        """What a request body holds. A byte order mark before it is skipped.

        Raises:
            NotJSON: the body is not a JSON object.
            InvalidBatch: rows or fields are missing or wrong; its ``errors`` names the first 20.
        """
        body = body.removeprefix(BOM_UTF8)
        if self._replay and body.startswith(_DATED):
            at, body = undate(body)
            dated = self.parse(kind, body)
            dated.at = at
            return dated
        most = self._max_batch
        if most is not None and len(body) >= HUGE and body.count(b"{") > most + 1:
            self._judges[kind].count(body)
        parsed = self._decoders[kind].decode(body)
        return self._with_extra(kind, body, self._judges[kind].judge(body) if parsed is None else parsed)

    def validate(self, kind: Kind, body: bytes) -> Parsed:
        """:meth:`parse` without the fast path."""
        body = body.removeprefix(BOM_UTF8)
        return self._with_extra(kind, body, self._judges[kind].judge(body))

    def _with_extra(self, kind: Kind, body: bytes, parsed: Parsed) -> Parsed:
        """Put the fields that are not in the specification into ``extra``, where that is asked for.

        The journal then keeps the rows with their ``extra``, so a replay gives the same rows even if the setting has
        changed. For the same reason a field of that name which is dropped must not be in the journal.

        Raises:
            InvalidBatch: such a field holds what no sink could store, and the row cannot be set aside.
        """
        if self._replay:
            if _KEPT in body:
                self._add_extra(kind, body, parsed, _journalled_extra)
        elif self._keep and parsed.ignored:
            known = FIELDS[kind].keys()
            unknown = parsed.ignored_rows
            body = mark(body)  # rows that are set aside may hold what JSON cannot
            self._add_extra(kind, body, parsed, lambda sent: _object_of(sent, known))
            parsed.body = encode(PLURALS[kind], parsed.rows)
            names = _DECODE_NAMES(body).keys() - {PLURALS[kind]}
            parsed.ignored, parsed.ignored_rows = shown_names(names), unknown if names else 0
        elif parsed.ignored and _KEPT in body:
            parsed.body = encode(PLURALS[kind], parsed.rows)
        return parsed

    def _add_extra(self, kind: Kind, body: bytes, parsed: Parsed, of: Callable[[dict[str, Raw]], Raw | None]) -> None:
        name, shapes = PLURALS[kind], self._shapes[kind]
        sent = _DECODE_ROWS(_DECODE_NAMES(body)[name])
        rows: list[Row] = []
        wrong: list[Wrong] = []
        for row, place in zip(parsed.rows, parsed.places(), strict=True):
            extra = of(_DECODE_NAMES(sent[place]))
            if extra is not None:
                if found := locate(bytes(extra)):
                    error: FieldError = {"loc": [name, place, *found[0]], "msg": found[1]}
                    wrong.append(Wrong(place, bytes(sent[place]), [error]))
                    continue
                fields = {**row.as_kept(), EXTRA: Raw(msgspec.json.format(extra, indent=-1))}
                row = shapes.find(fields)(**fields)
            rows.append(row)
        if wrong and not (self._aside and rows):
            errors = [error for row in (*parsed.wrong, *wrong) for error in row.errors]
            where = ".".join(map(str, errors[0]["loc"]))
            refusal = InvalidBatch(f"Invalid {kind} data format: {where}: {errors[0]['msg']}", errors)
            refusal.rows = len(sent)
            raise refusal
        parsed.rows = rows
        parsed.wrong = sorted([*parsed.wrong, *wrong], key=lambda row: row.index)


def _journalled_extra(sent: dict[str, Raw]) -> Raw | None:
    """The ``extra`` of a journalled row. A field of that name that an earlier version dropped may be any JSON."""
    extra = sent.get(EXTRA)
    return extra if extra is not None and bytes(extra)[:1] == b"{" and find_problem(bytes(extra)) is None else None


def _object_of(sent: dict[str, Raw], known: Collection[str]) -> Raw | None:
    """The fields that are not known, as the text of an object; None where there are none."""
    unknown = {name: value for name, value in sent.items() if name not in known}
    return Raw(msgspec.json.encode(unknown)) if unknown else None
