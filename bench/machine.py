"""What the figures were measured on, for the reader who compares."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("tornado-persist", "tornado", "pydantic", "SQLAlchemy", "psycopg", "PyMySQL"),
    *("fastapi", "uvicorn", "uvloop", "aiomysql", "asyncpg", "datasette"),
)
_SYNCS = 100
#: Prints the milliseconds of each turn of a loop of Python, for a second and a half.
_LOOPS = """
import time
end = time.perf_counter() + 1.5
while (began := time.perf_counter()) < end:
    for _ in range(1_000_000): pass
    print((time.perf_counter() - began) * 1000)
"""


def machine() -> dict[str, str]:
    """Processor, memory, system, disk."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores shared by generator, service and database",
        "a million turns of a loop": _loop_times(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "disk": f"{_file_system()}, fsync of 4 KB {_sync_time() * 1000:.2f} ms",
        "load average at the start": load_average(),
    }


def versions() -> dict[str, str]:
    """Python's and the packages'."""
    found = {"Python": sys.version.split()[0], "SQLite": sqlite3.sqlite_version}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def load_average() -> str:
    """Over one, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _loop_times() -> str:
    """The same work over and over, on two cores at once: whoever else has a share of them shows as a spread."""
    started = [subprocess.Popen([sys.executable, "-c", _LOOPS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    times = sorted(float(line) for process in started for line in process.communicate()[0].split())
    return f"{statistics.median(times):.0f} ms, from {times[0]:.0f} to {times[-1]:.0f}"


def _file_system() -> str:
    done = subprocess.run(["df", "-PT", tempfile.gettempdir()], capture_output=True, text=True, check=False)
    fields = done.stdout.splitlines()[-1].split() if done.returncode == 0 else []
    return fields[1] if len(fields) > 1 else "unknown file system"


def _sync_time() -> float:
    """Seconds of one fsync after an appended block, where the runs keep their data."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            os.write(file.fileno(), bytes(4096))
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)
