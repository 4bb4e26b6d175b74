"""Every exception that this package raises on purpose.

::

    PersistError
     +-- ConfigError          the configuration is wrong; names the key
     +-- StartError           the service cannot start here
     +-- BatchRefused         a request's batch is not taken
     |    +-- NotJSON         ... because it is not a JSON object
     |    +-- InvalidBatch    ... because rows are missing or wrong
     |    +-- NotAccepting    ... because the service cannot take it now
     +-- FlushFailed          a flush left rows in the buffer
     +-- NotDeleted           rows that were to be deleted are still there
     |    +-- NothingThere    ... because there are none
     |    +-- RowsWait        ... because newer ones came, or another is at work
     |    +-- CannotDelete    ... because this sink cannot delete
     |    +-- ClockInDoubt    ... because their age depends on a clock that may be wrong
     +-- QueryRefused         a request for rows cannot be answered
     |    +-- InvalidQuery    ... because a parameter is unknown or wrong
     |    +-- NoSuchRow       ... because the row does not exist
     |    +-- NotReadable     ... because the sink offers no reads
     |    +-- ReadFailed      ... because the rows cannot be read now
     +-- NoAnswer             a command cannot reach the service
     +-- RequestRefused       ... or the service does not do what the command asks for
     +-- InputError           a file that a command was given is not what it should be; names file and line
     +-- SinkError            what a sink's methods raise
          +-- SinkUnavailable the server or schema is at fault: try the same again later
          |    +-- SinkConflict    ... another writer won: try the same again at once
          +-- BatchRejected   the data is at fault: the same batch would fail again

Each docstring's first line is the default message. Nothing local is imported here, so that every module may import
this one. HTTP status codes are the business of :mod:`tornado_persist.web`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import ClassVar, TypedDict


class FieldError(TypedDict):
    """One wrong field: its path in the request body, for instance ``["tasks", 3, "status"]``, and what is wrong."""

    loc: list[str | int]
    msg: str


class PersistError(Exception):
    """Something went wrong in tornado-persist."""

    def __init__(self, message: str | None = None) -> None:
        if message is None:
            message = (self.__doc__ or self.__class__.__name__).splitlines()[0]
        super().__init__(message)


class ConfigError(PersistError):
    """The configuration is wrong."""

    def __init__(self, key: str, problem: str, *, place: str = "") -> None:
        """``place``: the file and the line, where they are known."""
        super().__init__(": ".join(filter(None, (place, key, problem))))
        self.key = key
        #: A line for each mistake.
        self.mistakes = [str(self)]

    @classmethod
    def of(cls, errors: Sequence[ConfigError]) -> ConfigError:
        """One error for several mistakes, at least one; its message is one line."""
        if len(errors) == 1:
            return errors[0]
        it = cls("", "; ".join(map(str, errors)))
        it.key = errors[0].key
        it.mistakes = [line for error in errors for line in error.mistakes]
        return it


class StartError(PersistError):
    """The service cannot start."""


class BatchRefused(PersistError):
    """The batch was not accepted, and nothing of it was taken."""


class NotJSON(BatchRefused):
    """The request body is not a JSON object."""


class InvalidBatch(BatchRefused):
    """Rows or fields of the batch are missing or wrong."""

    #: Errors that are named; a client that gets every field wrong needs no more of them.
    MAX_ERRORS: ClassVar[int] = 20
    #: Characters of the message, and of each step of a ``loc``: a client's own names may be megabytes.
    MAX_MESSAGE: ClassVar[int] = 500
    MAX_STEP: ClassVar[int] = 64

    def __init__(self, message: str, errors: Iterable[FieldError] = ()) -> None:
        super().__init__(message[: self.MAX_MESSAGE])
        self.errors: list[FieldError] = [
            {
                "loc": [step if isinstance(step, int) else step[: self.MAX_STEP] for step in error["loc"]],
                "msg": error["msg"],
            }
            for error in islice(errors, self.MAX_ERRORS)
        ]
        #: Rows of the batch; None where they were not counted.
        self.rows: int | None = None


class NotAccepting(BatchRefused):
    """The service cannot accept batches now."""


class FlushFailed(PersistError):
    """The flush did not write every row; what is not written waits in the buffer."""


class NotDeleted(PersistError):
    """Nothing was deleted, or not all of it; what was not is still there."""


class NothingThere(NotDeleted):
    """There is nothing to delete."""


class RowsWait(NotDeleted):
    """Newer rows of it were accepted, or another command is at work on them."""


class CannotDelete(NotDeleted):
    """The sink cannot delete rows."""


class ClockInDoubt(NotDeleted):
    """The clock may be wrong, and with it the age of every row."""


class QueryRefused(PersistError):
    """The request for rows cannot be answered."""


class InvalidQuery(QueryRefused):
    """A parameter of the request is unknown or wrong."""


class NoSuchRow(QueryRefused):
    """There is no such row."""


class NotReadable(QueryRefused):
    """The sink cannot be read through the service."""


class ReadFailed(QueryRefused):
    """The rows cannot be read now."""


class NoAnswer(PersistError):
    """The service does not answer."""


class RequestRefused(PersistError):
    """The service answered, and did not do what it was asked to."""

    def __init__(
        self, message: str, *, status: int, errors: Iterable[FieldError] = (), retry_after: float | None = None
    ) -> None:
        """``status`` is HTTP's; ``retry_after`` in seconds, where the answer said when to try again."""
        super().__init__(message)
        self.status = status
        self.errors = list(errors)
        self.retry_after = retry_after


class InputError(PersistError):
    """A file is not what it should be."""

    def __init__(self, file: object, problem: str, *, line: int | None = None) -> None:
        """``line`` counts from 1."""
        super().__init__(f"{file}{f', line {line}' if line else ''}: {problem}")


class SinkError(PersistError):
    """The sink did not write the batch."""

    def __init__(self, message: str | None = None, *, code: str = "") -> None:
        """``code`` is the driver's own: an SQLSTATE, a MySQL error number, an SQLite result name, an errno name."""
        super().__init__(message)
        self.code = code


class SinkUnavailable(SinkError):
    """The sink cannot be written to now."""

    def __init__(self, message: str | None = None, *, code: str = "", unknown_code: bool = False) -> None:
        """``unknown_code``: the code does not say whether the server or the data is at fault."""
        super().__init__(message, code=code)
        self.unknown_code = unknown_code


class SinkConflict(SinkUnavailable):
    """Another writer stood in the way (a deadlock, a serialization failure)."""


class BatchRejected(SinkError):
    """The sink refuses the data of the batch."""
