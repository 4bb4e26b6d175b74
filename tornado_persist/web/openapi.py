"""The description of the interface, for programs: ``/openapi.json``."""

from __future__ import annotations

import asyncio
import functools
import json

from tornado_persist.web.base import GetHandler
from tornado_persist.web.description import Limits, describe


class OpenAPI(GetHandler):
    """``GET /openapi.json``: the description, with the limits as they are now."""

    async def get(self) -> None:
        self.finish(await asyncio.to_thread(_described, self.application.limits))


@functools.lru_cache(maxsize=4)
def _described(limits: Limits) -> str:
    """The description as text; making it takes long enough to be kept away from the event loop."""
    return json.dumps(describe(limits), ensure_ascii=False) + "\n"
