"""A Tornado handler that reads no body and stores nothing: what the web server alone can do. With a URL also one that
answers with a page of rows by the SQL of PostgREST 12, which itself is no package of pip::

python -m bench.peers.bare PORT [URL]
"""

from __future__ import annotations

import asyncio
import sys

import psycopg
from tornado.web import Application, RequestHandler

#: Without the parts that set the role and answer with headers of one's own.
SQL = """WITH pgrst_source AS (
    SELECT "translation_tasks".* FROM "translation_tasks" WHERE "translation_tasks"."session_id" = %s
    ORDER BY "translation_tasks"."task_id" ASC LIMIT %s OFFSET %s)
SELECT null::bigint AS total_result_set, pg_catalog.count(_postgrest_t) AS page_total,
    coalesce(json_agg(_postgrest_t), '[]')::text AS body FROM (SELECT * FROM pgrst_source) _postgrest_t"""


class Batch(RequestHandler):
    """Answers as the service does."""

    async def post(self) -> None:
        self.write({"status": "accepted", "count": 1, "timestamp": "2025-09-30T16:35:10+00:00"})


class Page(RequestHandler):
    """Answers as PostgREST does."""

    def get(self) -> None:
        database: psycopg.Connection = self.settings["database"]
        session, limit, offset = map(self.get_argument, ("session_id", "limit", "offset"))
        with database.transaction():
            cursor = database.execute(SQL, (session.removeprefix("eq."), int(limit), int(offset)), prepare=True)
            self.finish((cursor.fetchone() or ("[]",))[-1])


async def main(port: int, *url: str) -> None:
    routes = [(r"/api/v1/persistence/tasks/batch", Batch), (r"/translation_tasks", Page)]
    database = psycopg.connect(url[0], autocommit=True) if url else None
    Application(routes, database=database, log_function=lambda handler: None).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
