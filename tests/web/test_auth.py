"""Who may do what: every route with every token, before a body is read; hosts, origins and headers by plain sockets."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import RequestHandler

from tests.process import PATIENCE, Persistd, persistd, wait_until
from tests.rows import body, task
from tornado_persist.config import tokens
from tornado_persist.config.tokens import SCOPES, Scope
from tornado_persist.telemetry.refusals import LONGEST
from tornado_persist.web.app import PREFIX, ROUTES
from tornado_persist.web.auth import Access, Denied
from tornado_persist.web.base import GetHandler, Handler

TASKS = f"{PREFIX}/tasks/batch"
MADE = {scope: tokens.make(f"the-{scope}", [scope]) for scope in SCOPES}
WRONG = tokens.make("foreign", SCOPES)[0]
#: More than the service keeps, so that an answer shows that it did not wait for it.
ANNOUNCED = 9_000_000


def lines(*scopes: Scope) -> str:
    return "# by a test\n\n" + "".join(f"{MADE[scope][1]}\n" for scope in scopes)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    directory = tmp_path_factory.mktemp("auth")
    (directory / "tokens").write_text(lines(*SCOPES))
    config = f'[auth]\ntokens_file = "{directory}/tokens"\nanonymous = "never"\n[buffer]\nflush_interval = 3600\n'
    with Persistd(directory, config) as service:
        yield service


def ask(service: Persistd, head: str, content: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of the answer to these bytes."""
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port), PATIENCE) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + content)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = connection.recv(65536)
            assert more, answer
            answer += more
    first, *rest = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), headers, answer.partition(b"\r\n\r\n")[2]


def routes() -> Iterator[tuple[str, str, Scope | None]]:
    """Method, an example of the path, and the scope."""
    for pattern, handler in ROUTES:
        assert issubclass(handler, Handler)
        path = re.sub(r"\(.*?\)|\.\+", "k", pattern).replace("\\", "")
        for method in handler.SUPPORTED_METHODS:
            if getattr(handler, method.lower()) is not RequestHandler.get:
                yield method, path, handler.method_scopes.get(method, handler.scope)


@pytest.mark.parametrize("handler", [handler for _, handler in ROUTES])
def test_every_route_says_which_scope_it_needs(handler: type[RequestHandler]) -> None:
    own = handler.__mro__[: handler.__mro__.index(Handler)]
    assert any("scope" in vars(base) for base in own if base is not GetHandler)


def test_rows_are_written_read_and_deleted_with_different_scopes() -> None:
    found: dict[str, set[Scope | None]] = {"write": set(), "read": set(), "admin": set()}
    for method, path, scope in routes():
        if method == "DELETE" or path.endswith("/cleanup"):
            found["admin"].add(scope)
        elif path.endswith("/batch"):
            found["write"].add(scope)
        elif re.search("/(sessions|tasks|recovery)", path):
            found["read"].add(scope)
    assert found == {"write": {"write"}, "read": {"read"}, "admin": {"admin"}}


@pytest.mark.parametrize(("method", "path", "scope"), list(routes()))
def test_every_route_with_every_token(service: Persistd, method: str, path: str, scope: Scope | None) -> None:
    shown: dict[str, str | None] = {"none": None, "wrong": WRONG, **{name: MADE[name][0] for name in SCOPES}}
    for name, token in shown.items():
        authorization = f"\nAuthorization: Bearer {token}" if token else ""
        head = f"{method} {path} HTTP/1.1\nHost: localhost{authorization}"
        expected = 200 if scope in (None, name) else 401 if name in ("none", "wrong") else 403
        for announced in (0, ANNOUNCED):
            if expected == 200 and announced:
                continue  # it rightly waits for the body
            length = f"\nContent-Length: {announced}" if announced or method == "POST" else ""
            status, headers, content = ask(service, head + length)
            if expected == 200:
                assert status not in (401, 403), (name, content)
                continue
            assert status == expected, (name, content)
            assert headers["www-authenticate"].startswith('Bearer realm="persistd"')
            assert headers["connection"] == "close"
            if status == 403:
                assert f"the-{name} lacks the scope {scope}".encode() in content or method == "HEAD"


