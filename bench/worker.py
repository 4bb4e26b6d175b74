"""Programs that do a timed job in a process of their own: the load generator and the limits.

A worker reads its job, prepares it (encodes every byte that it will send), says ``ready``, waits for ``go``, and
answers with what it measured. So the clock never covers the preparation, and the driver chooses the moment.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from bench.load import Sample

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a job may take after its preparation.
PATIENCE = 600


class WorkerFailed(Exception):
    """A worker ended without a result."""


class Worker:
    """The driver's side."""

    def __init__(self, module: str, job: dict[str, Any]) -> None:
        """Start ``python -m module`` and have it prepare ``job``; returns once it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(json.dumps(job))
        if self._hear() != "ready":
            raise WorkerFailed(f"{module} is not ready")

    def go(self) -> None:
        """Start the clock."""
        self._say("go")

    def result(self) -> Sample:
        """Wait for the result."""
        sample = Sample(**json.loads(self._hear()))
        self._process.wait(PATIENCE)
        return sample

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"a worker ended with {self._process.wait(PATIENCE)}")
        return line.rstrip("\n")


def serve(prepare: Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]) -> None:
    """The worker's side: ``prepare`` takes the job and returns what runs it."""
    run = prepare(json.loads(sys.stdin.readline()))
    gc.collect()
    gc.disable()
    # What others have written before goes to the disk now, not during the measurement.
    os.sync()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() == "go":
        sys.stdout.write(json.dumps(run()) + "\n")
