"""All settings, read from the file and the environment, and errors that name the place of each mistake."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from tornado_persist.config import tokens
from tornado_persist.config.tables import TLS, Auth, Buffer, Journal, Log, Records, Retention, Server
from tornado_persist.errors import ConfigError
from tornado_persist.files import INSTANCE_NAME
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.telemetry import redaction

ENV_PREFIX = "PERSISTD_"
ENV_CONFIG = "PERSISTD_CONFIG"
#: The token that commands send to the service, or a file that holds it.
ENV_TOKEN, ENV_TOKEN_FILE = "PERSISTD_TOKEN", "PERSISTD_TOKEN_FILE"
SYSTEM_FILE = Path("/etc/persistd/persistd.toml")

#: Names and values of the variables by which Kubernetes announces a Service to the containers of its namespace.
_SERVICE_LINKS = [
    (re.compile(ENV_PREFIX + name), re.compile(value))
    for name, value in (
        (r"(\w+_)?SERVICE_HOST", r""),
        (r"(\w+_)?SERVICE_PORT(_\w+)?", r"\d+$"),
        (r"(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://"),
        (r"(\w+_)?PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", r""),
    )
]


class _Environment(EnvSettingsSource):
    """The variables, with the contents of the files that ``PERSISTD_..._FILE`` name."""

    def _load_env_vars(self) -> dict[str, str | None]:
        found = dict(super()._load_env_vars())
        for variable, target, file in _file_variables():
            found.pop(variable.lower(), None)
            with suppress(OSError, UnicodeDecodeError):
                found[_variable(target).lower()] = _content(file)
        return found


class Settings(BaseSettings):
    """All settings; :func:`load` reads them."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=False
    )

    data_dir: Path = Field(
        Path("data"),
        validate_default=True,
        description="holds everything that has no path of its own; relative to the working directory",
    )
    sink: str = Field(
        "sqlite",
        min_length=1,
        description="which sink receives the flushes: a built-in one, each with its table below, or a plugin's name",
    )
    instance: str = Field(
        "",
        pattern=rf"^({INSTANCE_NAME})?$",
        description="the name of this instance in log, figures and metrics; empty: one that is made once and kept in"
        " ``data_dir``",
    )
    server: Server = Server()
    auth: Auth = Auth()
    tls: TLS = TLS()
    buffer: Buffer = Buffer()
    records: Records = Records()
    journal: Journal = Journal()
    retention: Retention = Retention()
    log: Log = Log()
    sinks: dict[str, dict[str, Any]] = Field(default_factory=dict, description="a table for each sink")

    #: The sinks' tables once they are read, with what stood in their files then.
    _sinks: dict[str, SinkSettings] = PrivateAttr(default_factory=dict)

    def with_sinks(self, other: Settings, update: dict[str, Any]) -> Settings:
        """A copy with these values, and the sinks' tables of ``other`` as they were read."""
        copy = self.model_copy(update=update)
        copy._sinks = other._sinks
        return copy

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        """An absolute path, so that messages name the directory; ``~`` is the home directory."""
        try:
            return path.expanduser().absolute()
        except RuntimeError as exc:
            raise ValueError(str(exc)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment variables override the file, whose content comes as keyword arguments."""
        return _Environment(settings_cls), init_settings

    def sink_settings(self, name: str | None = None) -> SinkSettings:
        """The table of one sink (by default the selected one) as its own model.

        Raises:
            ConfigError: there is no such sink, or its table does not fit it.
        """
        name = name or self.sink
        try:
            if name not in self._sinks:
                self._sinks[name] = _sink_model(name, self.sink).model_validate(self.sinks.get(name, {}))
            return self._sinks[name]
        except ValidationError as exc:
            raise ConfigError.of([mistake.error() for mistake in _mistakes(exc, ("sinks", name))]) from None

    @property
    def unix_socket(self) -> Path | None:
        """The Unix socket to listen on."""
        return self.path(self.server.unix_socket) if self.server.unix_socket else None

    def read_tokens(self) -> tokens.Tokens:
        """Who may come in, read from the list and the file now.

        Raises:
            ConfigError: an entry or a line is wrong, or there is none and ``auth.anonymous`` wants one.
        """
        file = self.path(self.auth.tokens_file) if self.auth.tokens_file else None
        found = tokens.collect(self.auth.tokens, file)
        if self.auth.anonymous == "never" and not found:
            raise ConfigError("auth.anonymous", "never needs a token in auth.tokens or auth.tokens_file")
        return found

    def path(self, relative: str) -> Path:
        """A path from the configuration, below ``data_dir`` unless it is absolute."""
        return self.data_dir / relative


def find_file(explicit: str | None = None) -> Path | None:
    """The configuration file: the given one, ``$PERSISTD_CONFIG``, the checkout's, the system's, or none."""
    named = explicit or os.environ.get(ENV_CONFIG)
    if named:
        return Path(named)
    checkout = Path(__file__).resolve().parents[2]
    own = checkout / "conf" / "persistd.toml"
    if (checkout / "setup.py").is_file() and own.is_file():
        return own
    return SYSTEM_FILE if SYSTEM_FILE.is_file() else None


def editor() -> str:
    """The user's editor, as a shell command."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"


def token() -> str:
    """The token that commands send: ``$PERSISTD_TOKEN``, or the content of ``$PERSISTD_TOKEN_FILE``; empty: none.

    Raises:
        ConfigError: both are there, the file cannot be read, or what they hold cannot be sent.
    """
    found, file = os.environ.get(ENV_TOKEN, ""), os.environ.get(ENV_TOKEN_FILE, "")
    if found and file:
        raise ConfigError(ENV_TOKEN, f"is there as well as {ENV_TOKEN_FILE}; one of them is enough")
    if file:
        try:
            found = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ConfigError(ENV_TOKEN_FILE, f"{file} cannot be read: {reason}") from None
        if not found:
            raise ConfigError(ENV_TOKEN_FILE, f"{file} is empty")
    redaction.hide([found])
    if not re.fullmatch(r"[!-~]*", found):
        raise ConfigError(ENV_TOKEN_FILE if file else ENV_TOKEN, "a token has no blanks and no letters beyond ASCII")
    return found


def load(file: Path | None, *, sinks: bool = True) -> Settings:
    """Read and check the configuration file (if any) and the environment; without ``sinks`` none of them is imported,
    and the tokens' file is not read.

    Raises:
        ConfigError: something in them is wrong. It has a line for each mistake, with file and line or the variable,
            the key, and for an unknown key the one that was perhaps meant.
    """
    content = _without_overridden(_read(file) if file else {})
    wrong = list(_unknown_variables())
    settings, found = _validate(content)
    wrong += found
    # Before the sinks look at them more closely: what is wrong with one must not show it either.
    merged = _merged(content)
    tables = merged["sinks"] if isinstance(merged.get("sinks"), dict) else {}
    for table in tables.values():
        values = table.values() if isinstance(table, dict) else [table]
        redaction.hide(value for value in values if isinstance(value, str) and "://" in value)
    selected = merged.get("sink", Settings.model_fields["sink"].default)
    for name in sorted({selected, *tables} if isinstance(selected, str) else tables) if sinks else ():
        if not isinstance(tables.get(name, {}), dict):
            continue  # among the mistakes already
        try:
            model = _sink_model(name, selected).model_validate(tables.get(name, {}))
        except ConfigError as exc:
            wrong.append(_Mistake(tuple(exc.key.split(".")), str(exc).removeprefix(f"{exc.key}: ")))
        except ValidationError as exc:
            wrong += _mistakes(exc, ("sinks", name))
        else:
            redaction.hide(value.get_secret_value() for _, value in model if isinstance(value, SecretStr))
    if settings is not None and sinks:
        try:
            settings.read_tokens()
        except ConfigError as exc:
            wrong.append(_Mistake(tuple(exc.key.split(".")), str(exc).removeprefix(f"{exc.key}: ")))
    if settings is None or wrong:
        text = file.read_text(encoding="utf-8", errors="replace") if file else ""
        wrong.sort(key=lambda mistake: _line_of(mistake.path, text) or 0)
        raise ConfigError.of([mistake.error(file, text) for mistake in wrong])
    if sinks:
        settings.sink_settings()
    return settings


def find_data_dir(file: Path | None) -> Path:
    """``data_dir`` alone, for commands that must work even if other settings are wrong.

    Raises:
        ConfigError: the file cannot be read, or ``data_dir`` is wrong.
    """
    found: Any = _environ("data_dir")
    if found is None and file:
        try:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as exc:
            raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from None
        top = itertools.takewhile(lambda line: not line.lstrip().startswith("["), lines)
        line = next((line for line in top if re.match(r"\s*data_dir\s*=", line)), "")
        try:
            found = tomllib.loads(line).get("data_dir")
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(str(file), f"is not valid TOML: {exc}") from None
    if found is not None and not isinstance(found, str):
        raise ConfigError("data_dir", "it is no text")
    return Path("data" if found is None else found).expanduser().absolute()


def _environ(key: str) -> str | None:
    return _Environment(Settings).env_vars.get(_variable((key,)).lower())


def _file_variables() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Variables that name a file with a value, as Docker's secrets do: the variable, the key, the file."""
    known = set(_known_keys())
    for variable, file in os.environ.items():
        name = variable.upper().removeprefix(ENV_PREFIX).lower()
        if name == variable.lower() or not name.endswith("_file"):
            continue
        path = tuple(name.split("__"))
        target = (*path[:-1], path[-1].removesuffix("_file"))
        if target[:1] == ("sinks",) and len(target) == 3:
            with suppress(ConfigError):
                fields = registry.find(target[1]).Settings.model_fields
                if path[-1] not in fields and target[-1] in fields:
                    yield variable, target, file
        elif path not in known and target in known:
            yield variable, target, file


def _content(file: str) -> str:
    return Path(file).read_text(encoding="utf-8").rstrip("\r\n")


def _without_overridden(content: dict[str, Any]) -> dict[str, Any]:
    """A variable for ``url`` or ``url_file`` of a sink overrides both in the file."""
    tables = content.get("sinks")
    try:
        over = _Environment(Settings)().get("sinks")
    except SettingsError:
        return content
    if not isinstance(tables, dict) or not isinstance(over, dict):
        return content
    kept = dict(tables)
    for name, table in over.items():
        if isinstance(table, dict) and isinstance(kept.get(name), dict) and {"url", "url_file"} & table.keys():
            kept[name] = {key: value for key, value in kept[name].items() if key not in ("url", "url_file")}
    return {**content, "sinks": kept}


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as exc:
        raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(str(file), f"is not valid TOML: {exc}") from None


@dataclass(frozen=True, slots=True)
class _Mistake:
    """What is wrong with a key; ``near`` is a known key that was perhaps meant, ``variable`` the one that is wrong."""

    path: tuple[str, ...]
    problem: str
    near: tuple[str, ...] = ()
    variable: str = ""

    def error(self, file: Path | None = None, text: str = "") -> ConfigError:
        """For people, with the place: the environment variable, or the line in the file with this text."""
        # A variable overrides the file. The last step may be pydantic's name of a union's branch rather than a key.
        if variable := self.variable or _variable_of(self.path):
            return ConfigError(variable, self.problem + self._hint(_variable(self.near)))
        near = self.near[-1] if self.near and self.near[:-1] == self.path[:-1] else ".".join(self.near)
        number = _line_of(self.path, text)
        if number is None and (variable := next(filter(None, map(_variable_of, _parents(self.path))), "")):
            place = variable  # the whole table as JSON
        else:
            place = f"{file}, line {number}" if number else str(file or "")
        return ConfigError(".".join(self.path), self.problem + self._hint(near), place=place)

    @staticmethod
    def _hint(near: str) -> str:
        return f" (did you mean {near}?)" if near else ""


def _validate(content: dict[str, Any]) -> tuple[Settings | None, list[_Mistake]]:
    try:
        return Settings(**content), []
    except ValidationError as exc:
        return None, _mistakes(exc)
    except SettingsError as exc:  # a variable for a whole table
        field = re.search(r'field "(\w+)"', str(exc))
        path = (field[1],) if field else ()
        return None, [_Mistake(path, "is not valid JSON", variable=_variable_of(path) or _variable(path))]


def _mistakes(exc: ValidationError, prefix: tuple[str, ...] = ()) -> list[_Mistake]:
    found = []
    for error in exc.errors(include_url=False, include_input=False):
        path = (*prefix, *map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            found.append(_Mistake(path, "this key is not known", _nearest(path)))
        elif error["type"] in ("model_type", "dict_type"):
            found.append(_Mistake(path, "should be a table"))
        else:
            found.append(_Mistake(path, error["msg"].removeprefix("Value error, ")))
    return found


def _sink_model(name: str, selected: str) -> type[SinkSettings]:
    try:
        return registry.find(name).Settings
    except ConfigError as exc:
        if name == selected:
            raise
        raise ConfigError(f"sinks.{name}", str(exc).removeprefix("sink: ")) from None


def _merged(content: dict[str, Any]) -> dict[str, Any]:
    """What the file and the environment say, unchecked."""
    try:
        return _over(content, _Environment(Settings)())
    except SettingsError:
        return content


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def _unknown_variables() -> Iterator[_Mistake]:
    """pydantic-settings looks only for the variables it knows, so that a misspelt one would go unnoticed."""
    files = {variable: (target, file) for variable, target, file in _file_variables()}
    for variable, value in sorted(os.environ.items()):
        if variable in files:
            target, file = files[variable]
            if any(name.upper() == _variable(target) for name in os.environ):
                yield _Mistake(target, f"{_variable(target)} is set, too; remove one of them", variable=variable)
            try:
                _content(file)
            except (OSError, UnicodeDecodeError) as exc:
                problem = getattr(exc, "strerror", "") or "it is no text"
                yield _Mistake(target, f"{file} cannot be read: {problem}", variable=variable)
            continue
        known = not variable.upper().startswith(ENV_PREFIX) or variable in (ENV_CONFIG, ENV_TOKEN, ENV_TOKEN_FILE)
        if known or _is_service_link(variable, value):
            continue
        path = tuple(variable[len(ENV_PREFIX) :].lower().split("__"))
        if path[0] not in Settings.model_fields:
            yield _Mistake(path, "this environment variable names no setting", _nearest(path), variable)


def _is_service_link(variable: str, value: str) -> bool:
    """Whether Kubernetes has set the variable, for a Service called ``persistd`` or ``persistd-...``."""
    return any(name.fullmatch(variable) and form.match(value) for name, form in _SERVICE_LINKS)


def _known_keys() -> Iterator[tuple[str, ...]]:
    for name, field in Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from ((name, key) for key in model.model_fields)
        elif name != "sinks":
            yield (name,)


def _nearest(path: tuple[str, ...]) -> tuple[str, ...]:
    """The known key that was perhaps meant: of the same table, else one spelt alike, else one with this name."""
    table, known = path[:-1], list(_known_keys())
    if table[:1] == ("sinks",) and len(table) == 2:
        with suppress(ConfigError):
            known += [(*table, key) for key in registry.find(table[1]).Settings.model_fields]
    tables = {key[:1] for key in known} if not table else set()
    whole = {"_".join(key): key for key in known}
    if "_".join(path) in whole:  # a variable with one underscore for two
        return whole["_".join(path)]
    same = {key[-1]: key for key in (*known, *tables) if key[:-1] == table}
    if near := get_close_matches(path[-1], same, 1):
        return same[near[0]]
    if near := get_close_matches("_".join(path), whole, 1, 0.8):
        return whole[near[0]]
    names = {key[-1]: key for key in known}
    near = get_close_matches(path[-1], names, 1, 0.7)
    return names[near[0]] if near else ()


def _line_of(path: tuple[str, ...], text: str) -> int | None:
    """The line of a key, or of its table; counted from 1. None if it is not known."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif key := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            found.setdefault((*table, *_parts(key[1])), number)
    return next((found[part] for part in (path, *_parents(path)) if part in found), None)


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in key.split("."))


def _parents(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [path[:length] for length in range(len(path) - 1, 0, -1)]


def _variable(path: tuple[str, ...]) -> str:
    return (ENV_PREFIX + "__".join(path)).upper() if path else ""


def _variable_of(path: tuple[str, ...]) -> str:
    """The environment variable that sets a key, as it was written; empty if none does."""
    wanted = (_variable(path), f"{_variable(path)}_FILE")
    found = (variable for variable in os.environ if path and variable.upper() in wanted)
    return next((variable for variable in found if not _is_service_link(variable, os.environ[variable])), "")
