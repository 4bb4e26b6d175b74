"""The directive ``settings``: every key of the configuration, read from the models that check it.

What a key means is the ``description`` of its field, or the ``#:`` comment above it; default, limits and the name of
the environment variable follow from the field; whether a reload applies it the service says.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from docutils import nodes
from pydantic import BaseModel, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from tornado_persist import service
from tornado_persist.config import loading
from tornado_persist.sinks import registry
from tornado_persist.sinks.base import read_seconds, read_size

_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}


@dataclass(frozen=True)
class Key:
    """One key as the reference shows it."""

    name: str
    kind: str
    default: str
    meaning: str
    variable: str
    live: bool


@dataclass(frozen=True)
class Table:
    """A table of the file, ``""`` being the keys before all of them."""

    name: str
    about: str
    keys: tuple[Key, ...]


def tables() -> Iterator[Table]:
    """The whole configuration, in the order in which it is written."""
    top, nested = [], []
    for name, field in loading.Settings.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            nested.append((name, model))
        elif name != "sinks":
            top.append(_key(loading.Settings, name, field, name))
    yield Table("", "", tuple(top))
    for name, model in nested:
        yield _table(name, model)
    for sink in registry.BUILT_IN:
        yield _table(f"sinks.{sink}", registry.find(sink).Settings)


def _table(name: str, model: type[BaseModel]) -> Table:
    about = inspect.getdoc(model) or ""
    keys = tuple(_key(model, field_name, field, f"{name}.{field_name}") for field_name, field in _fields(model))
    return Table(name, "" if about.startswith("``[") else about, keys)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """A sink's own keys before those that it shares with others."""
    own = [name for name in model.model_fields if name in model.__annotations__]
    for name in [*own, *(name for name in model.model_fields if name not in own)]:
        yield name, model.model_fields[name]


def _key(model: type[BaseModel], name: str, field: FieldInfo, path: str) -> Key:
    return Key(
        name=path,
        kind=_kind(field),
        default=_default(field.default),
        meaning=field.description or _comment(model, name),
        variable=f"{loading.ENV_PREFIX}{path.upper().replace('.', '__')}",
        live=path.startswith(service.LIVE),
    )


def _comment(model: type[BaseModel], name: str) -> str:
    """The ``#:`` comment above a field, of the class that has it first."""
    for base in model.__mro__:
        if name in inspect.get_annotations(base):
            comments = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
            return " ".join(comments.get((base.__name__, name), [])).strip()
    return ""


def _kind(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"``{json.dumps(choice)}``" for choice in get_args(field.annotation))
    if field.annotation is SecretStr:
        return "URL, never shown with its password"
    if get_origin(field.annotation) is tuple:
        return "list of texts"
    kind = _TYPES[getattr(field.annotation, "__name__", "")]
    units = {
        read_size: "size in bytes, or with a unit",
        read_seconds: "duration in seconds, or with a unit",
    }
    kind = next((units[it.func] for it in field.metadata if isinstance(it, BeforeValidator) and it.func in units), kind)
    limits = [_limit(limit) for limit in field.metadata]
    return ", ".join([kind, *filter(None, limits)])


def _limit(limit: Any) -> str:
    match limit:
        case Ge():
            return f"at least {limit.ge}"
        case Gt():
            return f"more than {limit.gt}"
        case Le():
            return f"at most {limit.le}"
        case MinLen():
            return "not empty"
    return ""  # a pattern: only characters that no path may have


def _default(value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return json.dumps(value if isinstance(value, bool | int | float | tuple) else str(value))


class SettingsDirective(SphinxDirective):
    """Writes the tables out."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the settings are no file of this project, whose change it would see
        lines: list[str] = []
        for table in tables():
            title = f"[{table.name}]" if table.name else "Before the first table"
            lines += [title, "-" * len(title), "", table.about, ""]
            for key in table.keys:
                lines += [f".. confval:: {key.name}", f"   :type: {key.kind}", f"   :default: ``{key.default}``", ""]
                lines += [f"   {_sentence(key.meaning)}", ""]
                reload = "applies it" if key.live else "names it in the log; it needs a restart"
                lines += [f"   Environment: ``{key.variable}``. A reload (SIGHUP) {reload}.", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _sentence(text: str) -> str:
    """As a sentence of its own."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def setup(app: Sphinx) -> ExtensionMetadata:
    app.add_directive("settings", SettingsDirective)
    return {"parallel_read_safe": True}
