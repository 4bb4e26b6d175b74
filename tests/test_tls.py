"""TLS to the service, and its Unix socket, from outside: certificates, renewal, slow clients, the commands."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from tests.certificates import issue, save
from tests.faults.load import Load
from tests.process import PATIENCE, Persistd, persistd, wait_until
from tests.rows import task
from tests.sinks.readers import read_sqlite
from tornado_persist.config import tokens

MANUAL = "[buffer]\nflush_interval = 3600\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two CAs, of a server, of a client of each CA."""
    directory = tmp_path_factory.mktemp("keys")
    ours, theirs = issue("our CA"), issue("their CA")
    save(directory, "ca", ours)
    save(directory, "other_ca", theirs)
    save(directory, "server", issue("server", ours))
    save(directory, "renewed", issue("renewed", ours))
    save(directory, "client", issue("client", ours))
    save(directory, "foreign", issue("foreign", theirs))
    return directory


def table(keys: Path, name: str = "server", more: str = "") -> str:
    return f"{MANUAL}[tls]\ncert = '{keys / name}.pem'\nkey = '{keys / name}.key'\n{more}\n"


def context(keys: Path, name: str = "", ca: str = "ca") -> ssl.SSLContext:
    """A client's, with a certificate if a name is given."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(keys / f"{ca}.pem")
    if name:
        made.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    return made


def port(service: Persistd) -> int:
    return int(service.url.rpartition(":")[2])


def served(service: Persistd, made: ssl.SSLContext) -> str:
    """The name in the certificate that a new connection gets."""
    plain = socket.create_connection(("127.0.0.1", port(service)), 10)
    with plain, made.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
        der = secured.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der).subject.rfc4514_string().removeprefix("CN=")


def test_a_client_that_knows_the_ca_is_served_and_others_are_counted(tmp_path: Path, keys: Path) -> None:
    with Persistd(tmp_path, table(keys)) as service:
        assert service.url.startswith("https://127.0.0.1:")
        with httpx.Client(base_url=service.url, verify=context(keys), timeout=PATIENCE) as http:
            assert http.get("/health").json()["instance"]["url"] == service.url
            with pytest.raises(httpx.ConnectError, match="certificate"):
                httpx.get(f"{service.url}/health", verify=context(keys, ca="other_ca"), timeout=PATIENCE)
            with pytest.raises(httpx.HTTPError):
                httpx.get(service.url.replace("https", "http"))
            last = http.get("/health").json()["refused"]["last"]
            assert (last["reason"], last["detail"]) == ("malformed", "The TLS handshake failed")
        line = service.wait_for_log("batch refused")
        assert line["client"] == "127.0.0.1"
        assert "SSL Error" not in service.log_text()
        assert service.stop() == 0


def test_a_client_below_the_lowest_version_is_refused(tmp_path: Path, keys: Path) -> None:
    old = context(keys)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with Persistd(tmp_path, table(keys, more="min_version = '1.3'")) as service:
        assert served(service, context(keys)) == "server"
        with pytest.raises(ssl.SSLError):
            served(service, old)


def test_what_is_not_encrypted_after_the_handshake_ends_the_connection_without_a_traceback(
    tmp_path: Path, keys: Path
) -> None:
    with Persistd(tmp_path, table(keys)) as service:
        plain = socket.create_connection(("127.0.0.1", port(service)), 10)
        with plain, context(keys).wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            os.write(secured.fileno(), b"GET / HTTP/1.1\r\n\r\n" * 10)
            with contextlib.suppress(OSError):
                assert not secured.recv(1)
        assert service.stop() == 0
        assert "Traceback" not in service.log_text()


def test_only_clients_with_a_certificate_of_the_ca_get_in_and_the_commands_do(tmp_path: Path, keys: Path) -> None:
    config = table(keys, more=f"client_ca = '{keys / 'ca.pem'}'")
    with Persistd(tmp_path, config) as service:
        assert httpx.get(f"{service.url}/health", verify=context(keys, "client"), timeout=PATIENCE).status_code == 200
        for name in ("", "foreign"):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{service.url}/health", verify=context(keys, name), timeout=PATIENCE)
        wait_until(lambda: len(service.log("batch refused")) == 1)
        for command in (["status"], ["stats"], ["flush"], ["reload"]):
            done = persistd(*command, "-c", str(service.file), cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_renewed_certificate_is_served_after_a_reload_and_a_broken_one_never(tmp_path: Path, keys: Path) -> None:
    live = tmp_path / "keys"
    live.mkdir()

    def put(name: str) -> None:
        for end in ("pem", "key"):
            (live / f"live.{end}").write_bytes((keys / f"{name}.{end}").read_bytes())

    put("server")
    with Persistd(tmp_path, table(live, "live")) as service:
        kept = httpx.Client(base_url=service.url, verify=context(keys), timeout=PATIENCE)
        assert kept.get("/health").status_code == 200
        put("renewed")
        assert served(service, context(keys)) == "server"
        done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "reloaded: tls.cert\n"), done.stderr
        assert served(service, context(keys)) == "renewed"
        assert kept.get("/health").status_code == 200, "it goes on with the old one"
        kept.close()
        (live / "live.key").write_bytes((keys / "server.key").read_bytes())
        done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
        assert done.returncode == 1
        assert "tls.key" in done.stderr
        assert "not the key of the certificate" in done.stderr
        (live / "live.pem").write_text("nothing")
        service.send(signal.SIGHUP)
        service.wait_for_log("configuration not reloaded", 2)
        assert served(service, context(keys)) == "renewed"
        assert persistd("status", "-c", str(service.file), cwd=tmp_path).returncode == 0
        # Whether there is TLS at all changes only with a restart.
        service.configure(MANUAL)
        done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
        assert "these need a restart: tls.cert, tls.key" in done.stdout
        assert served(service, context(keys)) == "renewed"


def test_a_handshake_that_does_not_end_is_ended_and_counts_as_a_connection(tmp_path: Path, keys: Path) -> None:
    stack = contextlib.ExitStack()
    with Persistd(tmp_path, table(keys), server="header_timeout = 1\nmax_connections = 3") as service, stack:
        began = time.monotonic()
        silent = [socket.create_connection(("127.0.0.1", port(service)), 10) for _ in range(3)]
        for one in silent:
            stack.enter_context(one)
        silent[0].sendall(b"\x16\x03\x01")
        # All places are taken by handshakes, so this one waits until they are over.
        assert served(service, context(keys)) == "server"
        assert 0.9 < time.monotonic() - began < 8
        for one in silent:
            assert one.recv(1) == b""
        assert service.log("the limit of connections is reached, further ones wait")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("cert = 'missing.pem'", "tls.cert: "),
        ("key = 'x'", "key needs cert"),
        ("cert = '{keys}/server.pem'\nkey = '{keys}/client.key'", "not the key of the certificate"),
        ("cert = '{keys}/server.pem'\nkey = '{keys}/server.key'\nclient_ca = '{keys}/server.key'", "tls.client_ca: "),
        ("min_version = '1.1'", "tls.min_version"),
    ],
)
def test_what_cannot_be_used_ends_the_start_and_is_named(tmp_path: Path, keys: Path, lines: str, said: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[server]\nport = 0\n[tls]\n{lines.format(keys=keys)}\n")
    done = persistd("run", "-c", str(file), cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    checked = persistd("check", "-c", str(file), cwd=tmp_path)
    assert checked.returncode != 0
    assert said in checked.stdout + checked.stderr


def test_check_says_how_long_the_certificate_is_valid(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[server]\nport = 0\n{table(keys)}")
    done = persistd("check", "-c", str(file), cwd=tmp_path)
    assert (done.returncode, "renew it within 0 days" in done.stdout) == (0, True), done.stdout


def test_the_load_of_the_fault_tests_over_tls_and_kill_9(tmp_path: Path, keys: Path) -> None:
    with Persistd(tmp_path, table(keys)) as service:
        load = Load(service, seed=21, context=context(keys))
        for _ in range(3):
            with load:
                load.wait_for(30)
                service.kill()
            service.start()
        with load:
            load.wait_for(10)
        with httpx.Client(base_url=service.url, verify=context(keys), timeout=PATIENCE) as http:
            assert http.post("/api/v1/persistence/flush").json()["status"] == "flushed"
        load.record.check(read_sqlite(service.data_dir / "persist.db"))


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %b" % (b"x" * 100_000), b"x" * 200_000],
    ids=["header", "line"],
)
def test_a_head_that_is_too_long_is_answered_in_json_and_counted(tmp_path: Path, keys: Path, head: bytes) -> None:
    with Persistd(tmp_path, table(keys)) as service:
        plain = socket.create_connection(("127.0.0.1", port(service)), 10)
        with plain, context(keys).wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            with contextlib.suppress(OSError):  # it need not read all of it
                secured.sendall(head)
            answer = b""
            with contextlib.suppress(OSError):
                while more := secured.recv(65536):
                    answer += more
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.endswith(b'{"detail": "The request is not valid HTTP"}\n')
        line = service.wait_for_log("batch refused")
        assert (line["reason"], line["msg"]) == ("malformed", "A line or the head is too long")
        with httpx.Client(base_url=service.url, verify=context(keys), timeout=PATIENCE) as http:
            assert http.get("/health/live").status_code == 200
        assert service.stop() == 0
        assert "Traceback" not in service.log_text()


# The Unix socket.


def unix(path: Path) -> httpx.Client:
    return httpx.Client(base_url="http://localhost", transport=httpx.HTTPTransport(uds=str(path)), timeout=10)


def test_a_unix_socket_beside_the_port_is_found_by_the_commands_and_removed_at_the_end(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL, server="unix_socket = 'persistd.sock'\nunix_socket_mode = '0600'") as service:
        path = service.data_dir / "persistd.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        assert service.log("serving")[0]["unix_socket"] == str(path)
        with unix(path) as http:
            assert http.get("/health").status_code == 200
            assert http.post("/api/v1/persistence/tasks/batch", content=b"{").status_code == 400
        assert service.wait_for_log("batch refused")["client"] == "unix"
        assert service.http.get("/health").status_code == 200
        rows = tmp_path / "rows.jsonl"
        rows.write_text(httpx.Response(200, json=task("t1")).text + "\n")
        for command in (["status"], ["stats"], ["import", "rows.jsonl"], ["flush"], ["stats", "--url", f"unix:{path}"]):
            done = persistd(*command, "-c", str(service.file), cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        assert service.stop() == 0
        assert not path.exists()


def test_a_unix_socket_in_place_of_the_port(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL, server="unix_socket = 'persistd.sock'\ntcp = false") as service:
        path = service.data_dir / "persistd.sock"
        assert service.url == f"unix:{path}"
        inodes = {f"socket:[{line.split()[9]}]" for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
        assert not inodes & service.open_files()
        assert persistd("status", "-c", str(service.file), cwd=tmp_path).returncode == 0
        service.kill()
        assert path.exists()
        service.start()  # over the file of the dead process
        with unix(path) as http:
            assert http.get("/health/live").status_code == 200
        # Of a living one it is not taken.
        (tmp_path / "other").mkdir()
        file = tmp_path / "other.toml"
        file.write_text(f"data_dir = 'other/data'\n[server]\ntcp = false\nunix_socket = '{path}'\n")
        done = persistd("run", "-c", str(file), cwd=tmp_path)
        assert (done.returncode, f"cannot listen on {path}: another process listens there" in done.stderr) == (1, True)
        assert "another process listens there" in persistd("check", "-c", str(file), cwd=tmp_path).stdout
        with unix(path) as http:
            assert http.get("/health/live").status_code == 200


def test_a_file_that_is_no_socket_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("rows")
    file = tmp_path / "c.toml"
    file.write_text(f"[server]\nport = 0\nunix_socket = '{tmp_path / 'precious'}'\n")
    done = persistd("run", "-c", str(file), cwd=tmp_path)
    assert (done.returncode, "is no socket" in done.stderr) == (1, True)
    assert (tmp_path / "precious").read_text() == "rows"


def test_without_any_place_to_listen_on_it_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[server]\ntcp = false\n")
    done = persistd("run", "-c", str(file), cwd=tmp_path)
    assert (done.returncode, "tcp = false needs a unix_socket" in done.stderr) == (2, True)


# Anybody.


@pytest.mark.parametrize(("host", "told"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_service_that_is_open_to_anybody_says_so_once_and_everywhere(tmp_path: Path, host: str, told: bool) -> None:
    with Persistd(tmp_path, MANUAL, server=f"host = '{host}'") as service:
        said = f"anybody who reaches 0.0.0.0:{port(service)} can write and read" if told else ""
        assert [line["problem"] for line in service.log("no authentication")] == ([said] if told else [])
        assert service.http.get("/health").json()["caution"] == said
        assert service.http.get("/api/v1/persistence/history").json()["caution"] == said
        checked = persistd("check", "-c", str(service.file), cwd=tmp_path).stdout
        assert ("anybody who reaches" in checked) == told


def test_what_it_says_of_anybody_follows_the_tokens_of_a_reload(tmp_path: Path) -> None:
    token, line = tokens.make("reader", ["read"])
    closed = f"{MANUAL}[auth]\ntokens = ['{line}']\n"
    with Persistd(tmp_path, closed, server="host = '0.0.0.0'") as service:
        for config, open_to_anybody in ((MANUAL, True), (closed, False)):
            service.configure(config)
            assert persistd("reload", "-c", str(service.file), cwd=tmp_path).returncode == 0
            health = service.http.get("/health", headers={"Authorization": f"Bearer {token}"}).json()
            assert ("anybody who reaches" in health["caution"]) == open_to_anybody
        assert len(service.log("no authentication")) == 1


def test_nobody_is_anybody_where_clients_need_a_certificate(tmp_path: Path, keys: Path) -> None:
    config = table(keys, more=f"client_ca = '{keys / 'ca.pem'}'")
    with Persistd(tmp_path, config, server="host = '0.0.0.0'") as service:
        assert service.log("no authentication") == []
