"""The description of the interface: whole, true, and held against a real service by schemathesis."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tornado.web import RequestHandler

from tests.process import Persistd, environment
from tests.rows import body, session, task
from tornado_persist.config import tokens
from tornado_persist.config.tokens import SCOPES, Scope
from tornado_persist.errors import InvalidBatch
from tornado_persist.records.models import KINDS, PLURALS, Fields, Kind, Session, Task, key_of
from tornado_persist.records.parser import Parser
from tornado_persist.web import openapi_security
from tornado_persist.web.app import ROUTES
from tornado_persist.web.base import Handler
from tornado_persist.web.openapi import PREFIX, Limits, describe

ROOT = Path(__file__).parent.parent.parent
LIMITS = Limits(max_batch=7, max_body_bytes=12345, flush_timeout=1.5)
BATCHES = [f"{PREFIX}/{plural}/batch" for plural in PLURALS.values()]


def operations(description: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method, path): operation for path, item in description["paths"].items() for method, operation in item.items()
    }


def refs(part: Any) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(refs, part.values()))
    return set[str]().union(*map(refs, part)) if isinstance(part, list) else set()


#: What the pages load, by the names that they use.
ASSETS = {r"/dashboard/.+", r"/docs/.+"}


def test_every_endpoint_is_described_with_its_methods() -> None:
    patterns = dict(ROUTES)
    assert patterns.keys() >= ASSETS
    expected = set()
    for pattern in patterns.keys() - ASSETS:
        handler, path = patterns[pattern], re.sub(r"\(.+?\)", "{}", pattern.replace("\\", ""))
        assert re.fullmatch(pattern, path), pattern  # one path, and no more
        methods = {name.lower() for name in handler.SUPPORTED_METHODS}
        expected |= {(name, path) for name in methods if getattr(handler, name) is not RequestHandler.get}
    described = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in operations(describe(LIMITS))}
    assert described == expected


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    description = describe(LIMITS)
    for ref in refs(description):
        part: Any = description
        for step in ref.removeprefix("#/").split("/"):
            part = part[step]
    schemas = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert schemas <= refs(description)


def test_a_path_that_is_no_utf8_is_foreseen() -> None:
    with_keys = [operation for (_, path), operation in operations(describe(LIMITS)).items() if "{" in path]
    assert len(with_keys) > 8
    assert all("400" in operation["responses"] for operation in with_keys)


@pytest.mark.parametrize("path", BATCHES)
def test_a_batch_has_every_status_of_the_specification(path: str) -> None:
    operation = describe(LIMITS)["paths"][path]["post"]
    assert operation["responses"].keys() == {"200", "400", "401", "403", "413", "415", "422", "500", "503"}
    assert "Retry-After" in operation["responses"]["503"]["headers"]
    for response in operation["responses"].values():
        assert "X-Request-ID" in response["headers"]


def test_the_limits_are_those_of_the_configuration() -> None:
    description = describe(LIMITS)
    schemas = description["components"]["schemas"]
    for kind in KINDS:
        plural = PLURALS[kind]
        assert schemas[f"{plural.capitalize()}Body"]["properties"][plural]["maxItems"] == 7
    text = str(description)
    assert "12345 bytes" in text
    assert "1.5 seconds" in text


@pytest.mark.parametrize("unknown", ["ignore", "reject"])
def test_unknown_fields_are_described_as_the_parser_takes_them(unknown: Any) -> None:
    schemas = describe(Limits(7, 12345, 1.5, unknown))["components"]["schemas"]
    for name in ("Session", "Task", "SessionsBody", "TasksBody"):
        assert (schemas[name]["additionalProperties"] is False) == (unknown == "reject")


def test_the_fields_are_those_that_the_parser_knows() -> None:
    parser = Parser(unknown_fields="reject")
    rows: tuple[tuple[Kind, Any, Fields], ...] = (("session", Session, session("a")), ("task", Task, task("a")))
    for kind, type, whole in rows:
        schema = describe(LIMITS)["components"]["schemas"][kind.capitalize()]
        assert schema["properties"].keys() == type.__annotations__.keys()
        assert schema["examples"][0].keys() <= type.__annotations__.keys()
        for field in schema["required"]:
            with pytest.raises(InvalidBatch, match=field):
                parser.parse(kind, body(kind, {name: value for name, value in whole.items() if name != field}))
        assert parser.parse(kind, body(kind, {name: whole[name] for name in schema["required"]})).rows


def test_the_examples_are_accepted() -> None:
    for kind in KINDS:
        operation = describe(LIMITS)["paths"][f"{PREFIX}/{PLURALS[kind]}/batch"]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        (row,) = Parser().parse(kind, json.dumps(example).encode()).rows
        assert key_of(kind, row) == key_of(kind, example[PLURALS[kind]][0])


@pytest.mark.parametrize("with_tokens", [False, True])
def test_every_operation_says_which_scope_it_needs_and_how_it_is_denied(with_tokens: bool) -> None:
    described = describe(replace(LIMITS, tokens=with_tokens))
    assert described["components"]["securitySchemes"].keys() == {"bearer", "basic"}
    scopes: dict[tuple[str, str], Scope | None] = {}
    for pattern, handler in ROUTES:
        assert issubclass(handler, Handler)
        for method in handler.SUPPORTED_METHODS:
            path = re.sub(r"\(.+?\)", "{}", pattern.replace("\\", ""))
            scopes[method.lower(), path] = handler.method_scopes.get(method, handler.scope)
    for (method, path), operation in operations(described).items():
        scope, responses = scopes[method, re.sub(r"\{\w+\}", "{}", path)], operation["responses"]
        assert openapi_security.scope_of(operation) == scope, path
        assert operation.get("security") == (
            [{"bearer": [scope]}, {"basic": [scope]}] if scope and with_tokens else None
        )
        assert ("401" in responses) == (scope is not None)
        assert ("WWW-Authenticate" in responses["403"]["headers"]) == (scope is not None)
        assert (f"`{scope}`" in operation.get("description", "")) == (scope is not None)
        for status in responses.keys() & {"401", "403"}:
            assert responses[status].get("content") == responses["500"].get("content")


def schemathesis(service: Persistd, *more: str, schema: str = "") -> subprocess.CompletedProcess[str]:
    """``schema``: a file; by default what the service serves."""
    place = [schema, "--url", service.url] if schema else [f"{service.url}/openapi.json"]
    command = [
        str(Path(sysconfig.get_path("scripts")) / "schemathesis"),
        *("run", *place, "--checks", "all"),
        # A red run should be the change's fault, not the dice's.
        *("--generation-deterministic", "--no-color", "--warnings", "off", *more),
    ]
    return subprocess.run(
        command,
        cwd=service.directory,
        env={
            **environment(SCHEMATHESIS_HOOKS="tests.web.schemathesis_hooks", PYTHONPATH=str(ROOT)),
            "PYTHONWARNINGS": "default",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_schemathesis_finds_no_answer_that_is_not_described(tmp_path: Path) -> None:
    with Persistd(tmp_path, "[buffer]\ncapacity = 50\n", server="max_batch = 20\n") as service:
        service.post("session", session("a"))
        service.post("task", task("a"))
        done = schemathesis(service, "--max-examples", "20")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"Tested: +39\b", done.stdout), done.stdout
        assert service.stats()["accounting"]["accepted"] > 2
        assert not service.log("a bug in a request handler")


@pytest.mark.parametrize("shown", ["right", "none", "foreign", "of another scope"])
def test_schemathesis_with_tokens(tmp_path: Path, shown: str) -> None:
    right, line = tokens.make("all", SCOPES)
    other, other_line = tokens.make("admin", ["admin"])
    config = f'[auth]\ntokens = ["{line}", "{other_line}"]\n[buffer]\ncapacity = 50\n'
    with Persistd(tmp_path, config, server="max_batch = 20\n") as service:
        service.http.headers["Authorization"] = f"Bearer {right}"
        (tmp_path / "openapi.json").write_bytes(service.http.get("/openapi.json").content)
        token = {"right": right, "foreign": tokens.make("x", SCOPES)[0], "of another scope": other}.get(shown)
        more = ("--header", f"Authorization: Bearer {token}") if token else ()
        done = schemathesis(service, "--max-examples", "6", *more, schema="openapi.json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"Tested: +39\b", done.stdout), done.stdout
        stats = service.stats()
        assert (stats["accounting"]["accepted"] > 0) == (shown == "right")
        denied = {"none": "no_token", "foreign": "unknown_token", "of another scope": "scope"}
        text = service.http.get("/metrics").text
        for reason in denied.values():
            found = re.search(rf'^persistd_auth_failures_total{{reason="{reason}"}} ([0-9.]+)', text, re.MULTILINE)
            assert found
            # With a token it also sends requests without, and with a wrong one.
            assert float(found[1]) > 0 or denied.get(shown) != reason
        assert not service.log("a bug in a request handler")


#: Code of a user with a generated client: typed rows in, typed answers out.
CLIENT = """
import sys

