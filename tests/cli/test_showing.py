"""``persistd get`` and ``persistd ls`` against a running service."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

from tests.cli.conftest import Command
from tests.process import Persistd
from tests.rows import session, task


def test_one_row_for_people_and_as_json(service: Persistd, command: Command) -> None:
    service.post("session", session("会话/1", metadata={"a": [1]}))
    service.post("task", task("t/1", session_id="会话/1", status="failed", error_message="坏\x1b[31m"))
    code, said, _ = command("get", "session", "会话/1", "--url", service.url)
    shown = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert code == 0
    assert shown.items() >= {"session_id": "会话/1", "metadata": '{"a": [1]}', "tasks": "1 failed"}.items()
    assert shown["progress"] == "100.0 %"
    code, said, _ = command("get", "task", "会话/1", "t/1", "--json", "--url", service.url)
    assert (code, json.loads(said)["error_message"]) == (0, "坏\x1b[31m")
    said = command("get", "task", "会话/1", "t/1", "--url", service.url).out
    assert "\x1b" not in said
    missing = command("get", "task", "会话/1", "x", "--url", service.url)
    assert missing == (1, "", "persistd: There is no such task\n")
    assert command("get", "session", "s", "--url", "http://127.0.0.1:9").code == 3


def test_lists(service: Persistd, command: Command) -> None:
    service.post("session", session("a"), session("b", status="completed"))
    service.post("task", *(task(f"t{n:04}", session_id="a") for n in range(1000)))
    service.post("task", task("u", session_id="b", status="failed", error_message="too long"))
    code, said, _ = command("ls", "sessions", "--url", service.url)
    head, first, second = said.splitlines()
    assert (code, head.split()[:4]) == (0, ["session", "status", "progress", "tasks"])
    assert "1,000 pending" in first
    assert second.split()[:4] == ["b", "completed", "100.0", "%"]
    code, said, _ = command("ls", "tasks", "--status", "failed", "--url", service.url)
    assert [line.split()[:3] for line in said.splitlines()[1:]] == [["b", "u", "failed"]]
    assert said.splitlines()[1].endswith("too long")
    code, said, complaint = command("ls", "tasks", "--session", "a", "--limit", "2", "--json", "--url", service.url)
    assert [json.loads(line)["task_id"] for line in said.splitlines()] == ["t0000", "t0001"]
    assert complaint == "persistd: there are more than 2 tasks; --limit shows them\n"
    code, said, complaint = command("ls", "tasks", "--limit", "2000", "--json", "--url", service.url)
    assert (code, len(said.splitlines()), complaint) == (0, 1001, "")
    code, _, complaint = command("ls", "tasks", "--status", "lost", "--url", service.url)
    assert (code, complaint.startswith("persistd: status should be some of ")) == (1, True)
    assert command("ls", "tasks", "--limit", "0").code == 2


def test_what_others_have_stored_as_a_time_is_shown_as_it_is(service: Persistd, command: Command) -> None:
    service.post("session", session("odd"), session("none"))
    service.flush()
    with closing(sqlite3.connect(service.data_dir / "persist.db", isolation_level=None)) as database:
        database.execute("UPDATE translation_sessions SET updated_at = 'soon' WHERE session_id = 'odd'")
    code, said, _ = command("ls", "sessions", "--url", service.url)
    assert (code, len(said.splitlines()), "soon" in said) == (0, 3, True)
    code, said, _ = command("get", "session", "odd", "--url", service.url)
    assert (code, ["updated_at", "soon"] in [line.split() for line in said.splitlines()]) == (0, True)
    for id, count in (("odd", 1), ("none", 0)):
        since = command("export", "--session", id, "--since", "2999-01-01T00:00:00", "--url", service.url)
        assert (since.code, len(since.out.splitlines())) == (0, count)
