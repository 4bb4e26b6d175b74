"""The example of nginx in front of the service, route by route, by TLS, from addresses with more, fewer, no rights."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests import tools
from tests.certificates import issue, save
from tests.process import PATIENCE, Persistd, wait_until
from tests.rows import body, task
from tests.servers import free_port
from tornado_persist.config import tokens
from tornado_persist.web.app import ROUTES

CONF = Path(__file__).parent.parent / "conf" / "nginx.conf"
MANUAL = "[buffer]\nflush_interval = 3600\n"
API = "/api/v1/persistence"
TASKS = f"{API}/tasks/batch"

OPERATOR, CLIENT, NOBODY = "127.0.0.1", "127.0.0.2", "127.0.0.3"
CLIENTS = {"#10.1.0.0/16 client;": f"{CLIENT} client;"}
#: So high that the tests of other things do not reach them.
NO_LIMITS = {"rate=50r/s": "rate=100000r/s", "burst=100 ": "burst=100000 "}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 as its own addresses"
)


class Front:
    """A running nginx."""

    def __init__(self, directory: Path, port: int, process: subprocess.Popen[bytes], closing: ExitStack) -> None:
        self.port, self.process, self._closing = port, process, closing
        self.log = directory / "access.log"
        self.tls = ssl.create_default_context(cafile=directory / "ca.pem")

    def client(self, address: str = OPERATOR) -> httpx.Client:
        """One that comes from this address."""
        transport = httpx.HTTPTransport(verify=self.tls, local_address=address)
        made = httpx.Client(base_url=f"https://127.0.0.1:{self.port}", timeout=PATIENCE, transport=transport)
        return self._closing.enter_context(made)

    def connect(self, address: str) -> ssl.SSLSocket:
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE, (address, 0))
        return self.tls.wrap_socket(connection, server_hostname="127.0.0.1")


def adapted(directory: Path, upstream: str, port: int, changes: dict[str, str]) -> Path:
    """The example with places of its own."""
    ca = issue("a CA")
    save(directory, "ca", ca)
    save(directory, "persistd", issue("persistd", ca))
    text = CONF.read_text()
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    for old, new in {
        "server 127.0.0.1:8001": f"server {upstream}",
        "listen 8443 ssl": f"listen 127.0.0.1:{port} ssl",
        "        listen [::]:8443 ssl;\n": "",
        "/var/log/nginx/persistd.log": str(directory / "access.log"),
        "/etc/nginx/persistd.pem": f"{directory}/persistd.pem",
        "/etc/nginx/persistd.key": f"{directory}/persistd.key",
        "worker_processes auto": "worker_processes 1",
        "http {\n": "http {\n" + "".join(f"{name}_temp_path {directory}/{name};\n" for name in names),
        **changes,
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = directory / "nginx.conf"
    file.write_text(text)
    return file


@contextmanager
def nginx(directory: Path, upstream: str, changes: dict[str, str]) -> Iterator[Front]:
    """The example in front of a service, on a port and in a directory of its own."""
    directory.mkdir()
    port = free_port()
    file = adapted(directory, upstream.removeprefix("http://"), port, changes)
    # As root its workers would be another user, who has no way into the directory.
    user = "user root;" if os.geteuid() == 0 else ""
    options = f"daemon off; pid {directory}/pid; error_log stderr; {user}"
    process = subprocess.Popen([tools.require("nginx"), "-e", "stderr", "-c", str(file), "-g", options])

    def listens() -> bool:
        assert process.poll() is None, "nginx has ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        wait_until(listens)
        with ExitStack() as closing:
            yield Front(directory, port, process, closing)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    with Persistd(tmp_path_factory.mktemp("service"), MANUAL, server="max_body_bytes = 100000\n") as service:
        yield service


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, service: Persistd) -> Iterator[Front]:
    """One that is open to a client."""
    with nginx(tmp_path_factory.mktemp("front") / "nginx", service.url, CLIENTS | NO_LIMITS) as front:
        yield front


def test_nginx_understands_every_line(tmp_path: Path) -> None:
    file = adapted(tmp_path, "127.0.0.1:8001", 8443, {})
    text = file.read_text().replace("127.0.0.1:8443 ssl", "8443 ssl; listen [::]:8443 ssl")
    # The lines that wait for somebody to need them, too.
    text, count = re.subn(r"(?m)^( +)#(?=\S.*;$)", r"\1", text.replace("/etc/nginx/clients.pem", f"{tmp_path}/ca.pem"))
    assert count == 6
    file.write_text(text)
    command = [str(tools.require("nginx")), "-t", "-q", "-e", "stderr", "-c", str(file), "-g", "pid /dev/null;"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, "[warn]" in done.stderr) == (0, False), done.stderr


def test_a_batch_goes_through_and_so_do_all_answers(front: Front, service: Persistd) -> None:
    client = front.client(CLIENT)
    rows = body("task", *(task(f"t{number}") for number in range(100)))
    for content, headers in ((rows, {}), (gzip.compress(rows), {"Content-Encoding": "gzip"})):
        accepted = client.post(TASKS, content=content, headers={"X-Request-ID": "through", **headers})
        assert (accepted.status_code, accepted.json()["count"]) == (200, 100)
        assert accepted.headers["X-Request-ID"] == "through"
    flushed = client.post(f"{API}/flush").json()
    assert (flushed["status"], flushed["tasks_written"]) == ("flushed", 100)
    assert client.get(f"{API}/sessions/s1/tasks/t1").json()["task_id"] == "t1"
    for content, code in ((b"{", 400), (b"{}", 422), (b" " * 200_000, 413)):
        refused = client.post(TASKS, content=content)
        assert (refused.status_code, refused.json()["status"]) == (code, "rejected")
    made = client.get("/health").headers["X-Request-ID"]
    wait_until(lambda: made in [line["request_id"] for line in service.log("request")])
    wait_until(lambda: made in front.log.read_text())
    assert f"{CLIENT} [" in front.log.read_text()


def meant(who: str, method: str, path: str) -> int:
    """What nginx itself is to answer; 0: it asks the service."""
    send = {f"{API}/sessions/batch", TASKS, f"{API}/flush", f"{API}/recovery/restore/some"}
    send |= {"/health", "/health/live", "/health/ready"}
    read = {f"{API}/sessions", f"{API}/tasks", f"{API}/recovery/incomplete-sessions", f"{API}/sessions/some"}
    read |= {f"{API}/sessions/some/tasks", f"{API}/sessions/some/tasks/some", f"{API}/sessions/cleanup"}
    read |= {f"{API}/sessions/batch/more"}  # might be a session's
    inside = {f"{API}/stats", f"{API}/history", "/metrics", "/dashboard", "/docs", "/openapi.json", "/"}
    if path not in send | read | inside and not re.match(r"/(dashboard|docs)/.", path):
        return 404
    if who == OPERATOR:
        return 0
    may = {"GET", "HEAD", "OPTIONS"} if path in read else {"GET", "HEAD", "OPTIONS", "POST"} if path in send else {}
    return 0 if who == CLIENT and method in may else 403


def test_each_address_can_do_what_it_is_meant_to_route_by_route(front: Front, service: Persistd) -> None:
    routes = {re.sub(r"\(\[\^/\]\+\)|\.\+", "some", route).replace("\\", "") for route, _ in ROUTES}
    assert {f"{API}/sessions/some/tasks/some", "/dashboard/some", "/openapi.json"} <= routes
    assert {re.sub(r"{\w+}", "some", path) for path in service.http.get("/openapi.json").json()["paths"]} <= routes
    near = {"/dashboard/", "/docs/", "/healthy", "/health/", "/health/other", f"{TASKS}/more", f"{API}/other", "/x"}
    near |= {f"{API}/sessions/batch/more", "/METRICS", "/metrics/"}
    clients = {who: front.client(who) for who in (OPERATOR, CLIENT, NOBODY)}
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
    for path, method, (who, client) in itertools.product(sorted(routes | near), methods, clients.items()):
        answer = client.request(method, path, content=b"{}" if method == "POST" else None)
        wanted = meant(who, method, path)
        what = (who, method, path, answer.status_code)
        # The service puts an id on each of its answers.
        assert ("X-Request-ID" in answer.headers) == (not wanted), what
        if wanted:
            assert answer.status_code == wanted, what
            assert method == "HEAD" or answer.json()["detail"], what
        else:
            own = service.http.request(method, path, content=b"{}" if method == "POST" else None)
            assert answer.status_code == own.status_code, what


#: Paths that nginx may read in another way than the service does.
SPELLINGS = (
    *("/%6detrics", "//metrics", "/metrics%00", "/metrics%23", "/metrics?/health", "/metrics#/health"),
    *("/health/../metrics", "/health/%2e%2e/metrics", "/x/%2F../metrics", "/health/..;/metrics"),
    *("/metrics/../health", "/metrics/..%2Fhealth", "http://localhost/metrics"),
    *(f"{API}//stats", f"{API}/sessions/%2e%2e%2fstats", "/health/../api/v1/persistence/sessions/cleanup"),
    *(f"{API}/sessions/some/..%2F..%2Fflush", f"{API}/sessions/some%2F..%2F..%2Fflush"),
    f"{API}/sessions/some/tasks/..%2F..%2F..%2Fflush",
)


@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_leads_a_client_inside(front: Front, service: Persistd, path: str) -> None:
    service.post("task", task("../../../flush", session_id="some"), task("x", session_id="some/../../flush"))
    service.flush()
    for method in ("GET", "POST", "DELETE"):
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        answer = b""
        with front.connect(CLIENT) as connection:
            connection.sendall(head.encode())
            while more := connection.recv(65536):
                answer += more
        assert answer.startswith(b"HTTP/1.1 ")
        for inside in (b"persistd_", b"next_flush_time", b"_deleted"):
            assert inside not in answer
    for key in ("some/tasks/..%2F..%2F..%2Fflush", "some%2F..%2F..%2Fflush/tasks/x"):
        assert service.http.get(f"{API}/sessions/{key}").status_code == 200


def test_as_it_stands_it_answers_this_machine_alone(tmp_path: Path, service: Persistd) -> None:
    with nginx(tmp_path / "nginx", service.url, {}) as front:
        for path in ("/health", "/metrics", "/dashboard", f"{API}/sessions"):
            assert front.client(OPERATOR).get(path).status_code == 200
            assert front.client(CLIENT).get(path).status_code == 403
        plain = httpx.get(f"http://127.0.0.1:{front.port}/health", timeout=PATIENCE)
        assert (plain.status_code, "X-Request-ID" in plain.headers) == (400, False)


def test_an_address_that_asks_too_often_gets_429_and_others_do_not(tmp_path: Path, service: Persistd) -> None:
    changes = CLIENTS | {"rate=50r/s": "rate=1r/m", "burst=100 ": "burst=5 "}
    with nginx(tmp_path / "nginx", service.url, changes) as front:
        client = front.client(CLIENT)
        answers = [client.get("/health/live") for _ in range(8)]
        assert [one.status_code for one in answers] == [200] * 6 + [429] * 2
        assert (answers[-1].headers["Retry-After"], "address" in answers[-1].json()["detail"]) == ("1", True)
        assert front.client(OPERATOR).get("/health/live").status_code == 200
        assert [front.client(NOBODY).get("/health/live").status_code for _ in range(8)] == [403] * 8


def test_an_address_has_so_many_requests_at_a_time(tmp_path: Path, service: Persistd) -> None:
    changes = CLIENTS | {"persistd_connections 50": "persistd_connections 2"}
    with nginx(tmp_path / "nginx", service.url, changes) as front, ExitStack() as closing:
        for _ in range(2):  # half a batch each
            closing.enter_context(front.connect(CLIENT)).sendall(
                f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
            )
        client = front.client(CLIENT)
        wait_until(lambda: client.get("/health/live").status_code == 429)
        assert front.client(OPERATOR).get("/health/live").status_code == 200
        closing.close()
        wait_until(lambda: client.get("/health/live").status_code == 200)


@pytest.mark.parametrize("trusted", [False, True])
def test_the_clients_address_reaches_the_log_if_the_proxy_is_trusted(tmp_path: Path, trusted: bool) -> None:
    proxies = f"trusted_proxies = ['{OPERATOR}']\n" if trusted else ""
    (token, line), (prying, other) = tokens.make("shop", ["write"]), tokens.make("prometheus", ["read"])
    config = f"{MANUAL}[auth]\ntokens = ['{line}', '{other}']\n"
    with (
        Persistd(tmp_path, config, server=proxies) as service,
        nginx(tmp_path / "nginx", service.url, CLIENTS | NO_LIMITS) as front,
    ):
        client = front.client(CLIENT)
        client.headers["X-Forwarded-For"] = "192.0.2.7"  # its own invention
        for header, code in ((None, 401), (prying, 403), (token, 422)):
            if header:
                client.headers["Authorization"] = f"Bearer {header}"
            answer = client.post(TASKS, content=b"{}")
            assert (answer.status_code, "WWW-Authenticate" in answer.headers) == (code, code != 422)
        operator = front.client(OPERATOR)
        assert operator.get("/metrics", auth=("prometheus", prying)).status_code == 200
        seen = CLIENT if trusted else OPERATOR
        assert {one["client"] for one in service.log("batch refused") + service.log("request denied")} == {seen}
        refused = operator.get(f"{API}/stats", auth=("me", prying)).json()["refused"]["last"]
        assert refused["client"] == seen
        (own,) = (one for one in service.log("request") if one["path"] == "/metrics")
        assert own["client"] == OPERATOR
        assert "192.0.2.7" not in service.log_text()
        assert not {part for part in (token, prying) if part in front.log.read_text() + service.log_text()}


def test_a_unix_socket_leads_to_the_service_as_well(tmp_path: Path) -> None:
    server = "unix_socket = 'persistd.sock'\ntrusted_proxies = ['unix']\n"
    with (
        Persistd(tmp_path, MANUAL, server=server) as service,
        nginx(tmp_path / "nginx", f"unix:{service.data_dir}/persistd.sock", CLIENTS | NO_LIMITS) as front,
    ):
        assert front.client(CLIENT).post(TASKS, content=body("task", task())).status_code == 200
        assert service.wait_for_log("request")["client"] == CLIENT  # it is written after the answer is sent


def test_a_service_that_is_away_is_said_in_json(tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", f"127.0.0.1:{free_port()}", {}) as front:
        answer = front.client().post(TASKS, content=b"{}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (502, "1")
        assert "later" in answer.json()["detail"]
        large = front.client().post(TASKS, content=b" " * (21 << 20))
        assert (large.status_code, "large" in large.json()["detail"]) == (413, True)
