"""``persistd import``: through a real service into a real database, killed, refused, and gone on with."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.cli.terminal import OnTerminal
from tests.process import COMMAND, Persistd, environment, wait_until
from tests.rows import session, task
from tests.servers import free_port
from tests.sinks.readers import read_jsonl, read_postgres
from tornado_persist.records.models import KINDS, Fields

HOURLY = "[buffer]\nflush_interval = 3600\n"


def write(path: Path, *rows: Fields) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def state(path: Path) -> dict[str, Any]:
    targets: dict[str, dict[str, Any]] = json.loads(path.with_name(path.name + ".import-state").read_text())["targets"]
    (place,) = targets.values()
    return place


def without_times(stored: dict[tuple[str, ...], Fields]) -> dict[tuple[str, ...], Fields]:
    """The service that imports gives rows its own."""
    for row in stored.values():
        del row["created_at"], row["updated_at"]
    return stored


@pytest.fixture
def postgres(tmp_path: Path, postgres_url: str) -> Iterator[Persistd]:
    (tmp_path / "pg").mkdir()
    with Persistd(tmp_path / "pg", f'sink = "postgres"\n[sinks.postgres]\nurl = "{postgres_url}"\n') as it:
        yield it


def test_from_jsonl_to_postgres_killed_half_way_nothing_is_lost_or_doubled(
    service: Persistd, postgres: Persistd, postgres_url: str, tmp_path: Path, command: Command
) -> None:
    service.configure('sink = "jsonl"\n' + HOURLY)
    service.stop()
    service.start()
    service.post("session", *(session(f"s{n}", metadata={"n": n}) for n in range(1000)))
    for n in range(20):
        # Half of the keys come again, with other fields: the order of the file matters.
        tasks = (task(f"t{(n * 500 + i) % 9700}", row_index=n, source_text=f"你好 {i}") for i in range(1000))
        more: list[Fields] = [{"target_text": None}, {"target_text": f"x{n}"}, {}]
        service.post("task", *(row | more[n % 3] for row in tasks))
        service.flush()
    service.stop()
    files = [service.data_dir / "jsonl" / name for name in ("sessions.jsonl", "tasks.jsonl")]

    words = [*COMMAND, "-c", str(postgres.file), "import", *map(str, files), "--url", postgres.url]
    process = subprocess.Popen(words, cwd=tmp_path, env=environment())
    progress = files[1].with_name("tasks.jsonl.import-state")
    wait_until(lambda: progress.exists() and state(files[1])["rows"] >= 5000, "a part of the tasks")
    process.kill()
    process.wait()
    sent = state(files[1])["rows"]
    assert 5000 <= sent < 20_000

    code, said, complaint = command("import", *files, "--url", postgres.url)
    assert (code, complaint) == (0, "")
    assert said.splitlines() == [
        f"{files[0]}: 0 rows sent, and 1,000 before",
        f"{files[1]}: {20_000 - sent:,} rows sent, and {sent:,} before",
    ]
    postgres.flush()
    found, wanted = read_postgres(postgres_url), read_jsonl(service.data_dir / "jsonl")
    for kind in KINDS:
        assert without_times(found[kind]) == without_times(wanted[kind])
    accounting = postgres.stats()["accounting"]
    # What was sent and not noted when the kill came was accepted twice: at most one step.
    assert 21_000 <= accounting["accepted"] <= 22_000
    assert accounting["accepted"] == accounting["written"] + accounting["merged"]
    assert command("import", *files, "--url", postgres.url).out.count(": 0 rows sent, and") == 2
    assert postgres.stats()["accounting"] == accounting


def test_lines_that_cannot_be_read_are_named_and_passed_over(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    good = [json.dumps(row) for row in (task("a"), session("s"), task("b"))]
    bad = [
        json.dumps(task("x")).replace('"x"', '"x'),
        json.dumps(task("x")).replace('"pending"', "1" * 5000),
        json.dumps(task("x")).replace('"pending"', "1e999"),
        json.dumps(task("x")).replace('"pending"', '"\\ud83d"'),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([good[0], bad[0], "", *bad[1:3], good[1], bad[3], good[2], ""]))
    code, said, complaint = command("import", file, "--url", service.url)
    assert code == 1
    assert said == f"{file}: 3 rows sent; 4 lines passed over, which could not be read\n"
    assert [line.split(": ")[1] for line in complaint.splitlines()] == [f"{file}, line {n}" for n in (2, 4, 5, 7)]
    assert all(line.endswith("; passed over") for line in complaint.splitlines())
    assert service.stats()["accounting"]["accepted"] == 3
    # The next run sends nothing again, and does not forget them.
    code, said, complaint = command("import", file, "--url", service.url)
    assert (code, complaint) == (1, "")
    assert said == f"{file}: 0 rows sent, and 3 before; 4 lines passed over, which could not be read\n"
    assert (state(file)["unread"], state(file)["bytes"]) == (4, file.stat().st_size)


def test_of_very_many_lines_that_cannot_be_read_some_are_named(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{\n" * 3000 + json.dumps(task("a")) + "\n")
    code, said, complaint = command("import", file, "--url", service.url)
    assert (code, complaint.count("\n")) == (1, 21)
    assert complaint.endswith(f"{file}: further lines that cannot be read are only counted\n")
    assert said == f"{file}: 1 row sent; 3,000 lines passed over, which could not be read\n"


def test_a_file_that_was_cut_is_named_and_goes_on_when_it_is_whole(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", task("a"), task("b"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert f"{file}, line 2: the file ends within this line (" in command("import", file, "--url", service.url).err
    file.write_bytes(whole)
    assert command("import", file, "--url", service.url).out == f"{file}: 1 row sent, and 1 before\n"


def test_a_row_that_the_service_refuses_is_named_and_what_is_before_it_is_sent(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    rows = [session("s"), task("a"), task("b"), task("c", status="lost"), task("d"), session("t")]
    file = write(tmp_path / "rows.jsonl", *rows)
    code, _, complaint = command("import", file, "--url", service.url)
    assert code == 1
    problem = "the service refuses it: status: Input should be 'pending', 'processing', 'completed' or 'failed'"
    assert complaint.splitlines()[1] == f"persistd: {file}, line 4: {problem}"
    assert state(file)["lines"] == 3
    write(file, *rows[:3], task("c"), *rows[4:])
    assert command("import", file, "--url", service.url).out == f"{file}: 3 rows sent, and 3 before\n"
    service.flush()
    assert service.stats()["accounting"]["pending"] == 0


def test_a_service_with_other_limits_gets_smaller_batches(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = write(tmp_path / "rows.jsonl", *(task(f"t{n}", source_text="x" * 500) for n in range(40)))
    with Persistd(tmp_path / "other", HOURLY, server="max_batch = 7\nmax_body_bytes = 2000\n") as service:
        assert command("import", file, "--url", service.url).code == 0
        assert service.stats()["accounting"]["accepted"] == 40


def test_with_unknown_fields_refused_our_own_are_left_out_and_others_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    at = "2026-01-01T00:00:00+00:00"
    file = write(tmp_path / "rows.jsonl", {**task("a"), "created_at": at, "updated_at": at}, {**task("b"), "colour": 1})
    with Persistd(tmp_path / "other", '[records]\nunknown_fields = "reject"\n' + HOURLY) as service:
        code, _, complaint = command("import", file, "--url", service.url)
        assert service.stats()["accounting"]["accepted"] == 1
    assert code == 1
    problem = "the service refuses it: colour: This field is not in the specification"
    assert complaint.splitlines()[1] == f"persistd: {file}, line 2: {problem}"


def test_a_file_that_changed_is_noticed_and_again_sends_all(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    file = write(tmp_path / "rows.jsonl", task("a"), task("b"))
    assert command("import", file, "--url", service.url).code == 0
    write(file, task("x"), task("b"))
    code, _, complaint = command("import", file, "--url", service.url)
    assert code == 1
    size = file.stat().st_size
    assert complaint.startswith(
        f"persistd: {file}: its first {size} bytes, 2 lines, are not as they were when they were"
    )
    assert service.stats()["accounting"]["accepted"] == 2
    assert command("import", file, "--again", "--url", service.url).out == f"{file}: 2 rows sent\n"
    with file.open("a") as more:
        more.write(json.dumps(task("c")) + "\n")
    assert command("import", file, "--url", service.url).out == f"{file}: 1 row sent, and 2 before\n"


def test_a_service_that_restarts_meanwhile_is_waited_for(command: Command, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = write(tmp_path / "rows.jsonl", *(task(f"t{n}") for n in range(3000)))
    with Persistd(tmp_path / "other", HOURLY, port=free_port(), server="max_batch = 10\n") as service:
        words = [*COMMAND, "-c", str(service.file), "import", str(file)]
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
        progress = file.with_name("rows.jsonl.import-state")
        wait_until(lambda: progress.exists() and state(file)["rows"] >= 100, "a part of the rows")
        service.kill()
        service.start()
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
        service.flush()
        assert service.stats()["accounting"]["pending"] == 0
        assert 3000 <= service.stats()["accounting"]["accepted"] <= 3010


@pytest.mark.parametrize("dead", [True, False], ids=["dead sink", "good sink"])
def test_with_a_full_journal_it_waits_as_long_as_it_is_told_and_says_why(
    command: Command, tmp_path: Path, dead: bool
) -> None:
    (tmp_path / "other").mkdir()
    file = write(tmp_path / "rows.jsonl", *(task(f"t{n}", source_text="x" * 900) for n in range(8)))
    sink = 'sink = "postgres"\n[sinks.postgres]\nurl = "postgresql://me@127.0.0.1:9/x"\n' if dead else ""
    config = sink + HOURLY + "[journal]\nmax_bytes = 4096\nsegment_bytes = 4096\n"
    with Persistd(tmp_path / "other", config, server="max_body_bytes = 2000\n") as service:
        patience = "0.3" if dead else "30"
        code, _, complaint = command("import", file, "--patience", patience, "--url", service.url)
        waits = complaint.splitlines()
        if dead:
            assert code == 1
            assert waits.pop().startswith("persistd: The journal is full")
            assert waits
        else:  # a full journal starts a flush
            assert code == 0
            assert service.flush()["status"] == "flushed"
            assert service.stats()["accounting"]["written"] == 8
        assert all(line.startswith("persistd: waiting: The journal is full") for line in waits)


def test_no_service_is_3_and_sends_nothing(command: Command, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", task("a"))
    assert command("import", file) == (3, "", "persistd: no answer from http://localhost:9: Connection refused\n")


def test_files_that_cannot_be_read_or_noted_are_named(service: Persistd, command: Command, tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    problem = f"persistd: {missing}: cannot be read: No such file or directory\n"
    assert command("import", missing, "--url", service.url) == (1, "", problem)
    assert "cannot be read: Is a directory" in command("import", tmp_path, "--url", service.url).err
    file = write(tmp_path / "rows.jsonl", task("a"))
    code, _, complaint = command("import", file, "--state", tmp_path / "nowhere", "--url", service.url)
    assert code == 1
    assert re.fullmatch(
        rf"persistd: {tmp_path}/nowhere/rows\.jsonl\.[0-9a-f]+\.import-state: "
        r"cannot be written: No such file or directory; --state DIRECTORY puts it elsewhere\n",
        complaint,
    )
    (tmp_path / "state").mkdir()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        other = write(tmp_path / name / "rows.jsonl", task(name))
        assert command("import", other, "--state", tmp_path / "state", "--url", service.url).code == 0
    assert service.stats()["accounting"]["accepted"] == 2
    (tmp_path / "rows.jsonl.import-state").write_text("{")
    assert "is no state of an import" in command("import", file, "--url", service.url).err


def test_the_services_own_files_are_not_imported_into_themselves(command: Command, tmp_path: Path) -> None:
    (tmp_path / "persistd.toml").write_text('sink = "jsonl"\n[server]\nport = 9\n')
    (tmp_path / "data" / "jsonl").mkdir(parents=True)
    write(tmp_path / "data" / "jsonl" / "tasks.jsonl", task("a"))
    code, _, complaint = command("import", "data/jsonl/tasks.jsonl")
    words = "data/jsonl/tasks.jsonl: is where the service writes to; set another sink, and reload it, first"
    assert (code, complaint) == (1, f"persistd: {words}\n")


def test_a_journals_export_is_taken(service: Persistd, command: Command, tmp_path: Path) -> None:
    service.post("session", session("s1"))
    service.post("task", task("a"), task("b"))
    file = tmp_path / "export.jsonl"
    assert command("journal", "export", "-o", file).code == 0
    assert command("import", file, "--url", service.url).out == f"{file}: 3 rows sent\n"
    accounting = service.stats()["accounting"]
    assert (accounting["accepted"], accounting["merged"], accounting["pending"]) == (6, 3, 3)


def test_on_a_terminal_there_is_a_bar_and_ctrl_c_leaves_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file = write(tmp_path / "rows.jsonl", *(task(f"t{n}") for n in range(20_000)))
    with Persistd(tmp_path / "other", HOURLY, server="max_batch = 10\n") as service:
        words = ["-c", str(service.file), "import", str(file), "--url", service.url]
        with OnTerminal(*words, cwd=tmp_path) as importer:
            wait_until(lambda: bool(re.search(rb" [1-9][\d,]* rows", importer.said)), "a bar that has begun")
            importer.process.send_signal(signal.SIGINT)
            assert importer.process.wait(30) == 130
        said = importer.said
        assert b"rows.jsonl:" in said
        assert b"the same command goes on from there" in said
        assert b"Traceback" not in said
        sent = state(file)
        assert 0 < sent["rows"] < 20_000
        assert datetime.fromisoformat(sent["at"]).year >= 2026
