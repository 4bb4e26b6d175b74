"""``persistd token new``: a new access token, and the line that stands for it in the configuration."""

from __future__ import annotations

import argparse
import json

from tornado_persist.cli.command import OK, Commands, Configuration
from tornado_persist.config import tokens
from tornado_persist.errors import ConfigError

_MORE = """The token is shown this once and is stored nowhere. Its line goes into auth.tokens_file (or auth.tokens);
persistd reload then lets it in. Removing the line takes it away. No running service is needed."""


def add(commands: Commands) -> None:
    below = commands.group("token", "make access tokens")
    new = below.add("new", _new, "print a new token, and its line for auth.tokens_file", more=_MORE)
    new.add_argument("name", metavar="NAME", help="whose it is, for the log: letters, digits and ._-")
    scopes = ", ".join(tokens.SCOPES)
    new.add_argument("--scope", required=True, type=_scopes, metavar="SCOPE,SCOPE", help=f"what it permits: {scopes}")
    new.add_argument("--json", action="store_true", help="an object with token and line")


def _scopes(text: str) -> list[tokens.Scope]:
    found = [scope for scope in tokens.SCOPES if scope in text.split(",")]
    unknown = sorted(set(text.split(",")) - set(tokens.SCOPES))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(tokens.SCOPES)}")
    return found


def _new(configuration: Configuration, options: argparse.Namespace) -> int:
    try:
        token, line = tokens.make(options.name, options.scope)
    except ValueError as exc:
        raise ConfigError("NAME", str(exc)) from None
    if options.json:
        print(json.dumps({"token": token, "line": line}))
        return OK
    print(f"token, shown only now:      {token}\nline for auth.tokens_file:  {line}")
    return OK
