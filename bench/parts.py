"""What the parts of a row's way cost by themselves, in one thread and without I/O::

bench/.venv/bin/python -m bench.parts

The least of nine runs over 20,000 rows each, in microseconds of processor time a row.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any
from zlib import crc32

import msgspec

from bench.rows import bodies
from tornado_persist.pipeline.buffer import Buffer
from tornado_persist.records.models import Row
from tornado_persist.records.parser import Parser
from tornado_persist.records.times import in_utc
from tornado_persist.sinks import mysql, postgres
from tornado_persist.sinks.encoders import BLOCK, batched
from tornado_persist.sinks.sql import group

ROWS = 20_000
RUNS = 9


class Judge(Parser):
    """The parser without its quick way."""

    def __init__(self) -> None:
        super().__init__(max_batch=1000)
        self._decoder = None


def cost(part: Callable[[], Any]) -> float:
    """Microseconds a row."""
    least = float("inf")
    for _ in range(RUNS):
        began = time.process_time()
        part()
        least = min(least, time.process_time() - began)
    return least / ROWS * 1e6


def main() -> None:
    requests = list(bodies(0, ROWS, 500, 0, "tasks"))
    parser, judge, at = Parser(max_batch=1000), Judge(), in_utc("2025-09-30T16:40:00")
    rows: list[Row] = [row for body in requests for row in parser.parse("task", body)]
    Buffer().add("task", rows, at)  # sets the times
    ((fields, ordered),) = group("task", rows)
    blocks = list(batched(ordered, BLOCK))
    copy, binary, lines = postgres._ENCODERS["task"], mysql._BINARY["task"], msgspec.json.Encoder()
    parts: dict[str, Callable[[], Any]] = {
        "decode and check": lambda: [parser.parse("task", body) for body in requests],
        "the same by pydantic alone": lambda: [judge.parse("task", body) for body in requests],
        "merge into the buffer": lambda: Buffer().add("task", rows, at),
        "checksum for the journal": lambda: [crc32(body) for body in requests],
        "group and sort for an upsert": lambda: list(group("task", rows)),
        "PostgreSQL: lines of a COPY": lambda: ["\n".join(copy.encode(fields, block)).encode() for block in blocks],
        "MariaDB: rows of its bulk command": lambda: [binary.join(binary.encode(fields, block)) for block in blocks],
        "JSON lines": lambda: [lines.encode_lines(block) for block in blocks],
    }
    for name, part in parts.items():
        sys.stdout.write(f"{name:34}{cost(part):6.2f} µs\n")


if __name__ == "__main__":
    main()
