"""Closing the rejected rows of what is deleted: whichever way a client wrote its id, and in little memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from tests.rows import task
from tornado_persist.cli.rejections import Rejections
from tornado_persist.pipeline import settling
from tornado_persist.pipeline.settling import drop_rejected

ID = '会/é"x'
#: The same id as different clients write it: Python, PHP, Java, and nobody.
WRITTEN = (
    json.dumps(ID),
    json.dumps(ID, ensure_ascii=False),
    json.dumps(ID).replace("/", "\\/"),
    json.dumps(ID).replace("\\u4f1a", "\\u4F1A"),
    json.dumps(ID).replace("x", "\\u0078"),
)


def line(written: str, number: int, name: str = "session_id") -> str:
    row = json.dumps({**task(f"t{number}"), "session_id": 0}, ensure_ascii=False)
    row = row.replace('"session_id": 0', f'"{name}" : {written}')
    return f'{{"code": "invalid", "sink": null, "kind": "task", "row": {row}}}\n'


@pytest.mark.parametrize("block", [1, 700, 1 << 20])
def test_whichever_way_an_id_is_written_its_rows_are_closed(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "BLOCK", block)
    path = tmp_path / "rejected.jsonl"
    lines = [line('"other"', 0), *(line(text, number) for number, text in enumerate(WRITTEN, 1))]
    lines += ["no JSON " + WRITTEN[0] + "\n", line(WRITTEN[0], 9, "session\\u005fid"), line('"\\u4f1a"', 10)]
    path.write_text("".join(lines) + line(WRITTEN[0], 11).rstrip(), encoding="utf-8")
    (tmp_path / "rejected.settled.jsonl").write_text('{"torn')
    assert drop_rejected(path, ID, "t3") == 1
    assert drop_rejected(path, ID) == len(WRITTEN)
    assert drop_rejected(path, ID) == 0
    states = [entry.state for entry in Rejections(path).entries()]
    assert states == ["open", *["dropped"] * len(WRITTEN), "open", "dropped", "open", *states[9:]]
    assert "dropped" not in states[9:]
    notes = [json.loads(note) for note in (tmp_path / "rejected.settled.jsonl").read_text().splitlines()]
    assert sorted(note["line"] for note in notes) == [2, 3, 4, 5, 6, 8]


def test_many_rejected_rows_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "BLOCK", 1 << 16)
    path = tmp_path / "rejected.jsonl"
    path.write_text("".join(line('"s1"', number) for number in range(4000)))
    tracemalloc.start()
    try:
        assert drop_rejected(path, "s1") == 4000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_500_000, "the notes alone are more"