from client import Client
from client.api.batches import sessions_batch, tasks_batch
from client.api.buffer import flush, stats
from client.api.health import health, health_head
from client.models import Accepted, Flushed, Health, Rejected, Session, SessionGameInfoType0, SessionStatus
from client.models import SessionsBody, Stats, Task, TasksBody, TaskStatus

with Client(base_url=sys.argv[1]) as service:
    nested = SessionGameInfoType0.from_dict({"languages": ["en", "zh"], "more": {"deep": [1, None, {"er": 0.5}]}})
    session = Session("s", "a.xlsx", "/a", SessionStatus.PROCESSING, "openai", game_info=nested)
    answer = sessions_batch.sync(client=service, body=SessionsBody([session]), x_request_id="generated")
    assert isinstance(answer, Accepted) and answer.count == 1, answer
    task = Task("t", "s", "b", "Sheet1", 1, "Text", "Hello", TaskStatus.COMPLETED, target_text=None, confidence=0.5)
    answer = tasks_batch.sync(client=service, body=TasksBody([task]))
    assert isinstance(answer, Accepted) and answer.status == "accepted", answer
    task.row_index = -1 << 40
    refused = tasks_batch.sync_detailed(client=service, body=TasksBody([task]))
    assert refused.status_code == 422 and isinstance(refused.parsed, Rejected), refused
    assert refused.parsed.errors[0].loc == ["tasks", 0, "row_index"], refused
    flushed = flush.sync(client=service)
    assert isinstance(flushed, Flushed) and (flushed.sessions_written, flushed.tasks_written) == (1, 1), flushed
    numbers = stats.sync(client=service)
    assert isinstance(numbers, Stats) and numbers.accounting.written == 2, numbers
    well = health.sync(client=service)
    assert isinstance(well, Health) and well.status == "healthy", well
    assert health_head.sync_detailed(client=service).status_code == 200
