"""The description of the HTTP interface (OpenAPI 3.1), made from the types that validate and the limits in force."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from tornado_persist import __version__
from tornado_persist.records.models import DEFAULTS, KINDS, MAX_KEY, PLURALS, STATUSES, Kind, Session, Task
from tornado_persist.records.rules import UnknownFields
from tornado_persist.web import openapi_reading, openapi_security
from tornado_persist.web import schemas as answers
from tornado_persist.web.base import GetHandler
from tornado_persist.web.queries import MOST_DAYS

PREFIX = "/api/v1/persistence"
REFS = "#/components/schemas/"

_NO_NUL = r"^[^\x00]*$"


#: Values of a JSON field, apart from the limit on its depth; and values of an ignored field. In words: a schema would
#: refer to itself, which generators of clients reject.
_STORED: dict[str, Any] = {"description": "Any JSON without NUL characters, with numbers in the range of a double."}
_IGNORED: dict[str, Any] = {
    "description": "A field that is not in the list is ignored; it must not hold a NUL character."
}

#: Parts of the types' patterns, and what the description says instead.
_EXACT = {
    # Not every reader of a schema knows Unicode's classes; these are all of Cc.
    r"\p{Cc}": r"\x00-\x1f\x7f-\x9f",
    # The types leave ranges to the parser of times.
    r"-\d\d-\d\d[T ]\d\d:\d\d": r"-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[T ](?:[01]\d|2[0-3]):[0-5]\d",
    r"(?::\d\d": r"(?::[0-5]\d",
}

#: Answers other than JSON.
_TEXT, _PAGE = {"type": "string"}, ("text/html",)

_INTRODUCTION = """\
The service makes batches of sessions and tasks durable at once, and writes them to a database later, merged by key.

**The merge rule.** Every update carries the required fields. An optional field that is left out keeps its stored value,
an explicit `null` clears it, a value replaces it (an object as a whole). When a row is new, a counter left out is 0 and
any other field is null.

**Answers.** A batch is all or nothing: unless the answer is 200, nothing was stored. Every error is JSON with a
`detail`: also 404 for an unknown path, 405 (with `Allow`) for a wrong method, and 500, which is a bug. Every answer has
an `X-Request-ID`.
"""

_EXAMPLES: dict[Kind, dict[str, Any]] = {
    "session": {
        "session_id": "550e8400-e29b-41d4-a716-446655440000",
        "filename": "test.xlsx",
        "file_path": "/uploads/test.xlsx",
        "status": "processing",
        "llm_provider": "openai",
        "total_tasks": 100,
    },
    "task": {
        "task_id": "task_001",
        "session_id": "550e8400-e29b-41d4-a716-446655440000",
        "batch_id": "batch_001",
        "sheet_name": "Sheet1",
        "row_index": 1,
        "column_name": "Text",
        "source_text": "Hello",
        "target_text": "你好",
        "status": "completed",
        "confidence": 0.95,
        "start_time": "2025-09-30T16:35:00",
    },
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The configured limits on requests, and whether they need tokens."""

    max_batch: int
    max_body_bytes: int
    #: Seconds.
    flush_timeout: float
    unknown_fields: UnknownFields = "ignore"
    statuses: tuple[str, ...] = STATUSES
    #: Whether requests need a token.
    tokens: bool = False


class OpenAPI(GetHandler):
    """``GET /openapi.json``: the description, with the limits as they are now."""

    scope = "read"

    async def get(self) -> None:
        self.finish(await asyncio.to_thread(_described, self.application.limits))


@functools.lru_cache(maxsize=4)
def _described(limits: Limits) -> str:
    """The description as text; making it is too slow for the event loop."""
    return json.dumps(describe(limits), ensure_ascii=False) + "\n"


def describe(limits: Limits) -> dict[str, Any]:
    """The whole document."""
    schemas = _Schemas(limits)
    paths = _paths(schemas, limits)
    for methods in paths.values():
        for operation in methods.values():
            openapi_security.describe(operation, tokens=limits.tokens)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tornado-persist",
            "version": __version__,
            "summary": "A durable write buffer over HTTP",
            "description": _INTRODUCTION + openapi_security.INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "."}],
        "tags": [
            {"name": "batches", "description": "For back ends."},
            {"name": "reading", "description": "What is stored."},
            {"name": "buffer", "description": "Rows that wait for the sink."},
            {"name": "deleting", "description": "What is no longer needed."},
            {"name": "health", "description": "For monitors and orchestrators."},
            {"name": "watching", "description": "For Prometheus and for people."},
            {"name": "description", "description": "This description."},
        ],
        "paths": paths,
        "components": {
            "securitySchemes": openapi_security.SCHEMES,
            "schemas": {**schemas.definitions(), **openapi_reading.schemas()},
            "headers": {
                "RequestID": {
                    "description": "The request's own id, or a new one; the log has it too.",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                },
                "RetryAfter": {
                    "description": "Seconds to wait before trying again.",
                    "required": True,
                    "schema": {"type": "integer", "minimum": 1},
                },
                **openapi_security.HEADERS,
            },
            "parameters": {
                "RequestID": {
                    "name": "X-Request-ID",
                    "in": "header",
                    "description": "At most 128 letters, digits and `-._:/+=@~`; anything else is passed over.",
                    "schema": {"type": "string"},
                },
                "After": {
                    "name": "X-Persist-After",
                    "in": "header",
                    "description": "The `timestamp` of an earlier answer, of any instance: this batch counts as later."
                    " At most 60 seconds ahead of the service's clock.",
                    "schema": {"type": "string"},
                },
                "At": {
                    "name": "X-Persist-At",
                    "in": "header",
                    "description": "When the rows were accepted, if they are sent again: they count as of that time,"
                    " under all newer updates. Needs several writers (`writers` of the sink).",
                    "schema": {"type": "string"},
                },
                "Dropped": {
                    "name": "X-Persist-Dropped",
                    "in": "header",
                    "description": "Rows that this client has dropped in all, how many of them an accepted batch has"
                    " reported before, and an id of the client's process: `17; since=5; client=3f2a9c0d11aa22bb`."
                    " `client_drops` in `/stats` adds them up. Anything else is passed over.",
                    "schema": {"type": "string"},
                },
            },
        },
    }


class _Schemas:
    """Types as named schemas."""

    def __init__(self, limits: Limits) -> None:
        config = ConfigDict(extra="forbid" if limits.unknown_fields == "reject" else "ignore")

        @with_config(config)
        class SessionsBody(TypedDict):
            sessions: Annotated[list[Session], Field(max_length=limits.max_batch)]

        @with_config(config)
        class TasksBody(TypedDict):
            tasks: Annotated[list[Task], Field(max_length=limits.max_batch)]

        self._statuses = limits.statuses
        self._closed = limits.unknown_fields == "reject"
        self._types: dict[str, TypeAdapter[Any]] = {
            "SessionsBody": TypeAdapter(SessionsBody),
            "TasksBody": TypeAdapter(TasksBody),
        }

    def ref(self, type: Any) -> dict[str, str]:
        """A reference to the schema of a type, which it adds to the document."""
        self._types[type.__name__] = TypeAdapter(type)
        return {"$ref": f"{REFS}{type.__name__}"}

    def body(self, kind: Kind) -> dict[str, str]:
        return {"$ref": f"{REFS}{PLURALS[kind].capitalize()}Body"}

    def definitions(self) -> dict[str, Any]:
        _, made = TypeAdapter.json_schemas(
            [(name, "validation", adapter) for name, adapter in self._types.items()],
            ref_template=REFS + "{model}",
        )
        found: dict[str, Any] = made["$defs"]
        for name in ("SessionsBody", "TasksBody", "Session", "Task"):
            self._complete_request(found[name])
        for kind in KINDS:
            name = kind.capitalize()
            found[name]["properties"]["status"]["enum"] = list(self._statuses)
            for field, default in DEFAULTS[kind].items():
                found[name]["properties"][field]["description"] = f"{default} if a new row leaves it out."
            found[name]["examples"] = [_EXAMPLES[kind]]
        return {name: _without_titles(schema) for name, schema in sorted(found.items())}

    def _complete_request(self, schema: dict[str, Any]) -> None:
        """Add what the types do not say but the parser checks."""
        schema["additionalProperties"] = False if self._closed else _IGNORED
        if not self._closed:
            schema["propertyNames"] = {"pattern": _NO_NUL}
        for field in schema["properties"].values():
            for part in field.get("anyOf", [field]):
                match part.get("type"):
                    case "integer":
                        part["description"] = "Written without a decimal point."
                    case "string" if "pattern" in part:
                        for loose, exact in _EXACT.items():
                            part["pattern"] = part["pattern"].replace(loose, exact)
                        if r"\d" in part["pattern"]:
                            part["format"] = "iso8601"
                            part["description"] = "An ISO 8601 date and time; UTC unless it has an offset."
                    case "string" if "enum" not in part:
                        part["pattern"] = _NO_NUL
                    case "object":
                        part["additionalProperties"] = _STORED
                        part["propertyNames"] = {"pattern": _NO_NUL}
                        part["description"] = "JSON of at most 20 levels."


def _without_titles(schema: Any) -> Any:
    """pydantic's titles only repeat the names."""
    if isinstance(schema, dict):
        return {
            key: _without_titles(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)
        }
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema


def _paths(schemas: _Schemas, limits: Limits) -> dict[str, Any]:
    ref = schemas.ref
    schemas.ref(answers.Error)
    health = {"anyOf": [ref(answers.Health), ref(answers.BriefHealth)]}
    unhealthy = "The sink is unavailable, the journal is full or cannot be written, or the service is shutting down."
    return {
        "/": _get("root", "Name and version", "health", {200: ("It runs.", ref(answers.Running))}),
        "/health": _get(
            "health",
            "Whether the service and its database are healthy",
            "health",
            {200: ("Both are.", health), 503: (unhealthy, health)},
            "Answers within half a second, even if the database hangs. Where there are tokens, only one with the scope"
            " `read` gets the figures.",
        ),
        "/health/live": _get("live", "Whether the process answers", "health", {200: ("It does.", ref(answers.Alive))}),
        "/health/ready": _get(
            "ready",
            "Whether batches can be made durable",
            "health",
            {200: ("They can.", ref(answers.Ready)), 503: ("They cannot now.", ref(answers.NotReady))},
            "Whether or not the database is up.",
            retry=True,
        ),
        f"{PREFIX}/sessions/batch": {"post": _batch(schemas, "session", limits)},
        f"{PREFIX}/tasks/batch": {"post": _batch(schemas, "task", limits)},
        f"{PREFIX}/flush": {
            "post": _operation(
                "flush",
                "Write everything now",
                "buffer",
                _responses(
                    {
                        200: ("Every row accepted before the call is in the sink, or rejected.", ref(answers.Flushed)),
                        503: ("The sink failed or took too long; nothing is lost.", ref(answers.FlushError)),
                    },
                    retry=True,
                ),
                f"Waits {limits.flush_timeout:g} seconds at most; the flush goes on after that.",
            )
        },
        f"{PREFIX}/stats": _get(
            "stats", "What waits and what was done", "buffer", {200: ("The numbers.", ref(answers.Stats))}
        ),
        **_rows(schemas, limits),
        **_watching(schemas),
        "/openapi.json": _get(
            "openapi", "This description", "description", {200: ("The description.", {"type": "object"})}
        ),
        "/docs": _get("docs", "This description as a page", "description", {200: ("The page.", _TEXT)}, media=_PAGE),
    }


