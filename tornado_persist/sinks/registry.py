"""Sinks by name: the built-in ones, then those that installed packages offer.

A package offers a sink by an entry point in the group ``tornado_persist.sinks``, whose name is the word that selects it
(the class's own ``name``)::

    [project.entry-points."tornado_persist.sinks"]
    elastic = "persist_elastic:ElasticSink"

The built-in names are reserved: a package that offers one of them is ignored, and :func:`shadowed` lists it.
Nothing is imported before it is asked for by name, so a service that writes to SQLite loads no other driver.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tornado_persist.errors import ConfigError
from tornado_persist.sinks.base import Sink, SinkSettings

GROUP = "tornado_persist.sinks"

BUILT_IN: Mapping[str, str] = {
    "jsonl": "tornado_persist.sinks.jsonl:JSONLSink",
    "mysql": "tornado_persist.sinks.mysql:MySQLSink",
    "postgres": "tornado_persist.sinks.postgres:PostgresSink",
    "sqlite": "tornado_persist.sinks.sqlite:SQLiteSink",
}


def names() -> list[str]:
    """Every name that :func:`find` knows, sorted."""
    return sorted({*BUILT_IN, *entry_points(group=GROUP).names})


def shadowed() -> list[str]:
    """For the log: entry points that are ignored because a built-in sink has their name."""
    return [_describe(entry) for name in BUILT_IN for entry in _offers(name)]


def find(name: str) -> type[Sink[Any]]:
    """The class of the sink that the configuration calls ``name``.

    Raises:
        ConfigError: no package offers it, or two do, or it cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        try:
            built_in: type[Sink[Any]] = getattr(import_module(module), attribute)
        except ImportError as exc:  # its driver is missing, or lacks a library
            raise ConfigError("sink", f"{name} cannot be loaded: {exc}") from exc
        return built_in
    offers = _offers(name)
    if not offers:
        raise ConfigError("sink", f"there is no sink {name!r}; known: {', '.join(names())}")
    if len(offers) > 1:
        raise ConfigError("sink", f"{name} is offered more than once: {'; '.join(map(_describe, offers))}")
    return _load(offers[0])


def _offers(name: str) -> list[EntryPoint]:
    # A distribution can be listed twice, as a checkout and as an installation: that is one offer.
    found = {(entry.value, _distribution(entry)): entry for entry in entry_points(group=GROUP, name=name)}
    return list(found.values())


def _load(entry: EntryPoint) -> type[Sink[Any]]:
    try:
        found = entry.load()
    except Exception as exc:  # not our module: whatever it raises, the start ends with one line
        problem = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise ConfigError("sink", f"{_describe(entry)} cannot be loaded: {problem}") from exc
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise ConfigError("sink", f"{_describe(entry)} is no subclass of {Sink.__module__}.Sink")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError("sink", f"{_describe(entry)} lacks {missing}")
    if getattr(found, "name", None) != entry.name:
        raise ConfigError("sink", f"{_describe(entry)} calls itself {getattr(found, 'name', None)!r}")
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, SinkSettings)):
        raise ConfigError("sink", f"{_describe(entry)} has no Settings derived from SinkSettings")
    return found


def _describe(entry: EntryPoint) -> str:
    return f"{entry.name} = {entry.value} of {_distribution(entry)}"


def _distribution(entry: EntryPoint) -> str:
    dist = entry.dist
    return f"{dist.name} {dist.version}" if dist else "an unknown distribution"
