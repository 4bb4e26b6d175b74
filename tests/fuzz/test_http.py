"""Mutated requests on one connection: every answer is JSON with a request id, none is a 500, no connection hangs, and
nothing after a request that is not HTTP is taken. What is accepted, h11, a parser of its own, sees in the same bytes.
``pytest tests/fuzz --fuzz-examples 100000`` runs longer.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.process import Persistd
from tests.rows import body, task
from tests.web.test_http import BATCH, chunked, get, post

#: A request that ends its connection, so that a test need not wait for a time limit.
LAST = b"GET /health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
INNER = post(BATCH, body("task", task("inner")))
REQUESTS = [
    post(BATCH, body("task", task("a"))),
    post(BATCH, body("task", task("b")) + INNER),
    post(BATCH, INNER),
    chunked(BATCH, body("task", task("c"))),
    chunked(BATCH, INNER),
    post(BATCH, b"{"),
    post("/nowhere", INNER),
    post(f"http://h{BATCH}", body("task", task("d"))),
    get("/"),
    get("/health/live"),
    post(f"{BATCH}/../x", b"", "Expect: 100-continue"),
]
TOKENS = [b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";a=b", b",", b"0", b"1", b"-1", b"+1", b"0x1", b"ffffffff"]
TOKENS += [b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\xff", b"0\r\n\r\n"]
TOKENS += [b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: identity\r\n", b"HTTP/1.0", b"HTTP/9.9", b"\x0b"]
TOKENS += [b"Content-Encoding: gzip\r\n", b"Connection: close\r\n", b"X: " + b"y" * 70_000 + b"\r\n", INNER, b"PUT"]
LIMITS = 'header_timeout = "200ms"\nbody_timeout = "200ms"\nidle_timeout = "200ms"'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    with Persistd(tmp_path_factory.mktemp("fuzzed"), server=LIMITS) as service:
        # It ends a kept connection soon, perhaps just when the next request is sent.
        service.http.headers["Connection"] = "close"
        yield service
        assert "exception" not in service.log_text()
        service.http.close()


@st.composite
def pipelines(draw: st.DrawFn) -> bytes:
    """Some requests, one after the other, with pieces overwritten, added or cut out."""
    raw = bytearray(b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 3))):
        lines = [0, *(found.end() for found in re.finditer(rb"\r\n", raw)), len(raw)]
        start = draw(st.sampled_from(lines) | st.integers(0, len(raw)))
        stop = min(len(raw), start + draw(st.sampled_from([0, 0, 1, 2, 8])))
        raw[start:stop] = draw(st.sampled_from(TOKENS) | st.binary(max_size=2))
    return bytes(raw) + LAST


def exchange(service: Persistd, sent: bytes) -> list[tuple[int, bytes, bytes]]:
    """Status, head and body of each answer until the service ends the connection. Raises TimeoutError: it does not."""
    received = b""
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=10) as client:
        try:
            client.sendall(sent)
            while piece := client.recv(1 << 16):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    answers = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 100:
            continue
        length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])  # type: ignore[index]
        answers.append((status, head, received[:length]))
        received = received[length:]
    return answers


def batches_seen(sent: bytes) -> int:
    """Requests to the batches' path that h11 finds before the first fault. It knows no blank lines before a request."""
    count, rest = 0, sent
    while rest := rest.lstrip(b"\r\n"):
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        parser.receive_data(rest)
        event: object = None
        is_batch = False
        while not isinstance(event, h11.EndOfMessage):
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                return count
            if event is h11.NEED_DATA:
                return count
            if isinstance(event, h11.Request):
                is_batch = event.method == b"POST" and BATCH.encode() in event.target
        count += is_batch
        rest = parser.trailing_data[0]
    return count


def check(service: Persistd, sent: bytes) -> None:
    before = service.stats()["accounting"]["accepted"]
    answers = exchange(service, sent)
    accepted = batches = 0
    for place, (status, head, content) in enumerate(answers):
        assert status < 500, head
        assert re.search(rb"(?i)\r\nX-Request-ID: \S+", head)
        answer = json.loads(content)
        if answer.get("status") == "accepted":
            accepted += answer["count"]
            batches += 1
        if b"\r\nConnection: close" in head or answer.get("detail") == "The request is not valid HTTP":
            assert place == len(answers) - 1, "nothing is taken after the end of a connection"
    assert service.stats()["accounting"]["accepted"] - before == accepted
    assert batches <= batches_seen(sent)


def test_mutated_requests_are_answered_in_json_and_nothing_is_smuggled(service: Persistd, fuzz_examples: int) -> None:
    @settings(max_examples=max(100, fuzz_examples // 5))
    @given(pipelines())
    def examine(sent: bytes) -> None:
        check(service, sent)

    examine()


def test_a_head_that_is_too_long_is_answered(service: Persistd) -> None:
    (answer,) = exchange(service, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 100_000 + b"\r\n\r\n")
    assert answer[0] == 400
    assert json.loads(answer[2]) == {"detail": "The request is not valid HTTP"}
