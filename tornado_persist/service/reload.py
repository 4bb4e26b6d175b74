"""What a reload of the configuration changes in a running service, and what it leaves for the next start."""

from __future__ import annotations

from typing import Any, NamedTuple

from tornado_persist import listening
from tornado_persist.config.loading import Settings
from tornado_persist.errors import ConfigError
from tornado_persist.service.parts import make_sink, make_tls, writers

#: Keys that a reload applies; all others need a restart.
LIVE = ("sink", "sinks", "auth", "tls", "buffer", "retention", "log.level")


class Plan(NamedTuple):
    """What to do."""

    settings: Settings  #: those in effect afterwards
    tls: listening.TLS | None  #: likewise
    new_sink: bool  #: whether a sink has to be opened
    applied: list[str]  #: keys
    needs_restart: list[str]  #: keys that differ and keep their old values


def plan_reload(old: Settings, new: Settings, tls: listening.TLS | None, *, new_tokens: bool) -> Plan:
    """Compare the settings in effect with those of the file; ``tls`` is in effect; blocking.

    Raises:
        ConfigError: a file of ``[tls]`` cannot be used, the number of writers would change, or the sink that stays
            cannot delete, and ``[retention]`` asks for that.
    """
    before, after = writers(old.sink_settings()), writers(new.sink_settings())
    if before != after:
        # Rows in memory were merged without the times of their fields, or have some that the other tables lack.
        problem = f'from "{before}" to "{after}" needs a restart, which merges the waiting rows anew'
        raise ConfigError(f"sinks.{new.sink}.writers", problem)
    changed = _changed(old, new)
    if new_tokens and not any(key.startswith("auth.") for key in changed):
        changed = sorted([*changed, "auth.tokens_file"])  # the file's content is in no setting
    applied = [key for key in changed if key.startswith(LIVE)]
    needs_restart = [key for key in changed if not key.startswith(LIVE)]
    live = {name: getattr(new, name) for name in ("sink", "sinks", "auth", "tls", "buffer", "retention")}
    settings = old.with_sinks(new, {**live, "log": old.log.model_copy(update={"level": new.log.level})})
    new_tls = make_tls(settings)
    if (new_tls is None) != (tls is None):  # http would become https, or the other way round
        needs_restart += [key for key in applied if key.startswith("tls.")]
        applied = [key for key in applied if not key.startswith("tls.")]
        settings, new_tls = settings.model_copy(update={"tls": old.tls}), tls
    elif new_tls and tls and new_tls.certificate != tls.certificate and "tls.cert" not in applied:
        applied.append("tls.cert")
    new_sink = (old.sink, old.sink_settings()) != (new.sink, new.sink_settings())
    if new_sink and not any(key.startswith("sink") for key in applied):
        applied.append(f"sinks.{new.sink}.url_file")
    if not new_sink:
        make_sink(settings)  # it may not be able to do what [retention] asks for now; a new one is opened later
    return Plan(settings, new_tls, new_sink, applied, needs_restart)


def _changed(old: Settings, new: Settings) -> list[str]:
    """Dotted keys whose values differ."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    return [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