def test_a_denied_body_takes_no_room(service: Persistd) -> None:
    head = f"POST {TASKS} HTTP/1.1\nHost: localhost\nContent-Length: 100000"
    status, _, content = ask(service, head, b"x" * 50_000)
    assert status == 401
    assert json.loads(content) == {
        "detail": json.loads(content)["detail"],
        "status": "rejected",
        "count": 0,
        "errors": [],
    }
    reader = ("anybody", MADE["read"][0])
    last = service.http.get(f"{PREFIX}/stats", auth=reader).json()["refused"]["last"]
    assert (last["status"], last["reason"], last["client"]) == (401, "no_token", "127.0.0.1")
    text = service.http.get("/metrics", auth=reader).text
    assert re.search(r'^persistd_auth_failures_total\{reason="no_token"\} [1-9]', text, re.MULTILINE)


def test_health_has_figures_only_for_who_may_read(service: Persistd) -> None:
    assert service.http.get("/health").json() == {"status": "healthy", "database": "healthy"}
    for scope in SCOPES:
        answer = service.http.get("/health", auth=("me", MADE[scope][0]))
        assert ("instance" in answer.json()) == (scope == "read")


def test_a_navigation_is_asked_for_a_password_and_a_script_is_not(service: Persistd) -> None:
    page = service.http.get("/dashboard", headers={"Accept": "text/html,*/*"})
    assert page.headers.get_list("WWW-Authenticate")[0] == 'Basic realm="persistd", charset="UTF-8"'
    assert service.http.get("/dashboard").headers["WWW-Authenticate"] == 'Bearer realm="persistd"'


