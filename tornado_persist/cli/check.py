"""``persistd check``"""

from __future__ import annotations

import argparse
from pathlib import Path

from tornado_persist.cli.command import FAILED, OK, Commands
from tornado_persist.config import Settings
from tornado_persist.datadir import DataDir
from tornado_persist.errors import SinkError
from tornado_persist.service import make_sink


def add(commands: Commands) -> None:
    commands.add("check", _check, "read the configuration, open the sink, and say what was found")


def _check(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    print(f"configuration  {file or 'none, defaults'}: valid")
    data_dir = DataDir(settings.data_dir)
    data_dir.make()
    print(f"data_dir       {data_dir.path}: {f'in use, pid {data_dir.pid()}' if data_dir.locked() else 'writable'}")
    sink = make_sink(settings)
    try:
        sink.open()
        sink.ping()
        print(f"sink           {settings.sink}: {sink.describe()}")
    except SinkError as exc:
        print(f"sink           {settings.sink}: unavailable: {exc}")
        return FAILED
    finally:
        sink.close()
    return OK
