"""Every counter of the service, behind which the rest of the package sees these names alone."""

from tornado_persist.metrics.histogram import Histogram, Reading
from tornado_persist.metrics.metrics import FAILURES, Metrics
from tornado_persist.metrics.recent import Flush, Incident, Incidents
from tornado_persist.metrics.requests import Requests
from tornado_persist.metrics.totals import Totals

__all__ = ["FAILURES", "Flush", "Histogram", "Incident", "Incidents", "Metrics", "Reading", "Requests", "Totals"]
