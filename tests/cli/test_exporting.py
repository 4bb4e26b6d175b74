"""``persistd export``: from one real database into another, killed, refused, and in bounded memory."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.cli.test_imports import ROOT
from tests.faults.test_kill import place
from tests.process import COMMAND, Persistd, environment, wait_until
from tests.rows import session, task
from tests.sinks.readers import read_sqlite
from tornado_persist.records.models import KINDS, Fields, Kind

#: Runs a command, and says how much memory it has had at most.
PROGRAM = """
import re, sys
from tornado_persist.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
sys.exit(code)
"""


def without_times(stored: dict[Kind, dict[tuple[str, ...], Fields]]) -> dict[Kind, dict[tuple[str, ...], Fields]]:
    for kind in KINDS:
        for row in stored[kind].values():
            del row["created_at"], row["updated_at"]
    return stored


def peak(service: Persistd, *words: str) -> int:
    """Export with these words; the most bytes of memory that it took."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "export", "--url", service.url, *words],
        cwd=service.directory,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return int(done.stderr.split()[-1]) * 1024


@pytest.mark.parametrize("name", ["postgres", "mysql"])
def test_from_sqlite_into_a_server_the_tables_are_equal(
    service: Persistd, request: pytest.FixtureRequest, name: str, tmp_path: Path, command: Command
) -> None:
    at = place(name, request)
    free = {"键": ["值\u2028", None, 1.5, 2**70, {"深": "😀\n\\"}], "row": {"kind": "x"}, "kind": "session"}
    service.post("session", session("会话/1", metadata=free, game_info={}, filename="表 格.xlsx"))
    service.post("session", *(session(f"s{n}", status="completed") for n in range(1000)))
    tasks = [task(f"t{n}", session_id="会话/1", target_text=None, source_text=f"你好 {n}") for n in range(1500)]
    service.post("task", *tasks[:900])
    service.post("task", *tasks[900:])
    service.post("task", task("孤", session_id="none", confidence=0.1 + 0.2))
    file = tmp_path / "rows.jsonl"
    # Nothing has been flushed.
    assert command("export", "-o", file, "--url", service.url) == (0, "", "1,001 sessions and 1,501 tasks exported\n")
    kinds = [json.loads(line)["kind"] for line in file.read_bytes().splitlines()]
    assert kinds == ["session"] * 1001 + ["task"] * 1501

    (tmp_path / name).mkdir()
    with Persistd(tmp_path / name, f"sink = '{name}'\n{at.table}") as other:
        assert command("import", file, "--url", other.url).out == f"{file}: 2,502 rows sent\n"
        other.flush()
        wanted = without_times(read_sqlite(service.data_dir / "persist.db"))
        assert without_times(at.read(other.data_dir)) == wanted
        # And it comes out of there as it went in.
        code, again, _ = command("export", "--url", other.url)
    assert code == 0

    def rows(text: str) -> list[object]:
        found = [json.loads(line) for line in text.encode().splitlines()]
        return [{k: v for k, v in it["row"].items() if k not in ("created_at", "updated_at")} for it in found]

    assert rows(again) == rows(file.read_text())


def test_a_part_of_the_rows(service: Persistd, command: Command) -> None:
    service.post("session", session("a"), session("b"))
    service.post("task", task("t", session_id="a"), task("u", session_id="b"), task("v", session_id="lost"))

    def exported(*words: str) -> list[str]:
        code, said, _ = command("export", "--url", service.url, *words)
        assert code == 0
        found = [json.loads(line) for line in said.splitlines()]
        return [it["row"].get("task_id", it["row"]["session_id"]) for it in found]

    assert exported() == ["a", "b", "t", "u", "v"]
    assert exported("--kind", "task") == ["t", "u", "v"]
    assert exported("--session", "a") == ["a", "t"]
    assert exported("--session", "a", "--kind", "session") == ["a"]
    assert exported("--session", "lost") == ["v"]
    assert exported("--since", "2020-01-01T00:00:00") == ["a", "b", "t", "u", "v"]
    assert exported("--since", "2999-01-01T00:00:00+08:00") == []
    assert exported("--session", "a", "--since", "2999-01-01T00:00:00Z") == []
    (line, _) = command("export", "--session", "a", "--url", service.url).out.splitlines()
    assert json.loads(line)["row"].keys() & {"tasks", "progress", "pending"} == set()


