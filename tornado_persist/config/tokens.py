"""Access tokens: what a line of ``auth.tokens`` says, and how a token is made. Only digests are ever stored."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tornado_persist.errors import ConfigError
from tornado_persist.telemetry.redaction import TOKEN_PREFIX

#: What a token permits. None includes another: ``admin`` alone may delete, but neither write nor read.
Scope: TypeAlias = Literal["write", "flush", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

#: Random bytes of a token: 43 characters.
_RANDOM = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_DIGEST = re.compile(r"[0-9a-fA-F]{64}").fullmatch


@dataclass(frozen=True, slots=True)
class Token:
    """Who a token is, and what it permits."""

    name: str
    scopes: frozenset[Scope]
    digest: bytes  #: SHA-256 of the token's text


#: By digest.
Tokens: TypeAlias = Mapping[bytes, Token]


def make(name: str, scopes: Iterable[Scope]) -> tuple[str, str]:
    """A new token of 256 random bits, and the line that stands for it. Raises ValueError: the name is none."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(_RANDOM)
    line = f"{name}:{','.join(dict.fromkeys(scopes))}:{digest_of(token).hex()}"
    parse(line)
    return token, line


def digest_of(token: str) -> bytes:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).digest()


def parse(line: str) -> Token:
    """Read ``NAME:SCOPE,SCOPE:SHA256-IN-HEX``. Raises ValueError, whose text repeats nothing but names of scopes."""
    name, _, rest = line.partition(":")
    scopes, _, digest = rest.partition(":")
    if TOKEN_PREFIX in line:
        raise ValueError("this is a token itself; here belongs the line that persistd token new prints for it")
    if not _NAME(name):
        raise ValueError("the name has 1 to 64 letters, digits and ._- (a line is NAME:SCOPE,SCOPE:SHA256-IN-HEX)")
    found = [scope.strip() for scope in scopes.split(",")]
    if not all(scope in SCOPES for scope in found):
        raise ValueError(f"the scopes of {name} are some of {', '.join(SCOPES)}, with commas between them")
    if not _DIGEST(digest):
        raise ValueError(f"the last part of {name} should be a SHA-256 of 64 hexadecimal digits")
    return Token(name, frozenset(scope for scope in SCOPES if scope in found), bytes.fromhex(digest))


def collect(listed: Iterable[str], file: Path | None) -> Tokens:
    """The tokens of a list, and those of a file with one a line, comments (``#``) and blank lines.

    Raises:
        ConfigError: the file cannot be read or has none, a line is wrong, or a name or token is there twice.
    """
    tokens: dict[bytes, Token] = {}
    names: set[str] = set()
    lines = [("auth.tokens", f"entry {number}", line) for number, line in enumerate(listed, 1)]
    if file is not None:
        lines += [("auth.tokens_file", f"{file}, line {number}", line) for number, line in _lines(file)]
        if not any(key == "auth.tokens_file" for key, _, _ in lines):
            raise ConfigError("auth.tokens_file", f"{file} has no token")
    for key, place, line in lines:
        try:
            token = parse(line.strip())
            if token.name in names:
                raise ValueError(f"the name {token.name} is there twice")
            if token.digest in tokens:
                raise ValueError(f"{token.name} is the same token as {tokens[token.digest].name}")
        except ValueError as exc:
            raise ConfigError(key, f"{place}: {exc}") from None
        names.add(token.name)
        tokens[token.digest] = token
    return tokens


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with a token, and their numbers from 1."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError("auth.tokens_file", f"{file} cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("auth.tokens_file", f"{file} is not UTF-8") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line