"""


@pytest.mark.parametrize("unknown", ["ignore", "reject"])
def test_a_generated_client_has_every_endpoint_and_works(tmp_path: Path, unknown: str) -> None:
    with Persistd(tmp_path, f"[records]\nunknown_fields = '{unknown}'\n[buffer]\nflush_interval = 3600\n") as service:
        description = service.http.get("/openapi.json")
        (tmp_path / "openapi.json").write_bytes(description.content)
        config = tmp_path / "generator.yaml"
        config.write_text("post_hooks: []\n")
        scripts = Path(sysconfig.get_path("scripts"))
        command = [str(scripts / "openapi-python-client"), "generate", "--path", "openapi.json", "--meta", "none"]
        command += ["--output-path", "client", "--config", str(config), "--fail-on-warning"]
        made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert made.returncode == 0, made.stdout + made.stderr
        modules = {path.stem for path in (tmp_path / "client" / "api").rglob("*.py")} - {"__init__"}
        assert len(modules) == len(operations(description.json())) == 39
        program = [sys.executable, "-c", CLIENT, service.url]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [line for line in service.log("request") if line["request_id"] == "generated"]
        with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
            ((written,),) = database.execute("SELECT game_info FROM translation_sessions").fetchall()
    assert json.loads(written) == {"languages": ["en", "zh"], "more": {"deep": [1, None, {"er": 0.5}]}}


def test_it_is_served_with_the_limits_in_force(tmp_path: Path) -> None:
    with Persistd(tmp_path, server="max_batch = 77\n") as service:
        answer = service.http.get("/openapi.json")
        head = service.http.head("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.json() == describe(Limits(max_batch=77, max_body_bytes=10_485_760, flush_timeout=8.0))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]