def test_a_reload_takes_a_token_away_from_a_kept_connection(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(lines("write", "read"))
    with Persistd(tmp_path, f'[auth]\ntokens_file = "{tmp_path}/tokens"\n') as service:
        service.http.headers["Authorization"] = f"Bearer {MADE['write'][0]}"
        assert service.post("task", task("a")).status_code == 200
        address = httpx.URL(service.url)
        head = f"POST {TASKS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {MADE['write'][0]}\r\n"
        request = f"{head}Content-Length: {len(body('task', task('b')))}\r\n\r\n".encode() + body("task", task("b"))
        with socket.create_connection((address.host, address.port), PATIENCE) as connection:
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            # A file with a mistake, and an empty one, change nothing.
            for wrong, told in (("x:write:5\n", "line 1: the last part of x"), ("# none\n", "has no token")):
                (tmp_path / "tokens").write_text(wrong)
                done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
                assert done.returncode == 1
                assert told in done.stderr
                connection.sendall(request)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            (tmp_path / "tokens").write_text(lines("read"))
            done = persistd("reload", "-c", str(service.file), cwd=tmp_path)
            assert (done.returncode, done.stdout) == (0, "reloaded: auth.tokens_file\n")
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_one_line_a_second_names_the_client_and_no_token_is_in_it(service: Persistd) -> None:
    before, began = len(service.log("request denied")), time.monotonic()
    for _ in range(50):
        service.http.get(f"/metrics/{WRONG}", headers={"Authorization": f"Bearer {WRONG}"})
        service.http.get("/metrics", headers={"Authorization": f"Bearer {WRONG}", "User-Agent": WRONG})
    wait_until(lambda: service.http.get("/metrics").status_code and service.log("request denied")[before:], "a line")
    told = service.log("request denied")[before:]
    assert len(told) <= 1 + time.monotonic() - began
    assert told[-1]["client"] == "127.0.0.1"
    text = service.log_text()
    assert not [token for token in (WRONG, *(made[0] for made in MADE.values())) if token in text]


def test_the_log_says_who_wrote_and_who_was_refused(tmp_path: Path) -> None:
    config = f"[auth]\ntokens = {[MADE[scope][1] for scope in SCOPES]}\n[buffer]\nflush_interval = 3600\n"
    with Persistd(tmp_path, config) as service:

        def post(scope: Scope, content: bytes, id: str) -> int:
            headers = {"Authorization": f"Bearer {MADE[scope][0]}", "X-Request-ID": id}
            return service.http.post(TASKS, content=content, headers=headers).status_code

        def told(event: str, id: str) -> list[tuple[str, str | None]]:
            lines = [line for line in service.log(event) if line["request_id"] == id]
            return [(line["client"], line.get("token")) for line in lines]

        assert post("write", body("task", task("a")), "good") == 200
        assert post("write", b"[", "bad") == 400
        assert post("read", b"", "denied") == 403
        assert service.http.post(f"{PREFIX}/flush", auth=("", MADE["flush"][0])).status_code == 200
        assert service.http.delete(f"{PREFIX}/sessions/s1", auth=("", MADE["admin"][0])).status_code == 200
        ask(service, f"GET /\x9b{999 * 'x'} HTTP/1.1\nHost: localhost\nX-Request-ID: odd")
        wait_until(lambda: told("request", "odd"), "the line of a request")
        path = next(line["path"] for line in service.log("request") if line["request_id"] == "odd")
        assert (path[:5], len(path)) == ("/\xc2\N{REPLACEMENT CHARACTER}xx", LONGEST + 1)
        assert told("request", "good") == [("127.0.0.1", "the-write")]
        assert told("batch refused", "bad") == [("127.0.0.1", "the-write")]
        assert told("request denied", "denied") == [("127.0.0.1", "the-read")]
        flush, deleted = service.wait_for_log("flush"), service.wait_for_log("deleted")
        assert (flush["requests"], flush["clients"]) == (["good"], ["the-write@127.0.0.1"])
        assert "client" not in flush
        assert (deleted["client"], deleted["token"]) == ("127.0.0.1", "the-admin")


@pytest.mark.parametrize("path", ["/", "/nowhere", "/metrics", TASKS, "/health"])
def test_every_answer_has_the_headers(service: Persistd, path: str) -> None:
    for head in (f"GET {path} HTTP/1.1\nHost: localhost", f"FOO {path} HTTP/1.1\nHost: localhost", "nonsense"):
        _, headers, _ = ask(service, head)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        (
            "",
            {
                "localhost": 200,
                "LOCALHOST:1": 200,
                "127.0.0.1": 200,
                "[::1]:8001": 200,
                "rebound.example": 403,
                "localhost.evil.example": 403,
            },
        ),
        ("allowed_hosts = ['ours.example']", {"Ours.example:80": 200, "other.example": 403}),
        ("allowed_hosts = ['*']", {"other.example": 200}),
        ("host = '0.0.0.0'", {"other.example": 200}),
    ],
)
def test_hosts(tmp_path: Path, settings: str, hosts: dict[str, int]) -> None:
    with Persistd(tmp_path, server=settings) as service:
        for host, status in hosts.items():
            for head in (f"GET / HTTP/1.1\nHost: {host}", f"GET http://{host}/ HTTP/1.1\nHost: localhost"):
                found, _, content = ask(service, head)
                assert (found, b"allowed_hosts" in content) == (status, status == 403), host


