"""``persistd rejected``: seen, sent again, dropped; under a service that appends to the file, cuts it, and replays."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.conftest import Command
from tests.process import Persistd, wait_until
from tests.rows import session, task
from tests.sinks.readers import read_postgres, read_sqlite

TRIGGER = """
CREATE TRIGGER no_bad BEFORE INSERT ON translation_tasks WHEN NEW.source_text LIKE 'bad%'
BEGIN SELECT RAISE(ABORT, 'no bad text here'); END
"""


@pytest.fixture
def refusing(service: Persistd) -> Persistd:
    """A service whose SQLite refuses texts that begin with "bad"."""
    service.post("task", task("first"))
    service.flush()
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        database.execute(TRIGGER)
        database.commit()
    return service


def refuse(service: Persistd, *keys: str) -> None:
    before = service.stats()["accounting"]["rejected"]
    service.post("task", *(task(key, source_text=f"bad {key}") for key in keys))
    service.flush()
    assert service.stats()["accounting"]["rejected"] == before + len(keys)


def forgive(service: Persistd) -> None:
    """The sink takes bad texts from now on."""
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database:
        database.execute("DROP TRIGGER no_bad")
        database.commit()


def stored(service: Persistd) -> dict[str, Any]:
    return {key[-1]: row["source_text"] for key, row in read_sqlite(service.data_dir / "persist.db")["task"].items()}


def notes(service: Persistd) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (service.data_dir / "rejected.settled.jsonl").read_text().splitlines()]


def balances(service: Persistd) -> dict[str, int]:
    accounting: dict[str, int] = service.stats()["accounting"]
    assert accounting["accepted"] == sum(accounting[name] for name in ("written", "merged", "rejected", "pending"))
    return accounting


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sed script that stands for the user's editor."""
    monkeypatch.setenv("VISUAL", f"sed -i -f {tmp_path}/edit.sed")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "edit.sed"


def test_a_row_fixed_and_sent_again_ends_in_postgres_and_the_accounting_balances(
    tmp_path: Path, postgres_url: str, command: Command, editor: Path
) -> None:
    config = f'sink = "postgres"\n[buffer]\nflush_interval = 3600\n[sinks.postgres]\nurl = "{postgres_url}"\n'
    with Persistd(tmp_path, config) as service:
        service.flush()
        service.post("task", task("good"))
        service.flush()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE translation_tasks ADD CONSTRAINT low CHECK (row_index < 100)")
        service.post("session", session("s1"))
        service.post("task", task("a", row_index=100), task("b", row_index=5), task("c", row_index=200))
        assert service.flush()["rows_rejected"] == 2
        before = balances(service)
        assert (before["written"], before["rejected"]) == (3, 2)
        rejected = (service.data_dir / "rejected.jsonl").read_bytes()

        code, said, _ = command("rejected", "retry", "--all", "--url", service.url)
        assert (code, said) == (1, "2 rows sent\n")
        assert balances(service)["rejected"] == 4

        editor.write_text('s/"row_index": \\([0-9]\\)00/"row_index": \\1/\n')
        code, said, complaint = command("rejected", "retry", "--all", "--edit", "--url", service.url)
        assert (code, said, complaint) == (0, "2 rows sent\nflushed: the sink has them\n", "")
        found = read_postgres(postgres_url)["task"]
        assert {key[-1]: row["row_index"] for key, row in found.items()} == {"good": 1, "a": 1, "b": 5, "c": 2}
        after = balances(service)
        assert (after["accepted"], after["written"], after["rejected"]) == (before["accepted"] + 4, 5, 4)
        # The service's file was appended to by the service alone.
        assert (service.data_dir / "rejected.jsonl").read_bytes().startswith(rejected)
        assert command("rejected", "ls").out.endswith("\n4 more were retried and 0 dropped; --all shows them\n")

        code, _, complaint = command("rejected", "retry", "--all", "--url", service.url)
        assert (code, complaint) == (1, "persistd: no such row is left to retry\n")
        assert balances(service) == after
        service.kill()
        service.start()
        assert balances(service) == after


