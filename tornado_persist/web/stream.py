"""A connection's bytes."""

from __future__ import annotations

from tornado.iostream import IOStream

_NOTHING = memoryview(b"")


class Stream(IOStream):
    """An ``IOStream`` that takes back what was read too early."""

    _returned = _NOTHING

    def put_back(self, data: bytes) -> None:
        """Have the next read begin with ``data``.

        ``data`` must be all that there was, and be put back before the event loop goes on: what the stream holds by
        itself comes first.
        """
        self._returned = memoryview(data + self._returned)

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        size = min(len(self._returned), len(buf))
        if not size:
            return super().read_from_fd(buf)
        buf[:size] = self._returned[:size]
        # Not an empty piece of it, which would keep all of the data.
        self._returned = self._returned[size:] if size < len(self._returned) else _NOTHING
        return size
