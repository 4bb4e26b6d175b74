"""``persistd check``"""

from __future__ import annotations

import argparse
from pathlib import Path

from tornado_persist.cli import findings
from tornado_persist.cli.command import FAILED, OK, Commands
from tornado_persist.config import Settings
from tornado_persist.telemetry import redaction as masking


def add(commands: Commands) -> None:
    commands.add("check", _check, "look at the configuration, the disk, the port and the sink, and say what was found")


def _check(settings: Settings, file: Path | None, options: argparse.Namespace) -> int:
    code = OK
    for finding in findings.look(settings, file):
        print(masking.mask(str(finding)), flush=True)
        if finding.level == "error":
            code = FAILED
    return code
