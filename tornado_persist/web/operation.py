"""A request and its answers, in the words of OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

REFS = "#/components/schemas/"

#: By status: what it says, and the schema of the answer's body; None where it has none.
Statuses: TypeAlias = Mapping[int, tuple[str, dict[str, Any] | None]]

_JSON = ("application/json",)
_HEALTH = {"$ref": f"{REFS}Health"}


def get(
    name: str,
    summary: str,
    tag: str,
    statuses: Statuses,
    description: str = "",
    *,
    retry: bool = False,
    media: tuple[str, ...] = _JSON,
) -> dict[str, Any]:
    """``GET`` and the ``HEAD`` that goes with it. ``media``: the content types that a 200 may have."""
    full = responses(statuses, retry=retry, media=media)
    empty = responses({status: (said, None) for status, (said, _) in statuses.items()}, retry=retry, bodies=False)
    return {
        "get": operation(name, summary, tag, full, description),
        "head": operation(f"{name}Head", f"{summary}: the headers alone", tag, empty, description),
    }


def operation(name: str, summary: str, tag: str, responses: dict[str, Any], description: str = "") -> dict[str, Any]:
    """One method of a path."""
    return {
        "operationId": name,
        "summary": summary,
        **({"description": description} if description else {}),
        "tags": [tag],
        "parameters": [{"$ref": "#/components/parameters/RequestID"}],
        "responses": responses,
    }


def responses(
    statuses: Statuses, *, retry: bool = False, bodies: bool = True, media: tuple[str, ...] = _JSON
) -> dict[str, Any]:
    """The answers of an operation, and the 500 that each may have. ``retry``: a 503 says when to try again."""

    def headers(status: int) -> Iterable[tuple[str, dict[str, str]]]:
        yield "X-Request-ID", {"$ref": "#/components/headers/RequestID"}
        if retry and status == 503:
            yield "Retry-After", {"$ref": "#/components/headers/RetryAfter"}

    def content(status: int, schema: dict[str, Any] | None) -> dict[str, Any]:
        if not bodies or schema is None:
            return {}
        return {"content": {kind: {"schema": schema} for kind in (media if status == 200 else _JSON)}}

    # In the shape that the handler gives its other errors; /health has no error of its own, it says how things are.
    shapes = [schema for status, (_, schema) in statuses.items() if status >= 400 and schema != _HEALTH]
    bug = ("A bug; its traceback is in the log.", shapes[-1] if shapes else {"$ref": f"{REFS}Error"})
    return {
        str(status): {"description": description, "headers": dict(headers(status)), **content(status, schema)}
        for status, (description, schema) in sorted({**statuses, 500: bug}.items())
    }
