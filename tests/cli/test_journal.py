"""``persistd journal``: on a running service, on a stopped one, and on a damaged disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.journal.tools import Driver, flip
from tests.process import Persistd
from tests.rows import body, session, task
from tornado_persist.journal.record import HEADER_SIZE


def fill(service: Persistd) -> Path:
    """Four rows in three records, none released; the segment."""
    service.post("session", session("s1"))
    service.post("task", task("a"), task("b", source_text="你好"))
    service.post("task", task("c"))
    return service.data_dir / "journal" / "00000000000000000001.seg"


def test_of_a_running_service_ls_tells_records_rows_and_that_it_runs(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    fill(service)
    code, said, complaint = command("journal", "ls")
    assert (code, complaint) == (0, "")
    assert said.startswith(
        f"{tmp_path}/data/journal: the service runs, pid {service.process.pid}; released up to 0\n\nsegment"
    )
    row = re.search(r"^0{19}1\.seg +1 +3 +3 +0 +1 +3 +\d+ B +\d\.\d s$", said, re.MULTILINE)
    assert row, said
    facts = json.loads(command("journal", "ls", "--json").out)
    assert facts["pid"] == service.process.pid
    assert facts["total"]["rows"] == {"sessions": 1, "tasks": 3}
    assert facts["total"]["bytes"] == service.stats()["journal"]["bytes"]
    assert facts["problems"] == []
    service.flush()
    assert "released up to 3" in command("journal", "ls").out


def test_show_prints_records_with_their_rows(service: Persistd, command: Command, tmp_path: Path) -> None:
    fill(service)
    code, said, _ = command("journal", "show", "2")
    assert code == 0
    assert said.startswith("record 2: 2 tasks, accepted ")
    assert '"source_text": "你好"' in said
    assert "record 3" not in said
    lines = [json.loads(line) for line in command("journal", "show", "--from", "2", "--json").out.splitlines()]
    assert [(line["seq"], line["kind"], line["rows"], line["released"]) for line in lines] == [
        (2, "task", 2, False),
        (3, "task", 1, False),
    ]
    assert lines[0]["body"]["tasks"][1] == task("b", source_text="你好")
    assert command("journal", "show", "9") == (1, "", f"persistd: {tmp_path}/data/journal: there is no record 9\n")


def test_verify_names_each_damage_with_file_and_offset(service: Persistd, command: Command, tmp_path: Path) -> None:
    segment = fill(service)
    service.kill()
    assert command("journal", "verify")[::2] == (0, "")
    flip(segment, HEADER_SIZE)
    size = json.loads(command("journal", "show", "2", "--json").out)["offset"]
    code, said, complaint = command("journal", "verify")
    assert code == 1
    problem = f"{size} B damaged: the checksum does not hold (record 1, 1 session)"
    assert complaint == f"persistd: {tmp_path}/data/journal/{segment.name}, offset 0: {problem}\n"
    assert re.fullmatch(rf"{tmp_path}/data/journal: 1 segment, 2 good records, \d+ B, 1 problem\n", said)

    service.start()
    service.wait_for_log("journal record damaged")
    saved = f"{tmp_path}/data/damaged/00000000000000000001-0.bin"
    assert f"(record 1, 1 session, known, a copy is in {saved})" in command("journal", "verify").err


def test_a_torn_end_is_no_damage_and_of_a_stopped_service_what_a_start_will_cut(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    segment = fill(service)
    offset = json.loads(command("journal", "show", "3", "--json").out)["offset"]
    service.kill()
    segment.write_bytes(segment.read_bytes()[:-10])
    code, said, complaint = command("journal", "verify")
    assert (code, said[-12:]) == (0, " 0 problems\n")
    place = f"persistd: {tmp_path}/data/journal/{segment.name}, offset {offset}: the last "
    assert complaint.startswith(place)
    assert complaint.endswith("not whole, as a crash leaves them, and never acknowledged; a start cuts them off\n")


def test_a_cursor_that_cannot_be_believed_is_a_problem(service: Persistd, command: Command, tmp_path: Path) -> None:
    fill(service)
    assert service.stop() == 0
    (service.data_dir / "journal" / "cursor").write_text("persistd")
    code, _, complaint = command("journal", "verify")
    words = "it is no cursor; a start takes all records for not released"
    assert (code, complaint) == (1, f"persistd: {tmp_path}/data/journal/cursor: {words}\n")


def test_a_half_of_the_cursor_that_a_crash_has_torn_is_no_damage_and_a_start_mends_it(
    service: Persistd, command: Command, tmp_path: Path
) -> None:
    fill(service)
    service.kill()
    cursor = service.data_dir / "journal" / "cursor"
    content = cursor.read_bytes()
    cursor.write_bytes(b"\0" * 100 + content[100:])
    code, said, complaint = command("journal", "verify")
    assert (code, said[-12:]) == (0, " 0 problems\n")
    words = "a half is not whole, as a crash leaves it, and the other one holds; a start mends it"
    assert complaint == f"persistd: {tmp_path}/data/journal/cursor: {words}\n"

    service.start()
    service.wait_for_log("journal cursor torn by a crash")
    service.kill()
    assert command("journal", "verify")[::2] == (0, "")


def test_export_writes_rows_to_a_new_file_alone(service: Persistd, command: Command, tmp_path: Path) -> None:
    fill(service)
    file = tmp_path / "rows.jsonl"
    assert command("journal", "export", "-o", file) == (0, "", "4 rows of 3 records exported\n")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["seq"], row["kind"], row["row"]["session_id"]) for row in rows] == [
        (1, "session", "s1"),
        *[(n, "task", "s1") for n in (2, 2, 3)],
    ]
    before = file.read_bytes()
    again = command("journal", "export", "-o", file)
    assert again == (1, "", f"persistd: {file}: is there already; it is not written over\n")
    assert file.read_bytes() == before
    assert command("journal", "export", "--from", "3").out.count("\n") == 1


def test_export_leaves_released_records_out_unless_asked_for_all(service: Persistd, command: Command) -> None:
    fill(service)
    service.flush()
    service.post("task", task("d"))
    assert [json.loads(line)["row"]["task_id"] for line in command("journal", "export").out.splitlines()] == ["d"]


def test_a_data_directory_without_a_journal_is_named(command: Command, tmp_path: Path) -> None:
    code, _, complaint = command("journal", "ls")
    assert (code, complaint) == (1, f"persistd: {tmp_path}/data/journal: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("words", [("journal",), ("journal", "dance"), ("journal", "show", "x")])
def test_a_wrong_command_line_is_2(command: Command, words: tuple[str, ...]) -> None:
    assert command(*words).code == 2


def test_it_needs_the_data_directory_alone(service: Persistd, command: Command, tmp_path: Path) -> None:
    fill(service)
    (tmp_path / "persistd.toml").write_text(f'data_dir = "{service.data_dir}"\nsink = "oracle"\n[server]\nprot = 1\n')
    for words in (("ls",), ("show", "1"), ("verify",), ("export",)):
        assert command("journal", *words).code == 0, words


@pytest.mark.parametrize("text", ["1" * 5000, "1e999", '"\\ud83d"'], ids=["digits", "range", "surrogate"])
def test_what_cannot_be_read_is_named_and_the_rest_is_shown_and_exported(
    command: Command, tmp_path: Path, text: str
) -> None:
    (tmp_path / "data").mkdir()
    whole = body("task", task("a"), task("b", context="?"), task("c"))
    with Driver(tmp_path / "data") as journal:
        journal.append(whole.replace(b'"?"', text.encode()), b"{", body("task", task("d")), rows=3)
    code, said, complaint = command("journal", "show")
    assert code == 1
    assert said.count("accepted ") == 3
    assert '"task_id": "d"' in said
    assert [n for n in (1, 2, 3) if f": record {n} cannot be shown: " in complaint] == [1, 2]
    shown = [json.loads(line)["body"] for line in command("journal", "show", "--json").out.splitlines()]
    assert shown == [None, None, {"tasks": [task("d")]}]

    code, said, complaint = command("journal", "export")
    assert code == 1
    assert [json.loads(line)["row"]["task_id"] for line in said.splitlines()] == ["a", "c", "d"]
    first, second, sums = complaint.splitlines()
    assert ": record 1: the task s1 b cannot be read: " in first
    assert ": record 2 cannot be read: it is no JSON (" in second
    assert sums == "3 rows of 3 records exported; 4 rows passed over, which could not be read"
    assert command("journal", "verify").code == 0
