"""The bodies of all answers. Handlers build these types, and the OpenAPI description is made from them."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypeAlias

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from tornado_persist.errors import InvalidBatch

Number = Annotated[int, Field(ge=0)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, description="in UTC, with +00:00")]

Sync: TypeAlias = Literal["always", "interval", "off"]

_closed = with_config(ConfigDict(extra="forbid"))


@_closed
class Running(TypedDict):
    """Name and version of the service."""

    service: Literal["Persistence Service"]
    status: Literal["running"]
    version: str


@_closed
class Waiting(TypedDict):
    """Rows that wait for the sink."""

    sessions_count: Number
    tasks_count: Number
    last_flush: Time | None


@_closed
class Instance(TypedDict):
    """Which service this is."""

    name: Annotated[str, Field(description="the setting `instance`, or the name kept in the data directory")]
    url: Annotated[str, Field(description="where it listens; empty if that is not known")]
    host: Annotated[str, Field(description="the machine's name")]
    pid: Number
    data_dir: str
    version: str
    started: Time
    uptime_seconds: Annotated[float, Field(ge=0)]


@_closed
class Sink(TypedDict):
    """The last known state of the sink; it is not asked."""

    name: str
    address: Annotated[str, Field(description="host and database, or file, without user and password")]
    description: Annotated[str, Field(description="product, version and place, once it was open; else its name")]
    up: bool
    since: Time | None
    error: Annotated[str, Field(description="why it is down; empty while it is up")]
    retry_in: Annotated[float, Field(ge=0, description="seconds until a failed flush is retried; 0: none waits")]
    clock_skew_seconds: Annotated[
        float | None, Field(description="this machine's clock is ahead of the sink's by this; null: it is not known")
    ]
    clock_problem: Annotated[str, Field(description="a sentence, if that is more than a second; else empty")]


@_closed
class Pending(TypedDict):
    """Rows that wait, and their limits."""

    rows: Number
    in_memory: Number
    max_rows: Number
    memory_bytes: Annotated[int, Field(ge=0, description="of the records whose rows are in memory")]
    memory_max_bytes: Number
    capacity: Number
    journal_bytes: Number
    journal_max_bytes: Number
    journal_records: Number
    oldest_seconds: Annotated[float, Field(ge=0)]
    journal_full_in_seconds: Annotated[
        float | None, Field(ge=0, description="at the rate of the last minute; null: it does not grow")
    ]
    next_flush: Time
    flush_seconds: Annotated[float, Field(ge=0, description="from one flush to the next")]


@_closed
class OpenRow(TypedDict):
    """A row in rejected.jsonl that was neither retried nor dropped."""

    kind: str
    session_id: str
    task_id: Annotated[str, Field(description="empty for a session")]
    code: str
    message: Annotated[str, Field(description="why it was rejected")]
    at: str


@_closed
class OpenRows(TypedDict):
    """Rows in rejected.jsonl that were neither retried nor dropped."""

    rows: Annotated[int | None, Field(ge=0, description="null: they cannot be counted now")]
    first: Annotated[list[OpenRow], Field(description="the oldest ones")]


DiskFree = Annotated[int | None, Field(ge=0, description="bytes free on the disk of data_dir; null: not known")]
OpenCount = Annotated[
    int | None, Field(ge=0, description="rejected rows that were neither retried nor dropped; null: not known")
]
Reason = Annotated[str, Field(description="why it is unhealthy, in a sentence or two; empty while it is healthy")]
Caution = Annotated[str, Field(description="what is open to anybody, in a sentence; empty: nothing is")]
Condition: TypeAlias = Literal["healthy", "unhealthy"]


@_closed
class LastRefused(TypedDict):
    """The batch that was refused last."""

    at: Time
    kind: Literal["session", "task", "none"]
    status: Annotated[int, Field(ge=400, le=599)]
    reason: Annotated[str, Field(description="why, in a word, as in the metrics")]
    detail: Annotated[str, Field(description="the sentence that the client got")]
    client: Annotated[str, Field(description="its address")]
    token: Annotated[str, Field(description="the name of its token, if it has shown one")]
    user_agent: str
    request_id: str


@_closed
class Refused(TypedDict):
    """Refused batches since the process started."""

    batches: Number
    rows: Annotated[int, Field(ge=0, description="of those whose rows could be counted")]
    last: LastRefused | None


@_closed
class LastClientDrop(TypedDict):
    """What a client said last of rows that it has dropped."""

    at: Time
    rows: Annotated[int, Field(ge=1, description="new since it said so before")]
    client: Annotated[str, Field(description="its address")]
    user_agent: str


@_closed
class ClientDrops(TypedDict):
    """Rows that clients dropped before they got here, as their header `X-Persist-Dropped` says."""

    rows: Annotated[int, Field(ge=0, description="since the process started")]
    last: LastClientDrop | None


@_closed
class Reloads(TypedDict):
    """Reloads of the configuration since the process started, and what came of the last one that is done."""

    begun: Number
    done: Number
    applied: Annotated[list[str], Field(description="keys whose new values hold now")]
    needs_restart: Annotated[list[str], Field(description="keys whose new values need a restart")]
    failed: Annotated[list[str], Field(description="what failed; if the configuration did, no key was applied")]


@_closed
class BriefHealth(TypedDict):
    """Health of the service and its sink, without a figure."""

    status: Condition
    database: Annotated[Condition, Field(description="whether the sink can be written to, as far as is known")]


@_closed
class Health(BriefHealth):
    """Health of the service and its sink."""

    buffer: Waiting
    reason: Reason
    accepting: Annotated[bool, Field(description="whether a batch that comes now is accepted")]
    sink: Sink
    waiting: Pending
    disk_free_bytes: DiskFree
    rejected_open_rows: OpenCount
    refused: Refused
    reloads: Reloads
    caution: Caution
    instance: Instance


@_closed
class Alive(TypedDict):
    """The process answers."""

    status: Literal["alive"]


@_closed
class Ready(TypedDict):
    """Batches can be made durable."""

    status: Literal["ready"]


@_closed
class NotReady(TypedDict):
    """Batches cannot be made durable now."""

    status: Literal["not ready"]
    detail: str


@_closed
class WrongField(TypedDict):
    """One wrong field."""

    loc: Annotated[list[str | int], Field(description="its path in the body", examples=[["tasks", 3, "status"]])]
    msg: str


@_closed
class Accepted(TypedDict):
    """The whole batch is durable."""

    status: Literal["accepted"]
    count: Annotated[int, Field(ge=0, description="rows")]
    timestamp: Time
    rejected: NotRequired[
        Annotated[int, Field(ge=1, description="rows that were set aside (`records.invalid_rows`), if there are any")]
    ]
    errors: NotRequired[
        Annotated[
            list[WrongField],
            Field(max_length=InvalidBatch.MAX_ERRORS, description="what is wrong with them, the first of it"),
        ]
    ]
    ignored: NotRequired[
        Annotated[
            list[Annotated[str, Field(max_length=64)]],
            Field(
                max_length=20, description="fields that are not in the specification and were dropped, if there are any"
            ),
        ]
    ]


@_closed
class Rejected(TypedDict):
    """Nothing of the batch was stored."""

    detail: Annotated[str, Field(description="one sentence")]
    status: Literal["rejected"]
    count: Literal[0]
    errors: Annotated[list[WrongField], Field(max_length=InvalidBatch.MAX_ERRORS, description="the first of them")]


@_closed
class Flushed(TypedDict):
    """Every row accepted before the call is in the sink, or was rejected by it and set aside."""

    status: Literal["flushed"]
    sessions_written: Number
    tasks_written: Number
    rows_rejected: Annotated[int, Field(ge=0, description="rejected by the sink, now in rejected.jsonl")]
    duration_ms: Number


@_closed
class FlushError(TypedDict):
    """Rows still wait; none is lost."""

    status: Literal["error"]
    sessions_written: Number
    tasks_written: Number
    rows_rejected: Number
    duration_ms: Number
    detail: Annotated[str, Field(description="one sentence")]


@_closed
class Deleted(TypedDict):
    """Rows that are gone."""

    status: Literal["deleted"]
    sessions_deleted: Number
    tasks_deleted: Number
    rejected_dropped: Annotated[
        int, Field(ge=0, description="rejected rows of it that `persistd rejected retry` does not send any more")
    ]
    duration_ms: Number


@_closed
class CleanedRule(TypedDict):
    """What went, or would go, by one age."""

    before: Annotated[Time, Field(description="no row of a session was updated after this")]
    sessions: Number
    tasks: Number
    waiting: Annotated[int, Field(ge=0, description="sessions left out, because rows of theirs wait for a flush")]


@_closed
class Cleaned(TypedDict):
    """Old rows that are gone, or with `dry_run` would go."""

    status: Literal["cleaned", "dry_run"]
    rules: Annotated[dict[str, CleanedRule], Field(description="by `completed`, `failed` and `orphans`")]
    sessions: Number
    tasks: Number
    duration_ms: Number


@_closed
class BufferStats(TypedDict):
    """Rows that wait, in memory and in the journal."""

    sessions_count: Number
    tasks_count: Number
    total_count: Number
    in_memory: Annotated[int, Field(ge=0, description="rows; the others wait in the journal alone")]
    max_rows: Annotated[int, Field(ge=1, description="rows that may be in memory")]
    memory_bytes: Annotated[int, Field(ge=0, description="of the records whose rows are in memory")]
    memory_max_bytes: Annotated[int, Field(ge=1, description="bytes of records that may be in memory")]
    capacity: Annotated[int, Field(ge=1, description="rows at which a flush starts")]
    usage_percent: Annotated[float, Field(ge=0, description="of the capacity; over 100 while the sink is unavailable")]


@_closed
class FlushStats(TypedDict):
    """Flushes; days are UTC days."""

    last_flush_time: Time | None
    next_flush_time: Time
    flush_count_today: Number
    average_flush_duration_ms: Number


@_closed
class Performance(TypedDict):
    """Since the process started."""

    total_sessions_written: Number
    total_tasks_written: Number
    total_flush_count: Number
    average_batch_size: Annotated[int, Field(ge=0, description="rows written by a flush")]
    uptime_seconds: Number


@_closed
class Accounting(TypedDict):
    """Rows since the data directory was made: accepted = written + merged + rejected + pending."""

    accepted: Number
    written: Number
    merged: Number
    rejected: Number
    pending: Number


@_closed
class JournalStats(TypedDict):
    """Batches accepted whose rows wait for the sink."""

    bytes: Number
    max_bytes: Annotated[int, Field(ge=1, description="bytes past which batches are refused")]
    full_in_seconds: Annotated[
        float | None, Field(ge=0, description="at the rate of the last minute; null: it does not grow")
    ]
    records: Number
    oldest_seconds: Annotated[float, Field(ge=0, description="age of the oldest record; 0 without one")]
    sync: Sync


@_closed
class DeletionStats(TypedDict):
    """Rows deleted since the process started, and the last run of the retention."""

    sessions: Number
    tasks: Number
    last_retention: Time | None
    retention_problem: Annotated[str, Field(description="why that run did not do its work; empty if it did")]


@_closed
class HealthStats(TypedDict):
    """What ``GET /health`` says, in short."""

    instance: Annotated[str, Field(description="the name of this instance")]
    status: Condition
    reason: Reason
    sink: str
    sink_address: str
    disk_free_bytes: DiskFree
    rejected_open_rows: OpenCount


@_closed
class Stats(TypedDict):
    """What waits, and what was done."""

    buffer: BufferStats
    flush_info: FlushStats
    performance: Performance
    accounting: Accounting
    journal: JournalStats
    refused: Refused
    client_drops: ClientDrops
    deleted: DeletionStats
    health: HealthStats


@_closed
class Intake(TypedDict):
    """Whether batches are accepted."""

    accepting: bool
    problem: Annotated[str, Field(description="why not, in a sentence; empty while all is well")]


@_closed
class StatusCount(TypedDict):
    """Answers with one status."""

    status: Annotated[int, Field(ge=100, le=599)]
    total: Annotated[int, Field(ge=0, description="since the process started")]
    recent: Annotated[int, Field(ge=0, description="in the last quarter of an hour")]


@_closed
class Answers(TypedDict):
    """Answers to batches. Times are upper bounds of buckets, of the last minute; null: nothing was timed."""

    p50_ms: float | None
    p99_ms: float | None
    limit_ms: Annotated[float, Field(description="a time over this is not known any closer")]
    statuses: list[StatusCount]


@_closed
class Samples(TypedDict):
    """One list a column, the oldest first: rows a second, rows, bytes, milliseconds (null: nothing was timed).

    ``refused`` is batches in the interval.
    """

    at: Annotated[list[float], Field(description="seconds since 1970")]
    accepted: list[float]
    written: list[float]
    merged: list[float]
    rejected: list[float]
    refused: list[Number]
    pending: list[Number]
    in_memory: list[Number]
    journal_bytes: list[Number]
    flush_ms: list[float | None]
    answer_p50_ms: Annotated[list[float | None], Field(description="the upper bound of the bucket that holds it")]
    answer_p99_ms: list[float | None]
    sink_up: list[bool]


@_closed
class PastFlush(TypedDict):
    """A finished flush."""

    at: Time
    rows: Number
    rejected: Number
    seconds: Annotated[float, Field(ge=0)]
    error: Annotated[str, Field(description="what stopped it; empty if nothing did")]


@_closed
class Incident(TypedDict):
    """Something that went wrong, once or several times in a row."""

    first: Time
    last: Time
    what: Literal["flush", "rejected", "lost", "intake", "refused"]
    message: str
    code: str
    count: Number


@_closed
class History(TypedDict):
    """The last quarter of an hour, and the state now."""

    now: Annotated[float, Field(description="seconds since 1970")]
    instance: Instance
    interval_seconds: Annotated[float, Field(description="from one sample to the next")]
    span_seconds: float
    intake: Intake
    sink: Sink
    waiting: Pending
    disk_free_bytes: DiskFree
    rejected_open: OpenRows
    reason: Reason
    caution: Caution
    accounting: Accounting
    refused: Refused
    client_drops: ClientDrops
    answers: Answers
    samples: Samples
    flushes: Annotated[list[PastFlush], Field(description="the latest first")]
    incidents: Annotated[list[Incident], Field(description="the latest first")]


@_closed
class Error(TypedDict):
    """Any other error."""

    detail: Annotated[str, Field(description="one sentence")]
