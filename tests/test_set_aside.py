"""``invalid_rows = "set_aside"``: an invalid row costs itself alone, is durable before the answer, and is counted."""

from __future__ import annotations

import gzip
import json
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kill import place
from tests.process import Persistd, persistd, wait_until
from tests.rows import body, session, task
from tests.tools import require

CONFIG = "[records]\ninvalid_rows = 'set_aside'\n[buffer]\ncapacity = 100000\nflush_interval = 3600\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Persistd]:
    with Persistd(tmp_path, CONFIG) as running:
        yield running


def rejected(service: Persistd) -> list[dict[str, Any]]:
    path = service.data_dir / "rejected.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def accounting(service: Persistd) -> tuple[int, int, int]:
    """Accepted, written and rejected rows; nothing else, and balanced."""
    found = service.stats()["accounting"]
    assert found["accepted"] == found["written"] + found["merged"] + found["rejected"] + found["pending"]
    return found["accepted"], found["written"] + found["pending"], found["rejected"]


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mysql", "jsonl"])
def test_one_bad_row_among_200_costs_itself_alone(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    at = place(name, request)
    rows = [task(f"t{number:03}", cost=number) for number in range(200)]
    rows[17] |= {"status": "cancelled", "row_index": "x"}
    with Persistd(tmp_path, f"sink = '{name}'\n{CONFIG}{at.table}") as service:
        answer = service.post("task", *rows)
        body = answer.json()
        assert (answer.status_code, body["status"], body["count"], body["rejected"]) == (200, "accepted", 199, 1)
        assert [error["loc"] for error in body["errors"]] == [["tasks", 17, "row_index"], ["tasks", 17, "status"]]
        assert body["ignored"] == ["cost"]
        (entry,) = rejected(service)
        assert entry["row"] == rows[17], "as it was sent"
        assert (entry["kind"], entry["code"], entry["sink"]) == ("task", "invalid", None)
        assert (entry["loc"], entry["message"]) == (body["errors"][0]["loc"], body["errors"][0]["msg"])
        service.flush()
        assert at.read(service.data_dir)["task"].keys() == {("s1", row["task_id"]) for row in rows} - {("s1", "t017")}
        assert accounting(service) == (200, 199, 1)
        service.kill()
        service.start()
        assert accounting(service) == (200, 199, 1)
        assert len(rejected(service)) == 1


def test_without_a_good_row_the_batch_is_refused_and_nothing_is_kept(service: Persistd) -> None:
    answer = service.post("task", task("a", status="x"), task("b", status="y"))
    assert (answer.status_code, answer.json()["count"], rejected(service)) == (422, 0, [])
    assert accounting(service) == (0, 0, 0)


def test_by_default_one_bad_row_refuses_its_batch(tmp_path: Path) -> None:
    with Persistd(tmp_path, "") as service:
        answer = service.post("task", task("a"), task("b", status="x"))
        assert (answer.status_code, rejected(service)) == (422, [])


def test_kill_minus_nine_keeps_them_and_cuts_off_what_the_sink_will_reject_again(service: Persistd) -> None:
    service.post("session", session("s1"))
    service.flush()
    trigger = "CREATE TRIGGER no BEFORE INSERT ON translation_tasks WHEN new.status = 'failed'"
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        database.execute(f"{trigger} BEGIN SELECT raise(ABORT, 'no'); END")
    for number in range(5):
        assert service.post("task", task(f"g{number}"), task(f"b{number}", status=7)).json()["rejected"] == 1
        service.post("task", task(f"r{number}", status="failed"))
        if number == 2:
            service.flush()
    before = accounting(service)
    assert before[0] == 1 + 5 + 5 + 5
    service.kill()
    service.start()
    assert accounting(service) == before
    service.flush()
    entries = rejected(service)
    ids = [entry["row"]["task_id"] for entry in entries]
    assert sorted(ids) == sorted([f"{letter}{number}" for number in range(5) for letter in "br"]), "each once"
    assert accounting(service) == (16, 6, 10)
    wait_until(lambda: service.http.get("/health").json()["rejected_open_rows"] == 10, "them to be counted as open")


def test_a_row_that_is_no_object_is_shown_and_can_be_dropped(service: Persistd, tmp_path: Path) -> None:
    rows = [task("good"), 5, {"source_text": "长\n文"}, [1]]
    answer = service.http.post("/api/v1/persistence/tasks/batch", content=json.dumps({"tasks": rows}, indent=1))
    assert (answer.status_code, answer.json()["count"], answer.json()["rejected"]) == (200, 1, 3)
    assert [entry["row"] for entry in rejected(service)] == rows[1:]
    listed = persistd("rejected", "ls", "-c", str(service.file), cwd=tmp_path)
    assert (listed.returncode, listed.stdout.count("invalid")) == (0, 4), listed
    dropped = persistd("rejected", "drop", "--all", "-c", str(service.file), cwd=tmp_path)
    assert (dropped.returncode, dropped.stderr) == (0, "")


def test_a_retry_sends_them_once_the_setting_allows_them(service: Persistd, tmp_path: Path) -> None:
    service.post("task", task("good"), task("later", status="cancelled"))
    again = persistd("rejected", "retry", "--all", "-c", str(service.file), "--url", service.url, cwd=tmp_path)
    assert again.returncode == 1, again
    assert "status" in again.stderr
    service.stop()
    service.configure(CONFIG.replace("[records]", "[records]\nstatuses = ['pending', 'cancelled']"))
    service.start()
    done = persistd("rejected", "retry", "--all", "-c", str(service.file), "--url", service.url, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 row sent\nflushed: the sink has them\n"), done
    stored = place("sqlite", None).read(service.data_dir)["task"]  # type: ignore[arg-type]
    assert stored["s1", "later"]["status"] == "cancelled"


def test_a_compressed_body_a_line_in_the_log_and_no_content_in_it(service: Persistd) -> None:
    secret = "not for the log"
    content = gzip.compress(body("task", task("good"), task("bad", status=secret, source_text=secret)))
    headers = {"Content-Encoding": "gzip", "User-Agent": "a client/1", "X-Request-ID": "the-id"}
    for _ in range(3):
        answer = service.http.post("/api/v1/persistence/tasks/batch", content=content, headers=headers)
        assert (answer.status_code, answer.json()["count"], answer.json()["rejected"]) == (200, 1, 1)
    (line,) = service.log("rows set aside")
    assert (line["level"], line["kind"], line["rows"], line["loc"]) == ("warning", "task", 1, "tasks.*.status")
    assert (line["client"], line["user_agent"], line["request_id"]) == ("127.0.0.1", "a client/1", "the-id")
    shown = [service.http.get(f"/api/v1/persistence/{page}").text for page in ("stats", "history")]
    shown += [service.http.get("/metrics").text, service.http.get("/health").text, service.log_text()]
    assert [secret in text for text in shown] == [False] * 5
    assert "set aside" in shown[1]
    assert service.stats()["refused"]["batches"] == 0


def test_an_unknown_session_refuses_the_whole_batch(tmp_path: Path) -> None:
    with Persistd(tmp_path, CONFIG.replace("[records]", "[records]\nrequire_session = true")) as service:
        assert service.post("task", task("a"), task("b", status=7)).status_code == 422
        assert (rejected(service), accounting(service)) == ([], (0, 0, 0))
        assert service.stats()["refused"]["rows"] == 2
        # The session of a row that is set aside is not asked for.
        service.post("session", session("s1"))
        answer = service.post("task", task("a"), task("b", session_id="nowhere", status=7))
        assert (answer.status_code, answer.json()["rejected"]) == (200, 1)


def test_with_a_full_disk_nothing_of_the_batch_is_taken(service: Persistd) -> None:
    assert service.post("task", task("a"), task("long", status="x", source_text="x" * 500_000)).status_code == 200
    file = service.data_dir / "rejected.jsonl"
    before, counted = file.read_bytes(), accounting(service)
    hard = resource.RLIM_INFINITY
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    answer = service.post("task", task("b"), task("bad", status="x"))
    assert (answer.status_code, answer.json()["count"]) == (503, 0)
    assert "rejected.jsonl cannot be written" in answer.json()["detail"]
    assert (file.read_bytes(), accounting(service)) == (before, counted)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    assert service.post("task", task("b"), task("bad", status="x")).status_code == 200
    assert accounting(service) == (4, 2, 2)
    assert "Traceback" not in service.log_text()


def test_a_journal_that_refuses_takes_the_lines_back(tmp_path: Path) -> None:
    # Only the journal calls fdatasync here.
    failing = [str(require("strace")), "-D", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync"]
    failing += ["-e", "inject=fdatasync:error=EIO:when=5+9"]
    with Persistd(tmp_path, f"sink = 'jsonl'\n{CONFIG}", prefix=failing) as service:
        taken = []
        for number in range(6):
            answer = service.post("task", task(f"g{number}"), task(f"b{number}", status=7))
            if answer.status_code == 200:
                taken.append(f"b{number}")
            else:
                assert answer.status_code == 503
                service.wait_for_log("journal can be written again")
        assert 0 < len(taken) < 6
        assert [entry["row"]["task_id"] for entry in rejected(service)] == taken
        assert accounting(service) == (2 * len(taken), len(taken), len(taken))
        service.kill()
        service.start()
        assert accounting(service) == (2 * len(taken), len(taken), len(taken))
        assert "Traceback" not in service.log_text()


def test_a_row_that_no_reader_takes_is_kept_counted_and_shown(tmp_path: Path) -> None:
    odd = [
        json.dumps(task("\ud83d", source_text="\ud83d")),
        json.dumps(task("number")).replace('"row_index": 1', f'"row_index": 1{"0" * 5000}'),
        json.dumps(task("deep")).replace('"row_index": 1', f'"row_index": {"[" * 900}{"]" * 900}'),
        json.dumps(task("nan", row_index=float("nan"))),
        json.dumps(task("k" * 100_000)),
        json.dumps(task("\x1b[31m")),
        json.dumps(task(session_id={"a": [1]})),
    ]
    good = json.dumps(task("good"))
    for unknown in ("ignore", "keep"):
        directory = tmp_path / unknown
        directory.mkdir()
        config = CONFIG.replace("[records]", f"[records]\nunknown_fields = '{unknown}'")
        with Persistd(directory, config) as service:
            content = f'{{"tasks": [{good[:-1]}, "cost": 1}}, {", ".join(odd)}]}}'
            answer = service.http.post("/api/v1/persistence/tasks/batch", content=content)
            assert (answer.status_code, answer.json().get("rejected")) == (200, len(odd)), answer.text
            before = accounting(service)
            service.kill()
            service.start()
            assert accounting(service) == before == (len(odd) + 1, 1, len(odd))
            assert (service.data_dir / "rejected.jsonl").read_bytes().count(b"\n") == len(odd)
            wait_until(lambda: service.http.get("/health").json()["rejected_open_rows"] == len(odd), "the count")
            shown = service.http.get("/api/v1/persistence/history")
            assert shown.status_code == 200
            assert len(shown.content) < 20_000
            options = ("-c", str(service.file))
            listed = persistd("rejected", "ls", *options, cwd=directory)
            assert "\x1b" not in listed.stdout
            assert "k" * 200 not in listed.stdout
            exported = persistd("rejected", "ls", "--json", *options, cwd=directory)
            assert [len(exported.stdout.splitlines()), "Traceback" in exported.stderr] == [len(odd), False]
            again = persistd("rejected", "retry", "--all", *options, "--url", service.url, cwd=directory)
            assert (again.returncode, "Traceback" in again.stderr) == (1, False), again.stderr
            dropped = persistd("rejected", "drop", "--all", *options, cwd=directory)
            assert (dropped.returncode, dropped.stderr) == (0, "")
            assert "Traceback" not in service.log_text()


def test_an_import_says_how_many_were_set_aside(service: Persistd, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (task("a"), task("b", status="x"), task("c"))))
    done = persistd("import", str(file), "--url", service.url, cwd=tmp_path)
    said = f"{file}: 3 rows sent, 1 of them set aside (see persistd rejected ls)\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr
