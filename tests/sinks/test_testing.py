"""The shipped test tools: the contract detects broken sinks, and FlakySink fails on request."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tornado_persist.errors import BatchRejected, SinkConflict, SinkUnavailable
from tornado_persist.records.models import KINDS, SHAPES, Batch, Fields, Kind
from tornado_persist.testing import AppendSink, FlakySink, MemorySink, SinkContract, Stored, session, task


class ContractOfMemory(SinkContract):  # not Test...: pytest must not collect it
    def read(self, sink: MemorySink) -> Stored:
        return sink.stored


class BrokenSink(MemorySink):
    """Spoils each row on its way in."""

    spoil: Callable[[Kind, Fields], Fields | None] = staticmethod(lambda kind, row: row)

    def write(self, batch: Batch) -> None:
        spoilt = Batch()
        for kind in KINDS:
            for row in batch.rows(kind):
                changed = self.spoil(kind, dict(row))
                if changed is not None:
                    spoilt.rows(kind).append(SHAPES[kind].row(changed))
        super().write(spoilt)


def folds_case(kind: Kind, row: Fields) -> Fields:
    return {**row, f"{kind}_id": row[f"{kind}_id"].lower()}


def pads(kind: Kind, row: Fields) -> Fields:
    return {name: value.rstrip() if isinstance(value, str) else value for name, value in row.items()}


def rounds_times(kind: Kind, row: Fields) -> Fields:
    times = {name: row[name][:20] + "000000+00:00" for name in ("start_time", "end_time") if row.get(name)}
    return {**row, **times}


def rounds_confidence(kind: Kind, row: Fields) -> Fields:
    return {**row, "confidence": round(row["confidence"], 6)} if row.get("confidence") else row


def ignores_nulls(kind: Kind, row: Fields) -> Fields:
    return {name: value for name, value in row.items() if value is not None}


def sets_what_is_absent(kind: Kind, row: Fields) -> Fields:
    return {"target_text": None, **row} if kind == "task" else row


def makes_booleans_numbers(kind: Kind, row: Fields) -> Fields:
    return {**row, "game_info": {**row["game_info"], "b": 1}} if "b" in (row.get("game_info") or {}) else row


def moves_time_zone(kind: Kind, row: Fields) -> Fields:
    return {**row, "created_at": row["created_at"].replace("+00:00", "+01:00")}


def loses_long_texts(kind: Kind, row: Fields) -> Fields | None:
    return row if len(row.get("source_text", "")) < 2**20 else None


@pytest.mark.parametrize(
    ("spoil", "test"),
    [
        (folds_case, SinkContract.test_keys_are_compared_exactly),
        (pads, SinkContract.test_texts_come_back_unchanged),
        (rounds_times, SinkContract.test_times_keep_their_microseconds_from_the_year_1000_to_9999),
        (rounds_confidence, SinkContract.test_confidence_keeps_every_bit),
        (ignores_nulls, SinkContract.test_null_clears_a_field),
        (sets_what_is_absent, SinkContract.test_an_update_keeps_what_it_leaves_out),
        (sets_what_is_absent, SinkContract.test_rows_with_different_fields_share_a_batch),
        (makes_booleans_numbers, SinkContract.test_json_objects_come_back_equal),
        (moves_time_zone, SinkContract.test_created_at_stays_and_updated_at_moves),
        (loses_long_texts, SinkContract.test_the_longest_texts_fit),
    ],
)
def test_the_contract_notices_a_sink_that(
    spoil: Callable[[Kind, Fields], Fields | None], test: Callable[..., None]
) -> None:
    sink = BrokenSink()
    sink.open()
    test(ContractOfMemory(), sink)
    sink = BrokenSink()
    sink.open()
    sink.spoil = spoil
    with pytest.raises(AssertionError) as failure:
        test(ContractOfMemory(), sink)
    assert len(str(failure.value)) < 5000


def test_the_contract_notices_a_failed_write_that_leaves_rows_behind() -> None:
    class HalfSink(MemorySink):
        def write(self, batch: Batch) -> None:
            if any(row["task_id"] == "refused" for row in batch.tasks):
                super().write(Batch(batch.sessions))
                raise BatchRejected
            super().write(batch)

    class Contract(ContractOfMemory):
        def fault(self, sink: Any) -> Any:
            return threading.Lock()  # does nothing, as a context

    sink = HalfSink()
    sink.open()
    with pytest.raises(AssertionError, match=r"'new'.*should not be there"):
        Contract().test_a_failed_write_leaves_nothing_behind(sink)


def test_the_contract_notices_a_sink_that_alters_the_batch() -> None:
    class Greedy(MemorySink):
        def write(self, batch: Batch) -> None:
            super().write(copy.deepcopy(batch))
            batch.tasks[:] = [SHAPES["task"].row({"retry_count": 0, **row}) for row in batch.tasks]

    sink = Greedy()
    sink.open()
    with pytest.raises(AssertionError, match="retry_count"):
        ContractOfMemory().test_a_batch_is_not_altered_by_writing_it(sink)


class SharedSink(MemorySink):
    """Objects with the same settings have the same rows."""

    def __init__(self, settings: Any = None, data_dir: Any = None) -> None:
        super().__init__(settings, data_dir)
        self.stored = self.settings.__dict__.setdefault("stored", self.stored)


def test_the_contract_notices_two_writers_who_mix_their_rows() -> None:
    class Hasty(SharedSink):
        def write(self, batch: Batch) -> None:
            middle = len(batch.tasks) // 2
            self.settings.__dict__.setdefault("turns", threading.Barrier(2)).wait(10)
            super().write(Batch([], batch.tasks[:middle]))  # the second half falls under the table

    class Contract(ContractOfMemory):
        durable = True

    for kind, fine in ((SharedSink, True), (Hasty, False)):
        sink = kind()
        sink.open()
        test = Contract().test_two_writers_of_the_same_rows_both_get_through
        if fine:
            test(sink)
        else:
            with pytest.raises(AssertionError, match="of one of the last batches"):
                test(sink)


@pytest.mark.parametrize("surplus", [-1, 1])
def test_the_contract_notices_a_rewind_that_goes_too_far_or_not_far_enough(surplus: int) -> None:
    class Wrong(AppendSink):
        def rewind(self, position: dict[str, Any]) -> None:
            super().rewind({**position, "batches": max(0, position.get("batches", 0) + surplus)})

    class Contract(ContractOfMemory):
        durable = False

    for kind in (AppendSink, Wrong):
        sink = kind()
        sink.open()
        test = Contract().test_a_rewound_sink_is_as_it_was_at_the_position
        if kind is AppendSink:
            test(sink)
        else:
            with pytest.raises(AssertionError):
                test(sink)


def test_the_contract_notices_a_position_that_is_no_json() -> None:
    class Tuple(MemorySink):
        def position(self) -> dict[str, Any]:
            return {"at": (1, 2)}

    sink = Tuple()
    sink.open()
    with pytest.raises(AssertionError, match="at"):
        ContractOfMemory().test_a_position_is_a_json_object_or_none(sink)


@pytest.fixture
def flaky() -> FlakySink:
    sink = FlakySink()
    sink.open()
    return sink


def test_a_flaky_sink_is_a_memory_sink_until_told_otherwise(flaky: FlakySink) -> None:
    flaky.write(Batch([session("s")], [task("t")]))
    flaky.ping()
    assert flaky.find_sessions(["s", "x"]) == {"s"}
    assert set(flaky.stored["task"]) == {("s", "t")}
    assert flaky.calls == ["open", "write", "ping", "find_sessions"]


def test_a_flaky_sink_that_is_down_refuses_everything_and_wants_to_be_opened_again(flaky: FlakySink) -> None:
    flaky.down = True
    for call in (flaky.ping, flaky.open, lambda: flaky.write(Batch()), lambda: flaky.find_sessions([])):
        with pytest.raises(SinkUnavailable):
            call()
    flaky.down = False
    with pytest.raises(RuntimeError, match="without close"):
        flaky.write(Batch([session()]))
    flaky.close()
    flaky.open()
    flaky.write(Batch([session()]))
    assert len(flaky.batches) == 1


def test_a_flaky_sink_fails_as_often_as_told(flaky: FlakySink) -> None:
    flaky.fail_next(2, BatchRejected("no", code="42"))
    flaky.fail_next(1, OSError)
    for expected in (BatchRejected, BatchRejected, OSError):
        with pytest.raises(expected):
            flaky.write(Batch([session()]))
    flaky.write(Batch([session()]))
    assert len(flaky.batches) == 1


def test_a_flaky_sink_rejects_batches_with_a_refused_key(flaky: FlakySink) -> None:
    flaky.refused = {"bad"}
    with pytest.raises(BatchRejected) as failure:
        flaky.write(Batch([session("s")], [task("good"), task("bad")]))
    assert failure.value.code == "refused"
    assert flaky.stored == {"session": {}, "task": {}}
    flaky.write(Batch([session("s")], [task("good")]))


def test_a_flaky_sink_suspects_batches_with_a_key(flaky: FlakySink) -> None:
    flaky.suspected = {"odd"}
    with pytest.raises(SinkUnavailable) as failure:
        flaky.write(Batch([session("s")], [task("good"), task("odd")]))
    assert (failure.value.code, failure.value.unknown_code) == ("odd", True)
    assert flaky.stored == {"session": {}, "task": {}}
    flaky.close()
    flaky.open()
    flaky.write(Batch([session("s")], [task("good")]))


def test_a_flaky_sink_goes_on_after_a_conflict(flaky: FlakySink) -> None:
    flaky.fail_next(2, SinkConflict)
    for _ in range(2):
        with pytest.raises(SinkConflict):
            flaky.write(Batch([session()]))
    flaky.write(Batch([session()]))
    assert flaky.calls == ["open", "write", "write", "write"]


def test_an_append_sink_shows_what_was_written_twice_and_goes_back() -> None:
    sink = AppendSink()
    with pytest.raises(SinkUnavailable):
        sink.position()
    sink.open()
    first, second = Batch([session("s", total_tasks=1)]), Batch([session("s", total_tasks=2)])
    sink.write(first)
    position = sink.position()
    for _ in range(2):
        sink.write(second)
    assert sink.batches == [first, second, second]
    sink.rewind(position)
    sink.write(second)
    assert sink.batches == [first, second]
    sink.rewind(position)
    assert sink.stored["session"][("s",)]["total_tasks"] == 1
    assert sink.calls[-2:] == ["write", "rewind"]


def test_a_flaky_sink_holds_a_write_until_it_is_released(flaky: FlakySink) -> None:
    flaky.hold()
    writer = threading.Thread(target=flaky.write, args=[Batch([session("s")])])
    writer.start()
    assert flaky.holding.wait(10)
    assert not flaky.batches
    flaky.release()
    writer.join(10)
    assert len(flaky.batches) == 1
    assert not flaky.holding.is_set()


def test_the_sinks_serve_where_there_is_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import tornado_persist.testing as t; t.MemorySink().open()"
    subprocess.run([sys.executable, "-c", code], check=True)
