"""Reading rows back, over a real socket, with a sink in memory behind."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any
from urllib.parse import quote

import pytest

from tests.rows import body, session, task
from tests.web.test_api import Fetch, answer, fetch  # noqa: F401 - a fixture
from tornado_persist.pipeline.reads import FLUSH_EVERY, MAX_BYTES
from tornado_persist.records.models import Batch
from tornado_persist.testing import FlakySink
from tornado_persist.testing.samples import task as sample
from tornado_persist.web import reading
from tornado_persist.web.app import PREFIX, Api


async def send(app: Api, *rows: dict[str, Any]) -> None:
    for row in rows:
        kind: Any = "task" if "task_id" in row else "session"
        await app.ingest.accept(kind, body(kind, row))


@pytest.mark.gen_test
async def test_one_row_shows_what_was_accepted_before(app: Api, fetch: Fetch, sink: FlakySink) -> None:  # noqa: F811
    await send(app, session("s", total_tasks=4, metadata={"a": [1, 10**30]}))
    await send(app, task("1", session_id="s", status="completed"), task("2", session_id="s", status="failed"))
    found = answer(await fetch("GET", f"{PREFIX}/sessions/s"))
    assert found["metadata"] == {"a": [1, 10**30]}
    assert found["tasks"] == {"pending": 0, "processing": 0, "completed": 1, "failed": 1}
    assert (found["progress"], found["pending"]) == (50.0, 0)
    assert found["created_at"] == found["updated_at"]
    await send(app, task("2", session_id="s", status="completed", error_message=None))
    assert answer(await fetch("GET", f"{PREFIX}/sessions/s/tasks/2"))["status"] == "completed"
    stale = answer(await fetch("GET", f"{PREFIX}/sessions/s/tasks/2?fresh=false&fields=status"))
    assert set(stale) == {"session_id", "task_id", "status", "pending"}


@pytest.mark.gen_test
async def test_a_list_is_not_fresh_unless_it_is_asked_to_be(app: Api, fetch: Fetch) -> None:  # noqa: F811
    await app.flusher.runner.open()
    await send(app, session("s"))
    empty = answer(await fetch("GET", f"{PREFIX}/sessions"))
    assert empty == {"items": [], "next": None, "next_url": None, "pending": 1}
    found = answer(await fetch("GET", f"{PREFIX}/sessions?fresh=true&count=true&counts=true"))
    assert (found["total"], found["pending"], found["items"][0]["progress"]) == (1, 0, 0.0)


@pytest.mark.gen_test
async def test_progress_is_right_whatever_fields_are_shown(app: Api, fetch: Fetch) -> None:  # noqa: F811
    await send(app, session("s", total_tasks=10), task("1", session_id="s", status="completed"))
    await send(app, session("t", completed_tasks=1, total_tasks=4))
    await send(app, session("u", completed_tasks=9, total_tasks=4), session("v", status="completed"))
    found = answer(await fetch("GET", f"{PREFIX}/sessions?fresh=true&counts=true&fields=filename"))["items"]
    assert [row["progress"] for row in found] == [10.0, 25.0, 100.0, 100.0]
    assert set(found[0]) == {"session_id", "filename", "tasks", "progress"}


@pytest.mark.gen_test
async def test_pages_lead_to_the_next(app: Api, fetch: Fetch) -> None:  # noqa: F811
    await send(app, *(task(f"t{i}", session_id="a b", status="failed" if i % 2 else "pending") for i in range(10)))
    url = f"{PREFIX}/sessions/a%20b/tasks?status=failed&limit=2&fresh=true"
    found = []
    while url:
        page = answer(await fetch("GET", url))
        found += [row["task_id"] for row in page["items"]]
        url = page["next_url"]
    assert found == ["t1", "t3", "t5", "t7", "t9"]


@pytest.mark.gen_test
@pytest.mark.parametrize("key", ["a/b", "a//b", "译文", "k" * 64, "%2F", "a b", "x+y", "?#&", "batch", "日" * 64])
async def test_any_id_works_in_a_path(app: Api, fetch: Fetch, key: str) -> None:  # noqa: F811
    await send(app, session(key), task(key, session_id=key))
    path = quote(key, safe="") if key != "batch" else "%62atch"
    assert answer(await fetch("GET", f"{PREFIX}/sessions/{path}"))["session_id"] == key
    assert answer(await fetch("GET", f"{PREFIX}/sessions/{path}/tasks/{path}"))["task_id"] == key
    assert len(answer(await fetch("GET", f"{PREFIX}/sessions/{path}/tasks"))["items"]) == 1
    assert answer(await fetch("POST", f"{PREFIX}/recovery/restore/{path}"))["session"]["session_id"] == key


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("stauts=failed", "status"),
        ("qqqqq=1", "(status, llm_provider, "),
        ("status=done", "status should be some of pending, processing, completed, failed, not 'done'"),
        ("limit=0", "between 1 and 1000, not 0 (did you mean 1?)"),
        ("limit=1001", "(did you mean 1000?)"),
        ("limit=x", "limit should be a whole number"),
        ("limit=1&limit=2", "2 times"),
        ("fields=stats", "(did you mean status?)"),
        ("updated_since=yesterday", "ISO 8601"),
        ("after=x", "after is not"),
        ("after=W10", "after is not"),
        (f"after={'W1tb' * 10_000}", "after is not"),
        ("fresh=maybe", "fresh should be true or false"),
        ("llm_provider=%00", "NUL"),
        ("llm_provider=%FF", "UTF-8"),
    ],
)
async def test_a_wrong_parameter_is_named(fetch: Fetch, query: str, said: str) -> None:  # noqa: F811
    assert said in answer(await fetch("GET", f"{PREFIX}/sessions?{query}"), 422)["detail"]


@pytest.mark.gen_test
async def test_a_token_is_good_for_its_query_alone(app: Api, fetch: Fetch) -> None:  # noqa: F811
    await send(app, *(session(f"s{i}") for i in range(3)))
    token = answer(await fetch("GET", f"{PREFIX}/sessions?limit=1&fresh=true"))["next"]
    assert answer(await fetch("GET", f"{PREFIX}/sessions?limit=2&after={token}"))["next"] is None
    refused = answer(await fetch("GET", f"{PREFIX}/sessions?status=failed&after={token}"), 422)
    assert "other conditions" in refused["detail"]
    answer(await fetch("GET", f"{PREFIX}/tasks?after={token}"), 422)


@pytest.mark.gen_test
async def test_an_answer_ends_at_its_size_also_if_its_texts_are_longer_as_json(
    app: Api,
    fetch: Fetch,  # noqa: F811
    sink: FlakySink,
) -> None:
    await app.flusher.runner.open()
    sink.write(Batch([], [sample(f"t{i}", source_text="\x01" * 1_000_000) for i in range(3)]))  # each 6 MB as JSON
    response = await fetch("GET", f"{PREFIX}/tasks")
    assert len(response.body) < MAX_BYTES
    found = answer(response)
    assert [row["task_id"] for row in found["items"]] == ["t0"]
    assert found["next"] is not None


@pytest.mark.gen_test
async def test_what_does_not_exist_is_a_404(app: Api, fetch: Fetch) -> None:  # noqa: F811
    await app.flusher.runner.open()
    for path in ("sessions/x", "sessions/x/tasks/y", f"sessions/{'x' * 64}"):
        assert "no such" in answer(await fetch("GET", f"{PREFIX}/{path}"), 404)["detail"]
    for path in ("sessions/%00", "sessions/%00/tasks", f"sessions/{'x' * 65}"):  # the sink is not asked
        assert "no such key" in answer(await fetch("GET", f"{PREFIX}/{path}"), 404)["detail"]
    assert "no such" in answer(await fetch("POST", f"{PREFIX}/recovery/restore/x"), 404)["detail"]
    assert not app.metrics.refusals.batches
    head = await fetch("HEAD", f"{PREFIX}/sessions")
    assert (head.code, head.body) == (200, b"")


@pytest.mark.gen_test
async def test_unfinished_sessions_and_their_open_tasks(
    app: Api,
    fetch: Fetch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await send(app, session("a"), session("b", status="completed"), session("c", status="failed"))
    await send(app, *(task(f"t{i}", session_id="a", row_index=9 - i) for i in range(3)))
    await send(app, task("done", session_id="a", status="completed"))
    found = answer(await fetch("GET", f"{PREFIX}/recovery/incomplete-sessions"))
    assert [row["session_id"] for row in found["items"]] == ["a"]
    restored = answer(await fetch("POST", f"{PREFIX}/recovery/restore/a"))
    assert [row["task_id"] for row in restored["tasks"]] == ["t2", "t1", "t0"]
    assert not restored["truncated"]
    assert reading.MOST_UNFINISHED == 10_000
    monkeypatch.setattr(reading, "MOST_UNFINISHED", 2)
    restored = answer(await fetch("POST", f"{PREFIX}/recovery/restore/a"))
    assert ([row["task_id"] for row in restored["tasks"]], restored["truncated"]) == (["t2", "t1"], True)


@pytest.mark.gen_test
async def test_no_answer_while_the_sink_is_down(app: Api, fetch: Fetch, sink: FlakySink) -> None:  # noqa: F811
    await send(app, session("s"))
    sink.down = True
    response = await fetch("GET", f"{PREFIX}/sessions/s")
    assert "detail" in answer(response, 503)
    assert int(response.headers["Retry-After"]) > 0
    assert answer(await fetch("GET", f"{PREFIX}/sessions"), 503)
    sink.down = False
    app.flusher.try_now()
    async with asyncio.timeout(5):
        while (await fetch("GET", f"{PREFIX}/sessions/s")).code != 200:
            await asyncio.sleep(0.01)


@pytest.mark.gen_test
async def test_a_flush_that_takes_too_long_is_a_503(app: Api, fetch: Fetch, sink: FlakySink) -> None:  # noqa: F811
    await send(app, session("s"))
    app.flush_timeout = 0.5
    sink.hold()
    assert "not written in 0.5 seconds" in answer(await fetch("GET", f"{PREFIX}/sessions/s"), 503)["detail"]
    sink.release()
    app.flush_timeout = 10
    assert answer(await fetch("GET", f"{PREFIX}/sessions/s"))["session_id"] == "s"


@pytest.mark.gen_test
async def test_fresh_reads_at_one_time_share_a_flush(app: Api, fetch: Fetch, sink: FlakySink) -> None:  # noqa: F811
    await send(app, session("s"))
    before = sink.calls.count("write")
    await asyncio.gather(*(fetch("GET", f"{PREFIX}/sessions/s") for _ in range(20)))
    assert sink.calls.count("write") == before + 1


@pytest.mark.gen_test
async def test_flushes_for_the_sake_of_reads_keep_a_distance(
    app: Api,
    fetch: Fetch,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flush, began = app.flusher.flush_through, []

    async def note(seq: int) -> Any:
        began.append(asyncio.get_running_loop().time())
        return await flush(seq)

    monkeypatch.setattr(app.flusher, "flush_through", note)
    for number in range(3):
        await send(app, session(f"s{number}"))
        await asyncio.gather(*(fetch("GET", f"{PREFIX}/sessions/s{number}") for _ in range(4)))
    assert len(began) >= 3
    assert min(later - earlier for earlier, later in itertools.pairwise(began)) > FLUSH_EVERY * 0.9


@pytest.mark.gen_test
async def test_a_page_has_100_rows_unless_the_request_says_otherwise(app: Api, fetch: Fetch) -> None:  # noqa: F811
    for half in (range(60), range(60, 101)):
        await app.ingest.accept("session", body("session", *(session(f"s{number}") for number in half)))
    page = answer(await fetch("GET", f"{PREFIX}/sessions?fresh=true"))
    assert (len(page["items"]), page["next"] is None) == (100, False)


@pytest.mark.gen_test
async def test_a_sink_without_a_reader_says_so(app: Api, fetch: Fetch) -> None:  # noqa: F811
    app.reads._pool._readers.clear()
    assert "cannot be read" in answer(await fetch("GET", f"{PREFIX}/sessions"), 501)["detail"]
