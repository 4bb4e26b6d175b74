"""The addresses that the service listens on, and the URL that it names."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.process import PATIENCE, Persistd
from tests.servers import free_port
from tornado_persist import listening


def close(sockets: list[socket.socket]) -> None:
    for made in sockets:
        made.close()


def addresses(host: str) -> tuple[list[str], str]:
    """The addresses listened on with any port, which must be one, and the URL without its port."""
    sockets = listening.listen(host, 0)
    try:
        found = [made.getsockname()[:2] for made in sockets]
        assert len({port for _, port in found}) == 1
        assert found[0][1] != 0
        url, _, port = listening.url(sockets).rpartition(":")
        assert int(port) == found[0][1]
        for made in sockets:
            address = listening.shown(*made.getsockname()[:2]).replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
            with socket.create_connection((address.rpartition(":")[0].strip("[]"), found[0][1]), timeout=5):
                pass
        return [address for address, _ in found], url
    finally:
        close(sockets)


@pytest.mark.parametrize(
    ("host", "expected", "url"),
    [
        ("localhost", ["127.0.0.1", "::1"], "http://127.0.0.1"),
        ("127.0.0.1", ["127.0.0.1"], "http://127.0.0.1"),
        ("::1", ["::1"], "http://[::1]"),
        ("", ["0.0.0.0", "::"], "http://127.0.0.1"),
        ("::", ["0.0.0.0", "::"], "http://127.0.0.1"),
        ("0.0.0.0", ["0.0.0.0"], "http://127.0.0.1"),
        ("127.0.0.7", ["127.0.0.7"], "http://127.0.0.7"),
    ],
)
def test_a_name_is_all_of_its_addresses(host: str, expected: list[str], url: str) -> None:
    assert addresses(host) == (expected, url)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names of this test, with their addresses."""
    known: dict[str, list[str]] = {}
    really = socket.getaddrinfo

    def lookup(host: str, *args: object, **options: object) -> object:
        return [found for address in known.get(host, [host]) for found in really(address, *args, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


def test_a_host_name_with_several_addresses_listens_on_each_once(names: dict[str, list[str]]) -> None:
    names["host"] = ["::1", "127.0.0.2", "127.0.0.3", "127.0.0.2"]
    assert addresses("host") == (["127.0.0.2", "127.0.0.3", "::1"], "http://127.0.0.2")


def test_an_address_of_another_machine_is_named(names: dict[str, list[str]]) -> None:
    names["host"] = ["127.0.0.1", "203.0.113.1"]
    with pytest.raises(OSError, match=r"assign") as caught:
        listening.listen("host", 0)
    assert caught.value.filename.startswith("203.0.113.1:")


def test_localhost_is_one_address_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = listening._bound

    def without_ipv6(family: int, address: tuple[str, int]) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "not here")
        return bound(family, address)

    monkeypatch.setattr(listening, "_bound", without_ipv6)
    assert addresses("localhost")[0] == ["127.0.0.1"]
    assert addresses("::")[0] == ["0.0.0.0"]
    with pytest.raises(OSError, match="not here"):
        listening.listen("::1", 0)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is taken on ::1 and free on 127.0.0.1."""
    with socket.socket(socket.AF_INET6) as made:
        made.bind(("::1", free_port()))
        made.listen()
        yield made.getsockname()[1]


def test_a_port_that_another_program_has_on_one_of_the_addresses_is_taken(taken: int) -> None:
    with pytest.raises(OSError, match=r"in use") as caught:
        listening.listen("localhost", taken)
    assert caught.value.filename == f"[::1]:{taken}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", taken))  # nothing was left open


def test_any_port_is_one_that_is_free_on_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = listening._bound
    tries: list[object] = []

    def busy(family: int, address: tuple[str, int]) -> socket.socket:
        if family == socket.AF_INET6 and len(tries) < 3:
            tries.append(address)
            raise OSError(errno.EADDRINUSE, "taken")
        return bound(family, address)

    monkeypatch.setattr(listening, "_bound", busy)
    with ExitStack() as stack:
        sockets = listening.listen("localhost", 0)
        stack.callback(close, sockets)
        assert len({made.getsockname()[1] for made in sockets}) == 1
    assert len(tries) == 3


def test_the_service_answers_on_both_addresses_of_localhost_and_names_one(tmp_path: Path) -> None:
    with Persistd(tmp_path) as service:
        port = service.url.rpartition(":")[2]
        assert service.log("serving")[0]["url"] == service.url == f"http://127.0.0.1:{port}"
        for host in ("127.0.0.1", "[::1]", "localhost"):
            assert httpx.get(f"http://{host}:{port}/health/live", timeout=PATIENCE).json() == {"status": "alive"}


def test_a_service_on_every_address_names_one_that_works(tmp_path: Path) -> None:
    with Persistd(tmp_path, server='host = "::"') as service:
        port = service.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{port}/health/live", timeout=PATIENCE).status_code == 200
        assert service.http.get("/").status_code == 200
