"""TLS to a MariaDB whose certificate a private CA has signed, and the options of a URL that ask for it."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.certificates import issue, save
from tests.servers import MariaDB
from tests.sinks import readers
from tornado_persist.errors import SinkUnavailable
from tornado_persist.records.models import Batch
from tornado_persist.sinks import mysqltls
from tornado_persist.sinks.mysql import MySQLSettings, MySQLSink
from tornado_persist.testing import session


@pytest.fixture(scope="module")
def keys() -> Iterator[Path]:
    """Certificates and keys: of two CAs, of a server, of one with another address, of a client."""
    # Not among pytest's own directories, which the user that runs the server may not enter.
    with tempfile.TemporaryDirectory(prefix="tp-tls-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        make_keys(directory)
        yield directory


def make_keys(directory: Path) -> None:
    ours, theirs = issue("our CA"), issue("their CA")
    save(directory, "ca", ours)
    save(directory, "other_ca", theirs)
    save(directory, "server", issue("server", ours))
    save(directory, "elsewhere", issue("elsewhere", ours, "127.9.9.9"))
    save(directory, "client", issue("client", ours))


@pytest.fixture(scope="module")
def secured(keys: Path) -> Iterator[MariaDB]:
    """A server that has TLS; its certificate is for 127.0.0.1."""
    server = MariaDB()
    server.more = {"ssl-ca": keys / "ca.pem", "ssl-cert": keys / "server.pem", "ssl-key": keys / "server.key"}
    with server:
        yield server


Open = Callable[[str], MySQLSink]


@pytest.fixture
def connect(tmp_path: Path, keys: Path) -> Iterator[Open]:
    """Opens a sink on a URL, in which ``KEYS`` stands for the directory of the keys."""
    sinks = []

    def connect(url: str) -> MySQLSink:
        sink = MySQLSink(MySQLSettings.model_validate({"url": url.replace("KEYS", str(keys))}), tmp_path)
        sinks.append(sink)
        sink.open()
        sink.write(Batch([session("s")]))
        return sink

    yield connect
    for sink in sinks:
        sink.close()


def cipher(sink: MySQLSink) -> str:
    """Of the connection; empty without TLS."""
    assert sink._connection is not None
    with sink._transaction(sink._connection, commit=False):
        row = sink._connection.exec_driver_sql("SHOW STATUS LIKE 'Ssl_cipher'").one()
    return str(row[1])


@pytest.mark.parametrize(
    "options",
    [
        "ssl_ca=KEYS/ca.pem&ssl_verify_identity=true",
        "ssl_ca=KEYS/ca.pem",
        "ssl_ca=KEYS/ca.pem&ssl_verify_cert=TRUE",
        "ssl=true",
        "ssl=1&ssl_disabled=false",
        "ssl_ca=KEYS/other_ca.pem&ssl_verify_cert=false",
        "ssl_ca=KEYS/ca.pem&ssl_cert=KEYS/client.pem&ssl_key=KEYS/client.key&ssl_verify_identity=yes",
    ],
)
def test_the_connection_has_tls(secured: MariaDB, connect: Open, options: str) -> None:
    url = secured.fresh_database()
    assert cipher(connect(f"{url}?{options}"))
    assert readers.read_mysql(url)["session"].keys() == {("s",)}


@pytest.mark.parametrize("options", ["ssl_disabled=true", "ssl_disabled=1&ssl_ca=KEYS/ca.pem"])
def test_tls_can_be_turned_off(secured: MariaDB, connect: Open, options: str) -> None:
    assert cipher(connect(f"{secured.fresh_database()}?{options}")) == ""


@pytest.mark.parametrize("options", ["ssl_ca=KEYS/other_ca.pem", "ssl_verify_cert=true", "ssl_verify_identity=true"])
def test_a_server_that_no_known_ca_vouches_for_is_refused(secured: MariaDB, connect: Open, options: str) -> None:
    with pytest.raises(SinkUnavailable, match=r"certificate verify failed|CERTIFICATE_VERIFY_FAILED"):
        connect(f"{secured.fresh_database()}?{options}")


def test_a_certificate_for_another_address_is_refused_only_where_the_identity_is_verified(
    keys: Path, connect: Open
) -> None:
    server = MariaDB()
    server.more = {"ssl-ca": keys / "ca.pem", "ssl-cert": keys / "elsewhere.pem", "ssl-key": keys / "elsewhere.key"}
    with server:
        url = server.fresh_database() + "?ssl_ca=KEYS/ca.pem"
        assert cipher(connect(url))
        with pytest.raises(SinkUnavailable, match="certificate"):
            connect(f"{url}&ssl_verify_identity=true")


def test_a_server_without_tls_is_refused_where_tls_is_asked_for(connect: Open) -> None:
    server = MariaDB()
    server.more = {"skip-ssl": "ON"}
    with server:
        url = server.fresh_database()
        with pytest.raises(SinkUnavailable, match=r"TLS|SSL"):
            connect(f"{url}?ssl=true")
        connect(url)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("ssl=maybe", "ssl must be true or false"),
        ("ssl_verify_identity=2", "ssl_verify_identity must be true or false"),
        ("ssl_ca=/no/such/file", "ssl_ca cannot be read: No such file or directory"),
        ("ssl_ca=KEYS/ca.key", "ssl_ca cannot be read"),
        ("ssl_key=KEYS/client.key", "ssl_key needs ssl_cert"),
        ("ssl_cert=KEYS/client.pem&ssl_key=KEYS/server.key", "ssl_cert and ssl_key cannot be used"),
        ("ssl_mode=required", "ssl_mode is not one of the TLS options"),
        ("ssl_ca=KEYS/ca.pem&ssl_ca=KEYS/other_ca.pem", "ssl_ca is given more than once"),
    ],
)
def test_a_wrong_option_is_a_mistake_in_the_configuration(keys: Path, options: str, problem: str) -> None:
    url = f"mysql://u:hush@localhost/d?{options}".replace("KEYS", str(keys))
    with pytest.raises(ValidationError, match=problem) as caught:
        MySQLSettings.model_validate({"url": url})
    assert "hush" not in str(caught.value)


def test_without_an_option_the_driver_decides() -> None:
    assert mysqltls.arguments({"charset": "utf8mb4"}) == {}
    assert mysqltls.arguments({"ssl": "false", "ssl_disabled": "no"}) == {}
    assert isinstance(mysqltls.arguments({"ssl": "true"})["ssl"], ssl.SSLContext)
