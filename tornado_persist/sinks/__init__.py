"""Where flushed rows go: one module a sink, behind the interface in :mod:`tornado_persist.sinks.base`."""
