"""A plain head is read as Tornado reads it, and what is not plain is left to Tornado."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPServerRequest, parse_request_start_line

from tornado_persist.web.head import Head

PLAIN = (
    b"POST /api/x HTTP/1.1\r\nHost: a.b:8001\r\nContent-Type: application/json\r\nX-Request-ID:  Mine \t\r\n"
    b"CONTENT-LENGTH: 12\r\nConnection: Keep-Alive\r\n\r\n"
)


def test_a_plain_head_is_read() -> None:
    head = Head.of(PLAIN + b'{"tasks": []}')
    assert head is not None
    assert (head.path, head.length, head.begin) == ("/api/x", 12, len(PLAIN))
    assert head.headers["content-type"] == "application/json"
    assert head.headers["x-request-id"] == "Mine"
    assert head.start_line == ("POST", "/api/x", "HTTP/1.1")
    assert head.http_headers["Content-Length"] == "12"


@pytest.mark.parametrize("size", range(len(PLAIN)))
def test_a_head_that_is_not_there_as_a_whole_is_none(size: int) -> None:
    assert Head.of(PLAIN[:size]) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"GET"),
        (b"POST", b"post"),
        (b"POST ", b"POST  "),
        (b"POST", b"\r\nPOST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"/api/x", b"/api/\xc3\xa9"),
        (b"Host: a.b:8001\r\n", b""),
        (b"Host: a.b:8001", b"Host: a b"),
        (b"Host: a.b:8001", b"Host: a\r\nHost: b"),
        (b"Host: a.b:8001", b"Host : a"),
        (b"Host: a.b:8001", b"Host: a\r\n b"),
        (b"Host: a.b:8001", b"Host: a\nX: b"),
        (b"Host: a.b:8001", b"Host: a\rX: b"),
        (b"Host: a.b:8001\r\n", b"Host: a.b:8001\n"),
        (b"X-Request-ID", b"X Request ID"),
        (b"Mine", b"M\x00ine"),
        (b"Mine", b"M\xffine"),
        (b": 12", b": 12\r\nContent-Length: 12"),
        (b": 12", b": 12\r\ncontent-length: 13"),
        (b": 12", b": 12, 12"),
        (b": 12", b": +12"),
        (b": 12", b": 0x12"),
        (b": 12", b": 1_2"),
        (b": 12", b": -1"),
        (b": 12", b": " + b"1" * 19),
        (b": 12", b":"),
        (b"CONTENT-LENGTH: 12\r\n", b""),
        (b"CONTENT-LENGTH: 12", b"Transfer-Encoding: chunked"),
        (b": 12", b": 12\r\nTransfer-Encoding: chunked"),
        (b": 12", b": 12\r\ntransfer-encoding: identity"),
        (b": 12", b": 12\r\nContent-Encoding: gzip"),
        (b": 12", b": 12\r\nExpect: 100-continue"),
        (b": 12", b": 12\r\nUpgrade: h2c"),
        (b"Keep-Alive", b"close"),
        (b"Keep-Alive", b"keep-alive, Upgrade"),
    ],
)
def test_what_has_another_reading_or_wants_more_is_none(old: bytes, new: bytes) -> None:
    assert PLAIN.count(old) == 1
    assert Head.of(PLAIN.replace(old, new)) is None


PIECES = st.sampled_from(
    [b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b",", b"0", b"7", b"a", b"\x00", b"\xff", b"Host: h\r\n"]
)


@given(st.data())
def test_whatever_is_taken_for_plain_tornado_reads_in_the_same_way(data: st.DataObject) -> None:
    damaged = PLAIN
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(damaged)))
        end = data.draw(st.integers(start, min(len(damaged), start + 3)))
        damaged = damaged[:start] + data.draw(PIECES | st.binary(max_size=2)) + damaged[end:]
    head = Head.of(damaged)
    if head is None:
        return
    text = damaged[: head.begin].decode("latin1")
    first, _, rest = text.partition("\n")
    start_line, headers = parse_request_start_line(first.rstrip("\r")), HTTPHeaders.parse(rest)
    assert start_line == head.start_line
    assert list(headers.get_all()) == list(head.http_headers.get_all())
    assert int(headers["Content-Length"]) == head.length
    try:
        HTTPServerRequest(start_line=start_line, headers=headers)
    except HTTPInputError as exc:
        pytest.fail(f"Tornado refuses it: {exc}")
