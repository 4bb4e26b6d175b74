"""Reading rows back with the client, from the real service and its database."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.process import Persistd
from tests.rig import run
from tests.rows import session, task
from tests.servers import free_port
from tornado_persist.client import Client, NotFound, ReadFailed
from tornado_persist.client.testing import Recorder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Persistd]:
    with Persistd(tmp_path_factory.mktemp("reading"), "[buffer]\nflush_interval = 3600\n") as it:
        yield it


@pytest.fixture(scope="module")
def persist(service: Persistd) -> Iterator[Client]:
    with Client(service.url) as it:
        for name, status in (("done", "completed"), ("open", "processing"), ("Ünï/..?%2F", "pending")):
            it.session(**session(name, status=status, metadata={"name": name}))
        for number in range(1200):
            status = "completed" if number % 3 else "failed"
            it.task(**task(f"{number:04}", session_id="open", status=status, row_index=number))
        for name in ("..", "a/b", "a b+c#", "日本"):
            it.task(**task(name, session_id="Ünï/..?%2F", sheet_name="x&y", status="pending"))
        assert it.flush()
        yield it


def test_one_row_shows_all_that_was_accepted_before(persist: Client) -> None:
    found = persist.get_session("open")
    assert (found["status"], found["metadata"], found["progress"]) == ("processing", {"name": "open"}, 100.0)
    assert found["tasks"] == {"pending": 0, "processing": 0, "completed": 800, "failed": 400}
    assert "pending" not in found
    persist.task(**task("0001", session_id="open", target_text="new", status="completed"))
    assert persist.flush()
    assert persist.get_task("open", "0001")["target_text"] == "new"
    some = persist.get_task("open", "0001", fields=["status", "row_index"], fresh=False)
    assert some == {"session_id": "open", "task_id": "0001", "status": "completed", "row_index": 1}


def test_pages_follow_each_other_to_the_end(persist: Client) -> None:
    assert persist.get_session("open")
    every = [row["task_id"] for row in persist.iter_tasks("open")]
    assert every == [f"{number:04}" for number in range(1200)]
    failed = persist.iter_tasks("open", status="failed", limit=7, fields="status")
    assert [row["task_id"] for row in failed] == every[::3]
    assert len(list(persist.iter_tasks("open", status=("failed", "pending"), batch_id="b1"))) == 400
    assert len(list(persist.iter_tasks(None, sheet_name="x&y"))) == 4
    assert list(persist.iter_tasks("nowhere")) == []
    later = datetime.now(UTC) + timedelta(hours=1)
    assert list(persist.iter_tasks("open", updated_since=later)) == []
    assert len(list(persist.iter_tasks("open", updated_since=later - timedelta(hours=2), limit=1000))) == 1200


@pytest.mark.parametrize("name", ["..", "a/b", "a b+c#", "日本"])
def test_ids_may_hold_anything(persist: Client, name: str) -> None:
    assert persist.get_task("Ünï/..?%2F", name)["task_id"] == name


def test_sessions_and_what_is_unfinished(persist: Client) -> None:
    assert [row["session_id"] for row in persist.incomplete_sessions()] == ["open", "Ünï/..?%2F"]
    assert [row["session_id"] for row in persist.iter_sessions(status="completed")] == ["done"]
    counted = {row["session_id"]: row["progress"] for row in persist.iter_sessions(counts=True, limit=1)}
    assert counted == {"done": 100.0, "open": 100.0, "Ünï/..?%2F": 0.0}
    restored = persist.restore("Ünï/..?%2F")
    assert (restored["session"]["status"], restored["truncated"]) == ("pending", False)
    assert {row["task_id"] for row in restored["tasks"]} == {"..", "a/b", "a b+c#", "日本"}


def test_what_is_not_there_and_what_is_wrong(persist: Client) -> None:
    for missing in (
        lambda: persist.get_session("x"),
        lambda: persist.get_task("open", "x"),
        lambda: persist.restore("x"),
    ):
        with pytest.raises(NotFound, match="There is no such") as caught:
            missing()
        assert caught.value.status == 404
    with pytest.raises(TypeError, match="did you mean 'status'"):
        persist.iter_tasks("open", state="failed")  # type: ignore[call-arg]
    with pytest.raises(ReadFailed, match="422: status should be some of") as wrong:
        list(persist.iter_tasks("open", status="done"))
    assert wrong.value.status == 422


def test_in_asyncio(persist: Client) -> None:
    async def use() -> None:
        assert (await persist.aget_session("done"))["status"] == "completed"
        assert (await persist.aget_task("open", "0002"))["row_index"] == 2
        assert (await persist.arestore("open"))["tasks"] == []
        assert [row["task_id"] async for row in persist.aiter_tasks("open", limit=500)][-1] == "1199"
        assert len([row async for row in persist.aiter_sessions(limit=1)]) == 3
        assert len([row async for row in persist.aincomplete_sessions()]) == 2
        with pytest.raises(NotFound):
            await persist.aget_session("x")

    run(use())


def test_a_service_that_is_away_comes_back_or_cannot_read(tmp_path: Path) -> None:
    with Persistd(tmp_path, port=free_port()) as service, Client(service.url) as persist:
        persist.session(**session("s"))
        assert persist.flush()
        assert persist.get_session("s")["session_id"] == "s"
        service.kill()
        with pytest.raises(ReadFailed) as away:
            persist.get_session("s")
        assert away.value.status == 0
        service.configure('sink = "jsonl"\n')
        service.start()
        with pytest.raises(ReadFailed, match="501") as cannot:
            persist.get_session("s")
        assert cannot.value.status == 501
        service.kill()
        service.configure("")
        service.start()
        assert persist.get_session("s")["session_id"] == "s", "over a connection that the service has closed"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        persist = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        with pytest.raises(ReadFailed, match="no answer in time"):
            next(persist.iter_tasks("s"))
        persist.close()
    with pytest.raises(ReadFailed, match="the client is closed"):
        persist.get_session("s")


def test_a_recorder_gives_back_what_it_was_sent() -> None:
    with Client(transport=Recorder()) as persist:
        for name, status in (("done", "completed"), ("a/b", "pending")):
            persist.session(**session(name, status=status))
            for number, state in enumerate(("completed", "failed", "processing")):
                persist.task(**task(f"{number}/", session_id=name, status=state))
        assert persist.flush()
        assert persist.get_session("a/b")["status"] == "pending"
        assert persist.get_task("a/b", "1/")["status"] == "failed"
        assert [row["task_id"] for row in persist.iter_tasks("a/b", status=["failed", "completed"])] == ["0/", "1/"]
        assert len(list(persist.iter_tasks(None, batch_id="b1", limit=2))) == 6
        assert [row["session_id"] for row in persist.iter_sessions()] == ["a/b", "done"]
        assert [row["session_id"] for row in persist.incomplete_sessions()] == ["a/b"]
        assert [row["task_id"] for row in persist.restore("a/b")["tasks"]] == ["2/"]
        found = persist.get_session("a/b")
        assert (found["tasks"]["failed"], found["tasks"]["pending"], found["progress"]) == (1, 0, 66.7)
        assert [row["progress"] for row in persist.iter_sessions(counts=True)] == [66.7, 66.7]
        key = {"session_id": "a/b", "task_id": "0/"}
        assert persist.get_task("a/b", "0/", fields=["status"]) == {**key, "status": "completed"}
        assert next(persist.iter_tasks("a/b", fields="row_index")) == {**key, "row_index": 1}
        for missing in (lambda: persist.get_session("x"), lambda: persist.get_task("a/b", "x")):
            with pytest.raises(NotFound):
                missing()
