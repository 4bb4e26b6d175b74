"""A directory written by an earlier version is read. Its bytes are spelled out here, without the package's help."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zlib import crc32

from tests.journal.tools import Driver, Events
from tornado_persist.journal import Checkpoint, Damage, Entry, Gap, Inspection, Record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = 1_760_000_000_123_456
STATE = {"totals": {"accepted": {"session": 0, "task": 4}}, "rejected_bytes": 403, "position": None}
SESSION, TASK = 1, 2


def record(seq: int, kind: int, rows: int, body: bytes) -> bytes:
    fields = struct.pack("<4sBB2xIQqI", b"\xffTPJ", 1, kind, rows, seq, AT + seq, len(body))
    head = fields + struct.pack("<I", crc32(fields))
    return head + struct.pack("<I", crc32(body, crc32(head))) + body


def half(number: int, seq: int, **more: int) -> bytes:
    body = json.dumps({"number": number, "seq": seq, "state": STATE, **more}, separators=(",", ":")).encode()
    return (b"persistd-cursor 2 %08x %d\n%b\n" % (crc32(body), len(body), body)).ljust(16384)


def write(directory: Path) -> bytes:
    """Three segments and a cursor: one record released, one damaged with a copy aside, one refused and void, and a torn
    tail. Returns the damaged record.
    """
    journal, damaged = directory / "journal", directory / "damaged"
    journal.mkdir()
    damaged.mkdir()
    broken = bytearray(record(4, TASK, 2, b'{"tasks":["four"]}'))
    broken[-3] ^= 1
    first = record(1, TASK, 1, b'{"tasks":["one"]}') + record(2, SESSION, 1, b'{"sessions":["two"]}')
    second = record(3, TASK, 3, b'{"tasks":["three"]}') + broken
    third = record(5, SESSION, 5, '{"sessions":["五"]}'.encode())
    torn = record(6, TASK, 1, b'{"tasks":["six"]}')[:-4]
    void = record(3, TASK, 1, b'{"tasks":["refused"]}')
    (journal / f"{1:020}.seg").write_bytes(first + void)
    (journal / f"{3:020}.seg").write_bytes(second)
    (journal / f"{5:020}.seg").write_bytes(third + torn)
    offset = len(second) - len(broken)
    (damaged / f"{3:020}-{offset}.bin").write_bytes(broken)
    # The cursor with the higher number holds; an odd one is in the second half.
    (journal / "cursor").write_bytes(half(2, 0) + half(3, 1))
    return bytes(broken)


def test_a_directory_of_an_earlier_version_is_replayed(tmp_path: Path, events: Events) -> None:
    write(tmp_path)
    with Driver(tmp_path) as driver:
        assert driver.checkpoint == Checkpoint(1, STATE)
        assert driver.read() == [
            Record(2, "session", EPOCH + timedelta(microseconds=AT + 2), 1, b'{"sessions":["two"]}'),
            Record(3, "task", EPOCH + timedelta(microseconds=AT + 3), 3, b'{"tasks":["three"]}'),
            Record(5, "session", EPOCH + timedelta(microseconds=AT + 5), 5, '{"sessions":["五"]}'.encode()),
        ]
        assert driver.journal.found.rows == {"session": 6, "task": 3}
        assert driver.append(b"next") == [6]
    # The damage is known, so nothing is said of it; the void record and the torn one are cut off.
    reasons = [line["reason"] for line in events.take("journal tail cut off")]
    assert reasons == ["void: the next segment begins before it", "torn by a crash"]
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_a_directory_of_an_earlier_version_is_inspected(tmp_path: Path) -> None:
    broken = write(tmp_path)
    inspection = Inspection(tmp_path / "journal")
    items = list(inspection.items())
    assert (inspection.released, inspection.problem) == (1, "")
    assert [item.seq for item in items if isinstance(item, Entry)] == [1, 2, 3, 5]
    assert [(item.seq, item.size, item.rows) for item in items if isinstance(item, Damage)] == [(4, len(broken), 2)]
    assert [item for item in items if isinstance(item, Gap)] == [Gap(4, 4, damaged=True)]


def test_the_bytes_written_are_the_documented_ones(tmp_path: Path) -> None:
    bodies = [b'{"tasks":["one"]}', b'{"tasks":["two"]}']
    with Driver(tmp_path) as driver:
        for seq, body in enumerate(bodies, 1):
            driver.append(body, at=EPOCH + timedelta(microseconds=AT + seq))
        (segment,) = driver.segments()
        assert segment.name == "00000000000000000001.seg"
        assert segment.read_bytes() == b"".join(record(seq, TASK, 1, body) for seq, body in enumerate(bodies, 1))
        driver.journal.release(1, STATE)
        cursor = (driver.directory / "cursor").read_bytes()
        assert half(cursor.count(b"persistd-cursor"), 1, latest=AT + 2) in (cursor[:16384], cursor[16384:])
