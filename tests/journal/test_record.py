"""A record comes back as it was written, and no flipped bit goes unnoticed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.journal.tools import T0
from tornado_persist.journal.record import (
    CODES,
    HEADER_SIZE,
    MAGIC,
    decode,
    encode,
    intact,
    to_datetime,
    to_microseconds,
)


def whole(seq: int = 7, body: bytes = b'{"tasks": []}') -> bytes:
    return encode(seq, CODES["task"], to_microseconds(T0), 3, body) + body


@given(
    seq=st.integers(1, 2**64 - 1),
    at=st.datetimes(timezones=st.just(UTC)),
    rows=st.integers(0, 2**32 - 1),
    body=st.binary(max_size=200),
    before=st.binary(max_size=9),
)
def test_a_record_comes_back_as_it_was_written(seq: int, at: datetime, rows: int, body: bytes, before: bytes) -> None:
    data = before + encode(seq, 1, to_microseconds(at), rows, body) + body
    header = decode(data, len(before))
    assert header is not None
    assert (header.seq, to_datetime(header.at), header.rows, header.length) == (seq, at, rows, len(body))
    assert header.kind == CODES["session"]
    assert intact(data, len(before), header)


@pytest.mark.parametrize("size", [5 * 1024, 5 * 1024 + 1, 10 * 1024, 50_001, 128 * 1024, 128 * 1024 + 1])
def test_the_checksum_of_a_body_is_the_same_however_long_it_is(size: int) -> None:
    body = bytes(number % 251 for number in range(size))
    header = encode(7, CODES["task"], to_microseconds(T0), 3, body)
    assert header[-4:] == crc32(header[:-4] + body).to_bytes(4, "little")


def test_a_time_of_any_zone_is_kept_in_utc() -> None:
    at = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=8)))
    assert to_datetime(to_microseconds(at)).isoformat() == "2025-12-31T16:00:00+00:00"


@pytest.mark.parametrize("offset", range(HEADER_SIZE))
def test_every_flipped_bit_of_the_header_is_noticed(offset: int) -> None:
    for bit in range(8):
        data = bytearray(whole())
        data[offset] ^= 1 << bit
        header = decode(bytes(data), 0)
        # The last field is the checksum over all: the header is then good, and the record is not.
        assert (header is None) == (offset < HEADER_SIZE - 4)
        assert header is None or not intact(bytes(data), 0, header)


def test_every_flipped_bit_of_the_body_is_noticed() -> None:
    for offset in range(HEADER_SIZE, len(whole())):
        data = bytearray(whole())
        data[offset] ^= 1
        header = decode(bytes(data), 0)
        assert header is not None
        assert not intact(bytes(data), 0, header)


@pytest.mark.parametrize("length", range(HEADER_SIZE))
def test_half_a_header_is_none(length: int) -> None:
    assert decode(whole()[:length], 0) is None


@given(st.text())
def test_no_text_holds_the_magic(text: str) -> None:
    assert MAGIC[:1] not in text.encode()
