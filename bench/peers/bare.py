"""A Tornado handler that reads no body and stores nothing: what the web server alone can do::

python -m bench.peers.bare PORT
"""

from __future__ import annotations

import asyncio
import sys

from tornado.web import Application, RequestHandler


class Batch(RequestHandler):
    """Answers as the service does."""

    async def post(self) -> None:
        self.write({"status": "accepted", "count": 1, "timestamp": "2025-09-30T16:35:10+00:00"})


async def main(port: int) -> None:
    Application([(r"/api/v1/persistence/tasks/batch", Batch)], log_function=lambda handler: None).listen(
        port, "127.0.0.1"
    )
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