def test_what_is_wrong_is_one_sentence_and_leaves_no_file(service: Persistd, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    words = ("export", "-o", file, "--url", service.url)
    code, said, complaint = command(*words, "--session", "x")
    assert (code, said) == (1, "")
    assert complaint == "persistd: nothing exported: there is no session x, and no task of it\n"
    code, _, complaint = command(*words, "--since", "yesterday")
    assert (code, "'yesterday' is no ISO 8601 date and time" in complaint) == (2, True)
    assert command(*words, "--kind", "row").code == 2
    code, _, complaint = command("export", "-o", file, "--url", "http://127.0.0.1:9")
    assert (code, complaint) == (3, "persistd: no answer from http://127.0.0.1:9: Connection refused\n")
    assert command(*words[:2], tmp_path / "no" / "rows", *words[3:]).code == 1
    assert list(tmp_path.glob("rows*")) == []
    file.write_text("mine")
    assert command(*words)[::2] == (1, f"persistd: {file}: is there already; it is not written over\n")
    assert file.read_text() == "mine"


def test_a_sink_that_cannot_be_read_and_a_token_that_is_missing(tmp_path: Path, command: Command) -> None:
    (tmp_path / "jsonl").mkdir()
    with Persistd(tmp_path / "jsonl", 'sink = "jsonl"\n') as service:
        code, said, complaint = command("export", "--url", service.url)
        assert (code, said, len(complaint.splitlines())) == (1, "", 1)
        assert "jsonl" in complaint
    tokens = tmp_path / "tokens"
    token = json.loads(command("token", "new", "reader", "--scope", "read", "--json").out)
    tokens.write_text(token["line"] + "\n")
    tokens.chmod(0o600)
    (tmp_path / "auth").mkdir()
    with Persistd(tmp_path / "auth", f'[auth]\ntokens_file = "{tokens}"\n') as service:
        code, said, complaint = command("export", "--url", service.url)
        assert (code, said) == (1, "")
        assert complaint == (
            f"persistd: {service.url} wants a token that it knows; set PERSISTD_TOKEN or PERSISTD_TOKEN_FILE\n"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PERSISTD_TOKEN", token["token"])
            assert command("export", "--url", service.url).code == 0


def test_many_rows_take_little_memory_and_a_killed_export_leaves_no_file(
    service: Persistd, tmp_path: Path, soak: int
) -> None:
    """52,000 rows; 1,000,000 in the long form."""
    batches = 1000 if soak else 52
    few = peak(service)
    for n in range(batches):
        service.post("task", *(task(f"t{n:03}-{i:03}", source_text="你好" * 50) for i in range(1000)))
    service.flush(600)
    file = tmp_path / "rows.jsonl"
    words = [*COMMAND, "export", "-o", str(file), "--url", service.url]
    unfinished = tmp_path / "rows.jsonl.unfinished"
    with subprocess.Popen(words, cwd=tmp_path, env=environment()) as process:
        wait_until(lambda: unfinished.exists() and unfinished.stat().st_size, "a part of the rows")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not file.exists()

    many = peak(service, "-o", str(file))
    ids = [json.loads(line)["row"]["task_id"] for line in file.read_bytes().splitlines()]
    assert ids == sorted(set(ids))
    assert len(ids) == batches * 1000
    assert not unfinished.exists()
    sys.stdout.write(f"{many >> 20} MiB at most, {few >> 20} MiB without rows\n")
    assert many - few < 100 << 20

    # A reader that has had enough.
    reader, writer = os.pipe()
    words = [*COMMAND, "export", "--url", service.url]
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.read(reader, 100)
        os.close(reader)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_bar_on_a_terminal(service: Persistd, tmp_path: Path) -> None:
    service.post("task", *map(task, "abc"))
    with OnTerminal("export", "-o", "rows.jsonl", "--url", service.url, cwd=tmp_path) as terminal:
        assert terminal.process.wait(30) == 0
    assert b"3/3" in terminal.said
    assert b"0 sessions and 3 tasks exported" in terminal.said


def test_rows_that_cannot_be_read_are_named_and_the_others_exported(service: Persistd, command: Command) -> None:
    service.post("session", *(session(name, metadata={"n": 1}) for name in "abcd"))
    service.flush()
    with closing(sqlite3.connect(service.data_dir / "persist.db")) as database, database:
        for name, text in (("a", "1" * 5000), ("c", "1e999"), ("d", '"\\ud83d"')):
            database.execute(
                "UPDATE translation_sessions SET metadata = ? WHERE session_id = ?", (f'{{"n": {text}}}', name)
            )
    code, said, complaint = command("export", "--url", service.url)
    assert code == 1
    assert [json.loads(line)["row"]["session_id"] for line in said.splitlines()] == ["b", "d"]
    assert complaint.splitlines() == [
        "persistd: the session a cannot be read: it has an integer of too many digits; passed over",
        "persistd: the session c cannot be read: it has a number beyond the range of a double; passed over",
        "2 sessions and 0 tasks exported; 2 rows passed over, which could not be read",
    ]
    code, said, complaint = command("export", "--session", "a", "--url", service.url)
    assert (code, said) == (1, "")
    assert "cannot be read: it has an integer of too many digits; passed over" in complaint
    assert command("ls", "sessions", "--url", service.url).code == 1
    code, _, complaint = command("get", "session", "a", "--url", service.url)
    assert code == 1
    assert complaint.endswith("cannot be read: it has an integer of too many digits\n")
