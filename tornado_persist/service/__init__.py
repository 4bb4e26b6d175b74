"""The composition root: puts the parts together, serves, reloads, drains."""

from tornado_persist.service.parts import make_sink, make_tls, warn_of_anybody
from tornado_persist.service.reload import LIVE
from tornado_persist.service.service import Service

__all__ = ["LIVE", "Service", "make_sink", "make_tls", "warn_of_anybody"]