def test_origins(tmp_path: Path) -> None:
    trusted = "https://app.example.com"
    with Persistd(tmp_path, server=f"trusted_origins = ['{trusted}']") as service:
        own = service.url
        rows = body("task", task("a"))
        json_type = {"Content-Type": "application/json"}
        for headers, status in (
            ({"Origin": "http://evil.example", **json_type}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site", **json_type}, 403),
            ({"Sec-Fetch-Site": "same-origin", "Origin": own}, 415),
            ({"Sec-Fetch-Site": "same-origin", "Origin": own, **json_type}, 200),
            ({"Origin": trusted, **json_type}, 200),
            ({"Origin": trusted}, 415),
            ({}, 200),
        ):
            answer = service.http.post(TASKS, content=rows, headers=headers)
            assert answer.status_code == status, headers
            allowed = trusted if headers.get("Origin") == trusted else None
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        asked = {"Access-Control-Request-Method": "POST"}
        answer = service.http.options(TASKS, headers={"Origin": trusted, **asked})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (204, trusted)
        assert {"Authorization", "X-Persist-After"} <= {*answer.headers["Access-Control-Allow-Headers"].split(", ")}
        answer = service.http.options(TASKS, headers={"Origin": "http://evil.example", **asked})
        assert answer.status_code in (403, 405)
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert service.http.post(f"{PREFIX}/flush", headers={"Origin": "http://evil.example"}).status_code == 403


def request_with(authorization: str) -> HTTPServerRequest:
    headers = HTTPHeaders({"Host": "localhost"})
    headers["Authorization"] = authorization
    return HTTPServerRequest(start_line=RequestStartLine("GET", "/", "HTTP/1.1"), headers=headers)


SECRET, LINE = MADE["read"]
#: What no header may have; Tornado refuses it before this.
TEXT = st.text(st.characters(max_codepoint=255, categories=["L", "N", "P", "S", "Zs"]))


@given(
    st.one_of(
        TEXT,
        st.tuples(st.sampled_from(["Bearer", "bearer", "Basic", "BASIC", "Digest", ""]), TEXT).map(" ".join),
        TEXT.map(lambda text: f"Basic {base64.b64encode(text.encode()).decode()}"),
        st.binary().map(lambda text: f"Basic {base64.b64encode(text).decode()}"),
        st.integers(1, len(SECRET) - 1).map(lambda end: f"Bearer {SECRET[:end]}"),
        TEXT.filter(str.strip).map(lambda text: f"Bearer {SECRET}{text.strip()}"),
    )
)
def test_no_header_but_the_token_comes_in(authorization: str) -> None:
    access = Access(tokens.collect([LINE], None))
    with pytest.raises(Denied) as caught:
        access.admit(request_with(authorization), "read")
    assert caught.value.status_code == 401
    assert not access.may(HTTPHeaders({"Authorization": authorization}), "read")


@given(st.sampled_from(["Bearer", "bearer", "BEARER"]), TEXT)
def test_the_token_comes_in_with_any_user_name(scheme: str, user: str) -> None:
    access = Access(tokens.collect([LINE], None))
    basic = base64.b64encode(f"{user.replace(':', '')}:{SECRET}".encode()).decode()
    assert access.admit(request_with(f"{scheme} {SECRET}"), "read") == "the-read"
    assert access.admit(request_with(f"Basic {basic}"), "read") == "the-read"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "the name has"),
        ("a b:write:" + "0" * 64, "the name has"),
        ("ops:wirte:" + "0" * 64, "the scopes of ops"),
        ("ops::" + "0" * 64, "the scopes of ops"),
        ("ops:write:" + "0" * 63, "the last part of ops"),
        (f"ops:write:{SECRET}", "this is a token itself"),
    ],
    ids=["nothing", "name", "scope", "no scope", "short", "token"],  # the token is another one in each process
)
def test_a_wrong_line_is_named_and_shows_no_token(line: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        tokens.parse(line)
    assert SECRET not in str(caught.value)


def test_without_a_token_it_does_not_start_if_it_must_not(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[auth]\nanonymous = "never"\n')
    done = persistd("run", "-c", "c.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "auth.anonymous: never needs a token" in done.stderr


def test_a_new_token_works_and_the_commands_take_it_from_the_environment(tmp_path: Path) -> None:
    made = persistd("token", "new", "ops", "--scope", "read,flush", "--json", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    new = json.loads(made.stdout)
    assert re.fullmatch(r"pst_[A-Za-z0-9_-]{43}", new["token"])
    with Persistd(tmp_path, f'[auth]\ntokens = ["{new["line"]}"]\n') as service:
        (tmp_path / "token").write_text(new["token"] + "\n")
        for variables in ({"PERSISTD_TOKEN": new["token"]}, {"PERSISTD_TOKEN_FILE": str(tmp_path / "token")}):
            for words in (["stats"], ["flush"], ["status"], ["check"]):
                done = persistd(*words, "-c", str(service.file), cwd=tmp_path, **variables)
                assert done.returncode == 0, done.stdout + done.stderr
                assert new["token"] not in done.stdout + done.stderr
        done = persistd("stats", "-c", str(service.file), cwd=tmp_path)
        told = f"persistd: {service.url} wants a token that it knows; set PERSISTD_TOKEN or PERSISTD_TOKEN_FILE\n"
        assert (done.returncode, done.stderr) == (1, told)
        (tmp_path / "rows.jsonl").write_text(json.dumps(task("a")) + "\n")
        done = persistd("import", "rows.jsonl", "-c", str(service.file), cwd=tmp_path, PERSISTD_TOKEN=new["token"])
        assert done.returncode == 1
        assert "The token ops lacks the scope write" in done.stderr
        done = persistd("status", "-c", str(service.file), cwd=tmp_path)
        assert (done.returncode, done.stdout.startswith("persistd is well; for its figures")) == (0, True)
        assert persistd("reload", "-c", str(service.file), cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("proxies", "peer", "header", "client"),
    [
        ([], "127.0.0.1", "192.0.2.7", "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", None, "127.0.0.1"),
        (["127.0.0.1"], "127.0.0.1", "192.0.2.7", "192.0.2.7"),
        (["127.0.0.1"], "127.0.0.2", "192.0.2.7", "127.0.0.2"),
        (["unix"], "unix", "2001:DB8::7", "2001:db8::7"),
        (["127.0.0.1"], "unix", "192.0.2.7", "unix"),
        # A client's invention stands before what the proxies have added.
        (["127.0.0.1", "10.0.0.0/8"], "127.0.0.1", "198.51.100.1, 192.0.2.7, 10.0.0.5", "192.0.2.7"),
        (["127.0.0.1"], "127.0.0.1", "192.0.2.7, 10.0.0.5", "10.0.0.5"),
        (["127.0.0.0/8"], "127.0.0.1", "127.0.0.3,127.0.0.2", "127.0.0.3"),
        (["::1"], "::1", "192.0.2.7, <script>", "::1"),
        (["::1"], "fe80::1%lo", "192.0.2.7", "fe80::1%lo"),
        (["::1"], "::1", "fe80::7%\x9b31m" + 999 * "x", "fe80::7"),
    ],
)
def test_only_a_trusted_proxy_says_who_the_client_is(
    proxies: list[str], peer: str, header: str | None, client: str
) -> None:
    headers = HTTPHeaders({"Host": "localhost"} | ({"X-Forwarded-For": header} if header is not None else {}))
    request = HTTPServerRequest(headers=headers, start_line=RequestStartLine("GET", "/", "HTTP/1.1"))
    request.remote_ip = peer
    assert Access(proxies=proxies).client_of(request) == client


@pytest.mark.parametrize("proxy", ["localhost", "10.0.0.1/8", "*", ""])
def test_a_proxy_that_is_no_address_is_refused(tmp_path: Path, proxy: str) -> None:
    (tmp_path / "persistd.toml").write_text(f"[server]\ntrusted_proxies = ['{proxy}']\n")
    refused = persistd("check", "-c", "persistd.toml", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"server.trusted_proxies: {proxy!r} is no address" in refused.stderr
