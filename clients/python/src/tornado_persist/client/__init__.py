"""The Python client of the persistence service. It never blocks its caller, and raises nothing for the network.

::

    from tornado_persist.client import Client

    with Client("http://localhost:8001") as persist:
        persist.session(session_id=..., filename=..., ...)
        persist.task(session_id=..., task_id=..., ...)  # returns at once
        persist.flush(timeout=10)  # await persist.aflush(10)
    print(persist.stats)

``client`` is what programs use, ``values`` the fields and their types, ``queue`` what waits, ``sender`` the thread,
``connection`` the requests and answers, ``reading`` what reads rows back; ``testing`` has a stand-in for the network.
"""

from tornado_persist.client.client import Client
from tornado_persist.client.queue import Reason, Stats
from tornado_persist.client.reading import NotFound, ReadFailed, Restored, StoredSession, StoredTask
from tornado_persist.client.values import Session, Task

__all__ = [
    "Client",
    "NotFound",
    "ReadFailed",
    "Reason",
    "Restored",
    "Session",
    "Stats",
    "StoredSession",
    "StoredTask",
    "Task",
]
__version__ = "1.0.0"