def test_ls_shows_rows_by_reason_filters_them_and_gives_whole_json(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a", "b")
    code, said, complaint = command("rejected", "ls")
    assert (code, complaint) == (0, "")
    head, first, second, _, last = said.splitlines()
    assert head.split() == ["line", "kind", "key", "code", "rejected", "message"]
    assert first.split()[:4] == ["1", "task", "s1/a", "SQLITE_CONSTRAINT_TRIGGER"]
    assert second.endswith("no bad text here")
    assert last == f"{tmp_path}/data/rejected.jsonl: 2 rows (2 tasks with code SQLITE_CONSTRAINT_TRIGGER)"
    (line,) = command("rejected", "ls", "--json", "--key", "b").out.splitlines()
    entry = json.loads(line)
    assert (entry["line"], entry["state"], entry["row"]) == (2, "open", task("b", source_text="bad b"))
    assert "0 rows\n" in command("rejected", "ls", "--kind", "session").out
    assert "0 rows\n" in command("rejected", "ls", "--code", "23514").out


def test_nothing_was_ever_refused(command: Command, tmp_path: Path) -> None:
    assert command("rejected", "ls") == (1, "", f"persistd: {tmp_path}/data: there is no such directory\n")
    (tmp_path / "data").mkdir()
    assert command("rejected", "ls") == (0, f"{tmp_path}/data/rejected.jsonl: 0 rows\n", "")


def test_a_retry_that_is_refused_again_is_named_and_is_an_entry_of_its_own(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a")
    code, said, complaint = command("rejected", "retry", "1", "--url", refusing.url)
    assert (code, said) == (1, "1 row sent\n")
    assert (
        complaint
        == f"persistd: {tmp_path}/data/rejected.jsonl, line 2: task s1/a was rejected again: no bad text here\n"
    )
    assert [json.loads(line)["line"] for line in command("rejected", "ls", "--json").out.splitlines()] == [2]
    assert balances(refusing)["rejected"] == 2


def test_a_row_that_was_updated_since_is_left_out_unless_told_to_overwrite(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a", "b")
    forgive(refusing)
    refusing.post("task", task("a", source_text="newer"))  # not even flushed yet
    code, said, complaint = command("rejected", "retry", "--all", "--url", refusing.url)
    assert (code, said) == (1, "1 row sent\nflushed: the sink has them\n")
    assert complaint.startswith(f"persistd: {tmp_path}/data/rejected.jsonl, line 1: task s1/a is of ")
    assert complaint.endswith(": not sent (--overwrite sends it all the same)\n")
    assert stored(refusing) == {"first": "Hello", "a": "newer", "b": "bad b"}
    assert command("rejected", "retry", "1", "--overwrite", "--url", refusing.url).code == 0
    assert stored(refusing)["a"] == "bad a"
    assert balances(refusing)["pending"] == 0


def test_edited_lines_from_a_file_and_a_second_run_of_the_same_file(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a", "b", "c")
    file = tmp_path / "edited.jsonl"
    lines = command("rejected", "ls", "--json").out.replace("bad ", "good ").splitlines(keepends=True)
    file.write_text(lines[0] + lines[1].replace('"status": "pending"', '"status": "lost"'))
    code, said, complaint = command("rejected", "retry", "--from", file, "--url", refusing.url)
    problem = "status: Input should be 'pending', 'processing', 'completed' or 'failed'"
    assert (code, said, complaint) == (1, "", f"persistd: {file}, line 2: {problem}\n")
    assert stored(refusing) == {"first": "Hello"}, "a mistake in the file sends nothing"

    file.write_text("".join(lines[:2]))
    assert command("rejected", "retry", "--from", file, "--url", refusing.url).code == 0
    file.write_text("".join(lines))
    code, said, complaint = command("rejected", "retry", "--from", file, "--url", refusing.url)
    assert (code, said) == (0, "1 row sent\nflushed: the sink has them\n")
    assert complaint == f"persistd: {file}: 2 rows passed over, retried or dropped before\n"
    assert stored(refusing) == {"first": "Hello", "a": "good a", "b": "good b", "c": "good c"}
    assert next(note["row"]["source_text"] for note in notes(refusing) if note["state"] == "retried") == "good a"

    file.write_text('{"kind": "task", "row": {"task_id": "a"}}\n')
    complaint = command("rejected", "retry", "--from", file, "--url", refusing.url).err
    assert complaint.startswith(f"persistd: {file}, line 1: its sha256 is not of a rejected row")


def test_an_editor_that_changes_nothing_or_fails_sends_nothing(
    refusing: Persistd, command: Command, editor: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refuse(refusing, "a")
    words = ("rejected", "retry", "--all", "--edit", "--url", refusing.url)
    editor.write_text("")
    assert command(*words) == (1, "", "persistd: no edit: nothing is sent\n")
    monkeypatch.setenv("VISUAL", "false")
    assert command(*words) == (1, "", "persistd: the editor false ended with exit code 1: nothing is sent\n")
    monkeypatch.setenv("VISUAL", "no-such-editor")
    problem = "the editor no-such-editor cannot be run: No such file or directory: nothing is sent"
    assert command(*words) == (1, "", f"persistd: {problem}\n")
    editor.write_text("s/}$/,/\n")
    monkeypatch.setenv("VISUAL", f"sed -i -f {editor}")
    code, _, complaint = command(*words)
    (kept,) = tmp_path.glob("persistd-retry-*.jsonl")
    assert code == 1
    assert complaint.startswith(
        f"persistd: nothing is sent; what you edited is kept, for persistd rejected retry --from {kept}\n"
    )
    assert balances(refusing)["accepted"] == 2


def test_drop_keeps_a_note_with_the_reason(refusing: Persistd, command: Command, tmp_path: Path) -> None:
    refuse(refusing, "a", "b")
    before = (refusing.data_dir / "rejected.jsonl").read_bytes()
    assert command("rejected", "drop", "2", "--reason", "a test") == (
        0,
        f"1 row dropped, as {tmp_path}/data/rejected.settled.jsonl says\n",
        "",
    )
    (note,) = notes(refusing)
    assert (note["state"], note["key"], note["reason"], note["line"]) == ("dropped", "s1/b", "a test", 2)
    assert (refusing.data_dir / "rejected.jsonl").read_bytes() == before
    assert command("rejected", "drop", "--all").code == 0
    assert command("rejected", "drop", "--all").code == 1
    assert command("rejected", "ls", "--all").out.count(" dropped ") == 2


def test_which_rows_has_to_be_said(refusing: Persistd, command: Command) -> None:
    refuse(refusing, "a")
    for name in (("retry", "--url", refusing.url), ("drop",)):
        code, _, complaint = command("rejected", *name)
        assert (code, complaint) == (
            2,
            "persistd: say which rows: by LINE, --kind, --code or --key, or --all of them\n",
        )
        assert command("rejected", *name, "7")[::2] == (2, "persistd: there is no line 7\n")


def test_a_broken_line_is_named_costs_itself_alone_and_can_be_dropped(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a", "b")
    forgive(refusing)
    file = refusing.data_dir / "rejected.jsonl"
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first.replace(b'"row"', b'"row') + second)
    problem = (
        f"persistd: {tmp_path}/data/rejected.jsonl, line 1: it is no JSON (Expecting ':' delimiter at character 38)\n"
    )
    code, said, complaint = command("rejected", "ls")
    assert code == 1
    assert complaint.startswith(f"persistd: {tmp_path}/data/rejected.jsonl, line 1: it is no JSON (")
    assert "s1/b " in said
    code, said, complaint = command("rejected", "retry", "--all", "--url", refusing.url)
    assert (code, said) == (1, "1 row sent\nflushed: the sink has them\n")
    assert complaint.startswith(problem[:54])
    assert command("rejected", "drop", "--all").code == 1, "a broken line is dropped by its number alone"
    assert command("rejected", "drop", "1").code == 0
    assert command("rejected", "ls")[::2] == (0, "")


def test_over_a_replay_a_note_is_of_the_line_that_is_gone_and_not_of_the_one_in_its_place(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "old")
    refusing.post("task", task("a", source_text="bad a"))
    # What a crash leaves that comes before the cursor knows of the refusal.
    shutil.copytree(refusing.data_dir / "journal", tmp_path / "before")
    refusing.flush()
    assert command("rejected", "drop", "--all").code == 0
    refusing.kill()
    shutil.rmtree(refusing.data_dir / "journal")
    (tmp_path / "before").rename(refusing.data_dir / "journal")
    dropped = (refusing.data_dir / "rejected.jsonl").read_bytes()
    refusing.start()
    refusing.wait_for_log("rejected rows that will be tried again cut off")
    refusing.flush()
    assert len((refusing.data_dir / "rejected.jsonl").read_bytes()) == len(dropped)
    (entry,) = map(json.loads, command("rejected", "ls", "--json").out.splitlines())
    assert (entry["line"], entry["row"]["task_id"]) == (2, "a")
    forgive(refusing)
    assert command("rejected", "retry", "--all", "--url", refusing.url).code == 0
    assert stored(refusing) == {"first": "Hello", "a": "bad a"}
    balances(refusing)


def test_a_note_follows_its_line_when_the_file_is_shortened_by_hand(refusing: Persistd, command: Command) -> None:
    refuse(refusing, "a", "b", "c")
    assert command("rejected", "drop", "2").code == 0
    file = refusing.data_dir / "rejected.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
    (entry,) = map(json.loads, command("rejected", "ls", "--json").out.splitlines())
    assert entry["row"]["task_id"] == "c"


def test_a_retry_that_was_killed_says_that_a_row_may_be_sent_twice(
    refusing: Persistd, command: Command, tmp_path: Path
) -> None:
    refuse(refusing, "a")
    forgive(refusing)
    entry = json.loads(command("rejected", "ls", "--json").out)
    note = {name: entry[name] for name in ("line", "offset", "sha256")} | {"state": "sending"}
    # With a note after it that the kill cut short.
    (refusing.data_dir / "rejected.settled.jsonl").write_text(json.dumps(note) + "\n" + '{"line": 1, "off')
    code, _, complaint = command("rejected", "retry", "--all", "--url", refusing.url)
    words = "1 row was being sent when an earlier retry ended, and may now be sent twice"
    assert (code, complaint) == (0, f"persistd: {words}\n")
    assert [note["state"] for note in notes(refusing)] == ["sending", "sending", "retried"]
    (refusing.data_dir / "rejected.settled.jsonl").write_text("{}\n")
    assert command("rejected", "ls")[::2] == (
        1,
        f"persistd: {tmp_path}/data/rejected.settled.jsonl, line 1: this is no note of a retry or drop\n",
    )


def test_with_no_service_or_no_database_nothing_is_sent(refusing: Persistd, command: Command, tmp_path: Path) -> None:
    refuse(refusing, "a")
    code, _, complaint = command("rejected", "retry", "--all", "--url", "http://127.0.0.1:9")
    assert (code, complaint) == (3, "persistd: no answer from http://127.0.0.1:9: Connection refused\n")
    refusing.configure('sink = "postgres"\n[sinks.postgres]\nurl = "postgresql://me:hush@127.0.0.1:9/x"\n')
    refusing.stop()
    refusing.start()
    refusing.post("task", task("waits"))
    code, said, complaint = command("rejected", "retry", "--all", "--url", refusing.url)
    assert (code, said) == (1, "")
    assert complaint.startswith("persistd: it is not known whether the rows were updated since: ")
    assert "hush" not in complaint
    code, said, complaint = command("rejected", "retry", "--all", "--overwrite", "--url", refusing.url)
    assert (code, said) == (1, "1 row sent\n")
    assert complaint.startswith("persistd: they were accepted, and wait: ")
    assert balances(refusing)["pending"] == 2


def test_ls_bears_a_service_that_is_just_appending(refusing: Persistd, command: Command) -> None:
    done = threading.Event()

    def load() -> None:
        number = 0
        while not done.is_set():
            refuse(refusing, *(f"t{number + n}" for n in range(20)))
            number += 20

    loader = threading.Thread(target=load)
    loader.start()
    try:
        wait_until(lambda: (refusing.data_dir / "rejected.jsonl").exists())
        for _ in range(20):
            code, said, complaint = command("rejected", "ls", "--json")
            assert (code, complaint) == (0, "")
            assert all(json.loads(line)["state"] == "open" for line in said.splitlines())
    finally:
        done.set()
        loader.join()
