"""The settings of the service, and the only reader of the configuration file and of the environment."""

from __future__ import annotations

import itertools
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from tornado_persist.errors import ConfigError
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import SinkSettings
from tornado_persist.telemetry import redaction

ENV_PREFIX = "PERSISTD_"
ENV_CONFIG = "PERSISTD_CONFIG"
SYSTEM_FILE = Path("/etc/persistd/persistd.toml")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Table):
    """The HTTP side."""

    host: str = Field(
        "127.0.0.1",
        description="address to listen on; empty: every interface. There is no authentication: keep it inside",
    )
    port: int = Field(8001, ge=0, le=65535, description="TCP port; 0: any free one, named in the log")
    max_batch: int = Field(1000, ge=1, description="rows in a request at most")
    max_body_bytes: int = Field(
        10_485_760, ge=1024, description="bytes of a request body at most, also once decompressed"
    )
    shutdown_timeout: float = Field(10.0, gt=0, le=3600, description="seconds that a stop may take to write what waits")


class Buffer(_Table):
    """When rows are flushed."""

    capacity: int = Field(1000, ge=1, description="rows; reaching it starts a flush")
    flush_interval: float = Field(30.0, ge=0.05, le=86_400, description="seconds from one flush to the next")
    max_rows: int = Field(
        100_000, ge=1, description="rows held in memory at most; past it batches wait in the journal alone"
    )
    flush_timeout: float = Field(8.0, gt=0, le=3600, description="seconds that POST /flush waits at most")


class Journal(_Table):
    """Where accepted batches are until the sink has them."""

    sync: Literal["always", "interval", "off"] = Field(
        "always",
        description="``always`` syncs before the answer, ``interval`` every 500 ms, ``off`` when the system likes",
    )
    segment_bytes: int = Field(67_108_864, ge=4096, description="bytes after which a new segment file begins")
    max_bytes: int = Field(8_589_934_592, ge=4096, description="bytes of the whole journal; past it batches get 503")


class Records(_Table):
    """What a batch may hold."""

    unknown_fields: Literal["ignore", "reject"] = Field(
        "ignore", description="fields that are not in the specification: drop them, or refuse the batch"
    )
    require_session: bool = Field(
        False, description="refuse tasks whose session was neither accepted before nor is in the sink"
    )


class Log(_Table):
    """What is said, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least level that is said; ``debug`` has a line for each request"
    )
    format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="``console`` is for people, ``json`` for machines; ``auto``: console on a terminal, else JSON",
    )
    file: str = Field("", description="a path below ``data_dir``; empty: standard error; ``-``: standard output")
    max_bytes: int = Field(
        104_857_600, ge=0, description="bytes of the file at which it is rotated; 0: never, for logrotate"
    )
    backups: int = Field(5, ge=1, le=1000, description="rotated files that are kept, ``.1`` the newest")


class Settings(BaseSettings):
    """Everything that can be set; :func:`load` makes one."""

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
    server: Server = Server()
    buffer: Buffer = Buffer()
    records: Records = Records()
    journal: Journal = Journal()
    log: Log = Log()
    sinks: dict[str, dict[str, Any]] = Field(default_factory=dict, description="a table for each sink")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        """Messages name the directory, wherever they are read; ``~`` is a home directory."""
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
        """The environment goes before the file, whose content comes as keyword arguments."""
        return env_settings, init_settings

    def sink_settings(self, name: str | None = None) -> SinkSettings:
        """The table of one sink (by default the selected one) as its own model.

        Raises:
            ConfigError: there is no such sink, or its table does not fit it.
        """
        name = name or self.sink
        try:
            model = registry.find(name).Settings
        except ConfigError as exc:
            if name == self.sink:
                raise
            raise ConfigError(f"sinks.{name}", str(exc).removeprefix("sink: ")) from None
        try:
            return model.model_validate(self.sinks.get(name, {}))
        except ValidationError as exc:
            raise _config_error(exc, ("sinks", name)) from None

    def path(self, relative: str) -> Path:
        """A path of the configuration: absolute, or below ``data_dir``."""
        return self.data_dir / relative


def find_file(explicit: str | None = None) -> Path | None:
    """The configuration file: the given one, ``$PERSISTD_CONFIG``, the checkout's, the system's, or none."""
    named = explicit or os.environ.get(ENV_CONFIG)
    if named:
        return Path(named)
    checkout = Path(__file__).resolve().parent.parent
    own = checkout / "conf" / "persistd.toml"
    if (checkout / "setup.py").is_file() and own.is_file():
        return own
    return SYSTEM_FILE if SYSTEM_FILE.is_file() else None


def editor() -> str:
    """The command that opens a file for the user, as a shell would read it."""
    return os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"


def load(file: Path | None, *, sinks: bool = True) -> Settings:
    """Read and check the configuration file (if any) and the environment; without ``sinks`` none of them is imported.

    Raises:
        ConfigError: something in them is wrong; its message is one line that names the key.
    """
    content = _read(file) if file else {}
    _refuse_unknown_variables()
    try:
        settings = Settings(**content)
    except ValidationError as exc:
        raise _config_error(exc) from None
    except ValueError as exc:  # pydantic-settings: a variable for a whole table that is no JSON
        raise ConfigError("", str(exc).splitlines()[0]) from None
    # Before they are looked at more closely: what is wrong with one must not show it either.
    for table in settings.sinks.values():
        redaction.hide(value for value in table.values() if isinstance(value, str) and "://" in value)
    for name in sorted({settings.sink, *settings.sinks}) if sinks else ():
        values = [value for _, value in settings.sink_settings(name)]
        redaction.hide(value.get_secret_value() for value in values if isinstance(value, SecretStr))
    return settings


def find_data_dir(file: Path | None) -> Path:
    """``data_dir`` alone, for commands that must work whatever else is wrong in the configuration.

    Raises:
        ConfigError: the file cannot be read, or it is ``data_dir`` that is wrong.
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
    variable = _variable_of(os.environ, (key,))
    return os.environ[variable] if variable else None


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as exc:
        raise ConfigError(str(file), f"cannot be read: {exc.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(str(file), f"is not valid TOML: {exc}") from None


def _refuse_unknown_variables() -> None:
    """pydantic-settings looks only for the variables it knows, so that a misspelt one would go unnoticed."""
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENV_PREFIX) and variable != ENV_CONFIG:
            first = variable[len(ENV_PREFIX) :].lower().split("__")[0]
            if first not in Settings.model_fields:
                raise ConfigError(variable, "this environment variable names no setting")


def _config_error(exc: ValidationError, prefix: tuple[str, ...] = ()) -> ConfigError:
    error = exc.errors(include_url=False, include_input=False)[0]
    path = (*prefix, *map(str, error["loc"]))
    # The last step may be pydantic's name of a union's branch rather than a key; a variable is named as it was written.
    variable = _variable_of(os.environ, path)
    message = "this key is not known" if error["type"] == "extra_forbidden" else error["msg"]
    return ConfigError(variable or ".".join(path), message.removeprefix("Value error, "))


def _variable_of(environ: Mapping[str, str], path: tuple[str, ...]) -> str | None:
    wanted = (ENV_PREFIX + "__".join(path)).upper()
    return next((variable for variable in environ if variable.upper() == wanted), None)
