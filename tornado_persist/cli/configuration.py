"""``persistd config``: the sample configuration, or the settings in force."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from tornado_persist.cli.command import OK, Commands, Configuration
from tornado_persist.config.loading import Settings
from tornado_persist.errors import InputError
from tornado_persist.files import reason
from tornado_persist.telemetry.redaction import MASK, mask

_MORE = """The sample has every key at its default, with a comment. --effective prints the value of every key as the
service would use it, from the file and from PERSISTD_... variables; passwords are masked."""
#: Where the wheel puts conf/, below the prefix of the installation.
_SHARED = "share/tornado-persist"


def add(commands: Commands) -> None:
    parser = commands.add("config", _config, "print the sample configuration, or the one in force", more=_MORE)
    parser.add_argument("--effective", action="store_true", help="the values in force, secrets masked")


def _config(configuration: Configuration, options: argparse.Namespace) -> int:
    if options.effective:
        settings = configuration.settings
        print(f"# {configuration.file or 'The defaults'}, and PERSISTD_ variables over it.")
        print("\n".join(_lines(_effective(settings))))
        return OK
    path = _sample()
    try:
        print(path.read_text(encoding="utf-8"), end="")
    except OSError as exc:
        raise InputError(path, f"cannot be read: {reason(exc)}") from None
    return OK


def _sample() -> Path:
    """The checkout's file, else the one installed with the package."""
    checkout = Path(__file__).resolve().parents[2] / "conf" / "persistd.toml"
    if checkout.is_file():
        return checkout
    for file in importlib.metadata.files("tornado-persist") or ():
        if file.as_posix().endswith(f"{_SHARED}/persistd.toml"):
            return Path(str(file.locate())).resolve()
    return checkout


def _effective(settings: Settings) -> dict[str, Any]:
    """Every value; of the sinks the selected one and those that the configuration has a table for."""
    found = settings.model_dump(exclude={"sinks"})
    for name in sorted({settings.sink, *settings.sinks}):
        found[f"sinks.{name}"] = dict(settings.sink_settings(name))
    return found


def _lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """As TOML."""
    tables = {name: value for name, value in tree.items() if isinstance(value, dict)}
    for name, value in tree.items():
        if name not in tables and value is not None:  # TOML has no null
            yield f"{name} = {_value(value)}"
    for name, table in tables.items():
        yield f"\n[{name}]"
        yield from _lines(table)


def _value(value: object) -> str:
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return json.dumps(mask(secret) if "://" in secret else MASK)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(mask(str(value)), ensure_ascii=False)
