"""The id of a request: in its answer, in its log lines, and in the line of the flush that wrote its rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process import Persistd
from tests.rows import body, task
from tornado_persist.web.base import choose_request_id

TASKS = "/api/v1/persistence/tasks/batch"
MANUAL = "[buffer]\nflush_interval = 3600\n"


@pytest.mark.parametrize("given", ["a", "550e8400-e29b-41d4-a716-446655440000", "Root=1-67:x/y+z@h~.", "x" * 128])
def test_a_sane_id_is_kept(given: str) -> None:
    assert choose_request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", "a,b", '"', "é", "<b>"])
def test_in_the_place_of_any_other_one_is_made_and_no_two_are_the_same(given: str | None) -> None:
    made = {choose_request_id(given) for _ in range(1000)}
    assert len(made) == 1000
    assert all(choose_request_id(id) == id for id in made)


def test_a_request_is_found_again_in_its_answer_its_line_and_its_flush(tmp_path: Path) -> None:
    with Persistd(tmp_path, MANUAL) as service:
        for id in ("first", "second"):
            answer = service.http.post(TASKS, content=body("task", task(id)), headers={"X-Request-ID": id})
            assert answer.headers["X-Request-ID"] == id
        made = service.post("task", task("third")).headers["X-Request-ID"]
        refused = service.http.post(TASKS, content=b"{", headers={"X-Request-ID": "wrong"})
        assert (refused.status_code, refused.headers["X-Request-ID"]) == (400, "wrong")
        service.http.post("/api/v1/persistence/flush", headers={"X-Request-ID": "the flush"})
        assert service.wait_for_log("flush")["requests"] == ["first", "second", made]
        assert service.wait_for_log("request", 5)
        lines = {line["request_id"]: (line["path"], line["status"]) for line in service.log("request")}
        assert [lines[id] for id in ("first", made, "wrong")] == [(TASKS, 200), (TASKS, 200), (TASKS, 400)]
        assert "request_id" not in service.log("flush")[0], "it is of all of them, not of the one that asked for it"


def test_a_flush_that_a_request_starts_does_not_go_under_its_name(tmp_path: Path) -> None:
    with Persistd(tmp_path, "[buffer]\ncapacity = 1\nflush_interval = 3600\n") as service:
        for id in ("one", "two"):
            service.http.post(TASKS, content=body("task", task(id)), headers={"X-Request-ID": id})
        service.wait_for_log("flush", 2)
        lines = service.log("flush")
        assert [id for line in lines for id in line["requests"]] == ["one", "two"]
        assert not any("request_id" in line for line in lines)
