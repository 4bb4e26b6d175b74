"""The ``persistd`` command: one module for each command; :mod:`tornado_persist.cli.program` joins them."""

from tornado_persist.cli.program import main

__all__ = ["main"]