def _rows(schemas: _Schemas, limits: Limits) -> dict[str, Any]:
    """Reading and deleting, which share paths."""
    found = openapi_reading.paths(PREFIX, _operation, _responses, limits.statuses)
    for path, methods in _removal(schemas, limits).items():
        found[path] = {**found.get(path, {}), **methods}
    return found


def _removal(schemas: _Schemas, limits: Limits) -> dict[str, Any]:
    error = schemas.ref(answers.Error)
    statuses: Statuses = {
        200: ("It is gone.", schemas.ref(answers.Deleted)),
        400: ("The path is no UTF-8.", error),
        404: ("There is nothing of that key.", error),
        409: ("Newer rows of it were accepted meanwhile, or the database refuses it. It may be partly deleted.", error),
        422: ("A parameter is unknown.", error),
        501: ("The sink cannot delete.", error),
        503: ("The sink or the disk is unavailable. It may be partly deleted.", error),
    }
    description = (
        f"After a flush, which takes {limits.flush_timeout:g} seconds at most. No replay and no retry of rejected rows"
        " brings it back. If a request was stopped, send it again."
    )

    def operation(name: str, what: str, *keys: str) -> dict[str, Any]:
        found = _operation(name, f"Delete {what}", "deleting", _responses(statuses, retry=True), description)
        schema = {"type": "string", "minLength": 1, "maxLength": MAX_KEY}
        found["parameters"] += [{"name": key, "in": "path", "required": True, "schema": schema} for key in keys]
        return {"delete": found}

    cleanup = _operation(
        "cleanup",
        "Delete old sessions now",
        "deleting",
        _responses(
            {
                200: ("They are gone; with `dry_run` they would be.", schemas.ref(answers.Cleaned)),
                409: ("Nothing says what is old; the clock is in doubt; batches wait in the journal alone.", error),
                422: ("A parameter is unknown or wrong.", error),
                501: ("The sink cannot delete.", error),
                503: ("The sink or the disk is unavailable. A part may be deleted.", error),
            },
            retry=True,
        ),
        "Sessions of one status go with their tasks if no row of theirs is newer; without an age those of `[retention]`"
        " hold. `trust_clock` goes on even if the clock has jumped ahead.",
    )
    day = {"type": "integer", "minimum": 1, "maximum": MOST_DAYS}
    fields = dict.fromkeys(("completed_days", "failed_days", "orphans_days"), day)
    fields |= {key: {"type": "boolean"} for key in ("dry_run", "trust_clock")}
    cleanup["parameters"] += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
    session = f"{PREFIX}/sessions/{{session_id}}"
    return {
        f"{PREFIX}/sessions/cleanup": {"post": cleanup},
        session: operation("deleteSession", "a session with its tasks", "session_id"),
        f"{session}/tasks/{{task_id}}": operation("deleteTask", "a task", "session_id", "task_id"),
    }


def _watching(schemas: _Schemas) -> dict[str, Any]:
    return {
        "/metrics": _get(
            "metrics",
            "What Prometheus scrapes",
            "watching",
            {200: ("The metrics, as text; as OpenMetrics where `Accept` asks for it.", _TEXT)},
            "Answers within half a second, even if the database hangs.",
            media=("text/plain", "application/openmetrics-text"),
        ),
        "/dashboard": _get(
            "dashboard",
            "The state of the service, as a page",
            "watching",
            {200: ("The page.", _TEXT), 304: ("Not modified (`If-None-Match`).", None)},
            "In English or Chinese, as the browser prefers.",
            media=_PAGE,
        ),
        f"{PREFIX}/history": _get(
            "history",
            "What the dashboard shows",
            "watching",
            {200: ("The last quarter of an hour, and the state now.", schemas.ref(answers.History))},
            "Its shape may change from one version to the next.",
        ),
    }


