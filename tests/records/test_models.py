"""Batches of rows."""

from __future__ import annotations

from tornado_persist.records.models import KEYS, KINDS, Batch
from tornado_persist.testing import session, task


def test_a_batch_counts_the_rows_of_both_kinds() -> None:
    batch = Batch(sessions=[session()], tasks=[task("a"), task("b")])
    assert len(batch) == 3
    assert [len(batch.rows(kind)) for kind in KINDS] == [1, 2]
    assert list(KEYS) == list(KINDS)
