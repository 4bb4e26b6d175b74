"""The ``persistd`` command: one module a chore, and :mod:`tornado_persist.cli.program` that puts them together."""

from tornado_persist.cli.program import main

__all__ = ["main"]
