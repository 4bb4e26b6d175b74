"""What the API's description says of the endpoints that read rows back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from tornado_persist.records.models import FIELDS, KINDS, STATUSES, Kind
from tornado_persist.records.queries import SHOWN
from tornado_persist.web.reading import FILTERS, MOST_ROWS, MOST_UNFINISHED, SINCE, USUAL_LIMIT

_STRING = {"type": "string"}
_TEXT = {"type": "string", "pattern": r"^[^\x00]*$"}
_TIME = {"type": "string", "format": "iso8601"}
_KEY = {"type": "string", "minLength": 1}
_TIMES = ("created_at", "updated_at", "start_time", "end_time")


def schemas() -> dict[str, Any]:
    """The schemas of their answers, by name."""
    number = {"type": "integer", "minimum": 0}
    progress = {
        "tasks": {"type": "object", "additionalProperties": number, "description": "stored tasks of each status"},
        "progress": {"type": "number", "minimum": 0, "maximum": 100, "description": "percent"},
    }
    pending = {**number, "description": "accepted rows that are not in the database yet"}
    made: dict[str, Any] = {}
    for kind in KINDS:
        name = f"Stored{kind.capitalize()}"
        more = progress if kind == "session" else {}
        made[name] = {
            "type": "object",
            "description": f"A {kind} as it is stored; `fields` may leave fields out.",
            "properties": {**{field: _stored(kind, field) for field in SHOWN[kind]}, **more, "pending": pending},
        }
        made[f"{name}Page"] = {
            "type": "object",
            "description": "Rows in the order of their keys.",
            "properties": {
                "items": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
                "next": {"type": ["string", "null"], "description": "what `after` takes for the next page"},
                "next_url": {"type": ["string", "null"]},
                "pending": pending,
                "total": {**number, "description": "with `count=true`"},
            },
            "required": ["items", "next", "next_url", "pending"],
        }
    made["Restored"] = {
        "type": "object",
        "description": "A session and its unfinished tasks.",
        "properties": {
            "session": {"$ref": "#/components/schemas/StoredSession"},
            "tasks": {"type": "array", "items": {"$ref": "#/components/schemas/StoredTask"}},
            "truncated": {"type": "boolean", "description": "whether there are more unfinished tasks"},
            "pending": pending,
        },
        "required": ["session", "tasks", "truncated", "pending"],
    }
    return made


def _some(names: Iterable[str]) -> dict[str, Any]:
    """Some of these names, with commas between them."""
    one = "|".join(map(re.escape, names))
    return {"type": "string", "pattern": f"^(?:{one})(?:,(?:{one}))*$"}


def _stored(kind: Kind, field: str) -> dict[str, Any]:
    if field in ("game_info", "metadata", "extra"):
        return {"type": ["object", "null"]}
    if field in _TIMES:
        return {"type": ["string", "null"], "description": "in UTC, with +00:00"}
    declared = str(FIELDS[kind][field].type)
    json_type = "integer" if "int" in declared else "number" if "float" in declared else "string"
    return {"type": [json_type, "null"]}


Operation = Callable[..., dict[str, Any]]


def paths(
    prefix: str, operation: Operation, responses: Operation, statuses: tuple[str, ...] = STATUSES
) -> dict[str, Any]:
    """Their paths. ``operation`` and ``responses`` are those of the module ``openapi``."""

    def parameter(name: str, schema: dict[str, Any], said: str) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": said, "schema": schema}

    def path_key(name: str) -> dict[str, Any]:
        return {"name": name, "in": "path", "required": True, "schema": _KEY, "description": "percent-encoded"}

    flag = {"type": "boolean"}
    fresh = parameter("fresh", flag, "whether all rows accepted before are written first")

    def fields(kind: Kind) -> dict[str, Any]:
        return parameter("fields", _some(SHOWN[kind]), "only these fields, with commas between them, and the key")

    def paging(kind: Kind, *, filters: bool = True, counts: bool = False) -> list[dict[str, Any]]:
        forms = {"status": _some(statuses)}
        said = {"status": f"some of {', '.join(statuses)}, with commas between them"}
        names = FILTERS[kind] if filters else tuple(name for name in FILTERS[kind] if name != "status")
        return [
            *(
                parameter(name, forms.get(name, _TEXT), said.get(name, "rows with exactly this value"))
                for name in names
            ),
            *(parameter(name, _TIME, "rows of this time or later (ISO 8601)") for name in SINCE),
            *([parameter("counts", flag, "with `tasks` and `progress` of each session")] if counts else []),
            parameter(
                "limit", {"type": "integer", "minimum": 1, "maximum": MOST_ROWS}, f"rows; {USUAL_LIMIT} by default"
            ),
            parameter("after", _STRING, "`next` of the answer before, for the same conditions"),
            parameter("count", flag, "with `total`, the number of all rows that meet the conditions"),
            fields(kind),
            fresh,
        ]

    def both(
        name: str, said: str, answer: str, parameters: list[dict[str, Any]], *keys: str, row: bool = False
    ) -> dict[str, Any]:
        found = _statuses(answer, row=row)
        empty = {status: (text, None) for status, (text, _) in found.items()}
        made = {}
        for method, suffix, answers in (
            ("get", "", responses(found, retry=True)),
            ("head", "Head", responses(empty, retry=True, bodies=False)),
        ):
            described = operation(f"{name}{suffix}", said, "reading", answers)
            described["parameters"] += [*map(path_key, keys), *parameters]
            made[method] = described
        return made

    restore = operation(
        "restoreSession",
        "A session and its unfinished tasks, to go on with",
        "reading",
        responses(_statuses("Restored", row=True), retry=True),
        f"At most {MOST_UNFINISHED} tasks, in the order of sheets and rows. Changes nothing.",
    )
    restore["parameters"] += [path_key("session_id"), fresh]
    session, task = f"{prefix}/sessions/{{session_id}}", f"{prefix}/sessions/{{session_id}}/tasks/{{task_id}}"
    return {
        f"{prefix}/sessions": both("listSessions", "Sessions", "StoredSessionPage", paging("session", counts=True)),
        session: both(
            "getSession",
            "One session, with its progress",
            "StoredSession",
            [fields("session"), fresh],
            "session_id",
            row=True,
        ),
        f"{session}/tasks": both(
            "listSessionTasks", "The tasks of a session", "StoredTaskPage", paging("task"), "session_id", row=True
        ),
        task: both("getTask", "One task", "StoredTask", [fields("task"), fresh], "session_id", "task_id", row=True),
        f"{prefix}/tasks": both("listTasks", "Tasks of all sessions", "StoredTaskPage", paging("task")),
        f"{prefix}/recovery/incomplete-sessions": both(
            "incompleteSessions",
            "Sessions that are neither completed nor failed",
            "StoredSessionPage",
            paging("session", filters=False, counts=True),
        ),
        f"{prefix}/recovery/restore/{{session_id}}": {"post": restore},
    }


def _statuses(answer: str, *, row: bool) -> dict[int, tuple[str, dict[str, Any]]]:
    error = {"$ref": "#/components/schemas/Error"}
    found = {
        200: ("What is stored.", {"$ref": f"#/components/schemas/{answer}"}),
        400: ("The path or the query string is no UTF-8.", error),
        422: ("A parameter is unknown or wrong.", error),
        501: ("The sink offers no reads.", error),
        503: (
            "The database cannot be read or written now, the read took over 5 seconds, or clients do not take answers.",
            error,
        ),
    }
    return {**found, 404: ("There is no such row.", error)} if row else found
