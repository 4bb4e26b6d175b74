"""What the API's description says of tokens: how they are sent, which scope an operation needs, what is denied."""

from __future__ import annotations

from typing import Any

from tornado_persist.config.tokens import Scope

#: By tag; the operations of one need the same, apart from those in ``_OTHERS``.
_SCOPES: dict[str, Scope | None] = {
    "batches": "write",
    "reading": "read",
    "buffer": "read",
    "deleting": "admin",
    "health": None,
    "watching": "read",
    "description": "read",
}
_OTHERS: dict[str, Scope] = {"flush": "flush"}

SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A token of `persistd token new`."},
    "basic": {"type": "http", "scheme": "basic", "description": "The token as the password, with any user name."},
}
HEADERS: dict[str, Any] = {
    "Authenticate": {
        "description": "How to authenticate; of a 403, which scope the token lacks.",
        "schema": {"type": "string"},
    }
}
INTRODUCTION = """
**Tokens.** With tokens (`[auth]`) most operations need one that has their scope: as `Authorization: Bearer`, or as the
password of Basic authentication. No scope includes another. Without a known token the answer is 401, without the scope
403. 403 is also for a request of a web page of another origin, and for a host name that is not the service's.
"""


def scope_of(operation: dict[str, Any]) -> Scope | None:
    """What a token must permit for this operation; None: it needs none."""
    return _OTHERS.get(operation["operationId"], _SCOPES[operation["tags"][0]])


def describe(operation: dict[str, Any], *, tokens: bool) -> None:
    """Add to an operation what it needs, and how it is denied. ``tokens``: whether the service has some."""
    scope, responses = scope_of(operation), operation["responses"]
    # A denial has the shape of the handler's other errors.
    shape = {name: value for name, value in responses["500"].items() if name != "description"}
    told = {"headers": {**shape["headers"], "WWW-Authenticate": {"$ref": "#/components/headers/Authenticate"}}}
    if scope is None:
        responses["403"] = {"description": "The host name is not the service's.", **shape}
    else:
        needs = f"Needs the scope `{scope}`" + ("." if tokens else ", where there are tokens.")
        operation["description"] = "\n\n".join(filter(None, (operation.get("description"), needs)))
        responses["401"] = {"description": "There is no token, or it is not known.", **shape, **told}
        denied = f"The token lacks the scope `{scope}`; or the page's origin, or the host name, is not permitted."
        responses["403"] = {"description": denied, **shape, **told}
        if tokens:
            operation["security"] = [{scheme: [scope]} for scheme in SCHEMES]
    operation["responses"] = dict(sorted(responses.items()))