def _batch(schemas: _Schemas, kind: Kind, limits: Limits) -> dict[str, Any]:
    plural, rejected = PLURALS[kind], schemas.ref(answers.Rejected)
    unknown = {"reject": "refused", "ignore": "ignored", "keep": "kept in `extra`"}[limits.unknown_fields]
    named = ", and named in the answer as `ignored`" if unknown == "ignored" else ""
    described = _operation(
        f"{plural}Batch",
        f"Create or update {plural}",
        "batches",
        _responses(
            {
                200: ("The batch is durable.", schemas.ref(answers.Accepted)),
                400: ("The body is not a JSON object, or not compressed as `Content-Encoding` says.", rejected),
                413: (f"The body is over {limits.max_body_bytes} bytes, as sent or decompressed.", rejected),
                415: (
                    "The headers name another content type than JSON, or an unknown compression.",
                    rejected,
                ),
                422: (
                    f"A field or header is wrong or missing, or there are more than {limits.max_batch} rows.",
                    rejected,
                ),
                503: ("Shutting down, the journal is full or fails, or too many bodies are at work.", rejected),
            },
            retry=True,
        ),
        f"At most {limits.max_batch} rows in at most {limits.max_body_bytes} bytes, which may be compressed with gzip"
        f" or deflate (`Content-Encoding`). Fields that are not listed are {unknown}{named}."
        " An empty batch is accepted.",
    )
    described["parameters"] += [{"$ref": f"#/components/parameters/{name}"} for name in ("After", "At", "Dropped")]
    content = {"schema": schemas.body(kind), "example": {plural: [_EXAMPLES[kind]]}}
    return {**described, "requestBody": {"required": True, "content": {"application/json": content}}}


#: By status: its description, and the schema of the answer's body; None where it has none.
Statuses: TypeAlias = Mapping[int, tuple[str, dict[str, Any] | None]]

_JSON_ONLY = ("application/json",)


def _get(
    name: str,
    summary: str,
    tag: str,
    statuses: Statuses,
    description: str = "",
    *,
    retry: bool = False,
    media: tuple[str, ...] = _JSON_ONLY,
) -> dict[str, Any]:
    """``GET`` and the ``HEAD`` that goes with it. ``media``: the content types that a 200 may have."""
    full = _responses(statuses, retry=retry, media=media)
    empty = _responses({status: (said, None) for status, (said, _) in statuses.items()}, retry=retry, bodies=False)
    return {
        "get": _operation(name, summary, tag, full, description),
        "head": _operation(f"{name}Head", f"{summary}: the headers alone", tag, empty, description),
    }


def _operation(name: str, summary: str, tag: str, responses: dict[str, Any], description: str = "") -> dict[str, Any]:
    """One method of a path."""
    return {
        "operationId": name,
        "summary": summary,
        **({"description": description} if description else {}),
        "tags": [tag],
        "parameters": [{"$ref": "#/components/parameters/RequestID"}],
        "responses": responses,
    }


def _responses(
    statuses: Statuses, *, retry: bool = False, bodies: bool = True, media: tuple[str, ...] = _JSON_ONLY
) -> dict[str, Any]:
    """The answers of an operation, a 500 included. ``retry``: a 503 says when to try again."""

    def headers(status: int) -> Iterable[tuple[str, dict[str, str]]]:
        yield "X-Request-ID", {"$ref": "#/components/headers/RequestID"}
        if retry and status == 503:
            yield "Retry-After", {"$ref": "#/components/headers/RetryAfter"}

    def content(status: int, schema: dict[str, Any] | None) -> dict[str, Any]:
        if not bodies or schema is None:
            return {}
        return {"content": {kind: {"schema": schema} for kind in (media if status == 200 else _JSON_ONLY)}}

    # A 500 has the shape of the handler's other errors; the 503 of /health, which has two, is no error.
    shapes = [schema for status, (_, schema) in statuses.items() if status >= 400 and schema and "anyOf" not in schema]
    bug = ("A bug; its traceback is in the log.", shapes[-1] if shapes else {"$ref": f"{REFS}Error"})
    return {
        str(status): {"description": description, "headers": dict(headers(status)), **content(status, schema)}
        for status, (description, schema) in sorted({**statuses, 500: bug}.items())
    }
