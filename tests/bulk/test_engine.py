from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from guardrail.bulk.engine import scored
from guardrail.bulk.rows import Item, Loaded
from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    ImageDecodeError,
    MissingExtraError,
)
from guardrail.policy import Limits, Policy
from guardrail.types import Action, Modality, Verdict
from tests.waiting import until


def items(values):
    return [Item(n, partial(Loaded, f"k{n}", value)) for n, value in enumerate(values)]


class Scripted:
    """Stands in for a guard: what a value is decides what comes back for it."""

    class artefact:
        artefact_id = "guard-x"

    def __init__(self, **limits):
        self.policy = Policy(limits=Limits(**limits))
        self.timeouts = []

    def check_batch(self, values, *, return_exceptions, timeout):
        assert return_exceptions
        self.timeouts.append(timeout)
        return [value if isinstance(value, Exception) else self.verdict(value) for value in values]

    def verdict(self, value):
        time.sleep(0.001 * (value % 3))  # chunks end out of order
        failed = value < 0
        return Verdict(
            action=Action.PASS,
            would_be=Action.PASS,
            score=None if failed else float(value),
            tau_steer=1,
            tau_flag=1,
            layers=(1,),
            modality=Modality.TEXT,
            artefact_id="guard-x",
            reason="detector_failed" if failed else "score",
        )


def readers():
    return [t for t in threading.enumerate() if t.name.startswith("guardrail-bulk")]


def test_rows_come_out_once_each_in_order_with_the_guards_own_verdicts(guard, phrase):
    values = [phrase(i) for i in range(70)]
    rows = list(scored(guard, items(values), readers=3))
    assert [(row["row"], row["key"]) for row in rows] == [(n, f"k{n}") for n in range(70)]
    alone = [guard.check(value) for value in values]
    assert [row["action"] for row in rows] == [str(verdict.action) for verdict in alone]
    assert [row["score"] for row in rows] == pytest.approx([v.score for v in alone], abs=1e-4)
    assert {row["action"] for row in rows} == {"pass", "steer", "flag"}
    assert readers() == []


def test_an_unreadable_row_takes_its_own_place_only(guard):
    values = ["a", ImageDecodeError("broken"), "b", [{"role": "nobody", "content": "x"}], "c"]
    rows = list(scored(guard, items(values)))
    assert [row["error_type"] for row in rows] == [
        None,
        "ImageDecodeError",
        None,
        "UnsupportedContentError",
        None,
    ]
    assert rows[4]["score"] == pytest.approx(guard.check("c").score, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_order_holds_whichever_chunk_ends_first(threads):
    rows = list(scored(Scripted(batch=2), items(range(200)), readers=threads))
    assert [row["score"] for row in rows] == list(range(200))


def test_no_more_is_read_ahead_than_two_chunks_for_each_reader():
    read = 0

    def source():
        nonlocal read
        for item in items(range(500)):
            read += 1
            yield item

    for done, _ in enumerate(scored(Scripted(batch=4), source(), readers=2), start=1):
        assert read - done < 2 * 2 * 8 + 8
    assert done == 500


def test_a_row_waits_as_long_as_those_ahead_of_it_may_take():
    guard = Scripted(batch=4, queue=16, timeout_s=2)
    list(scored(guard, items(range(20)), readers=2))
    assert set(guard.timeouts) == {2.0 * (8 * 2 + 16)}
    guard = Scripted(timeout_s=None)
    list(scored(guard, items(range(3))))
    assert guard.timeouts == [None]


def test_a_detector_that_fails_on_everything_ends_the_run():
    values = [1, 2, *[-1] * 9, 3, *[-1] * 10, 4]
    seen = []
    rows = scored(Scripted(), items(values), most_failed=10)
    with pytest.raises(DetectorError, match="10 rows one after another"):
        seen.extend(row["row"] for row in rows)
    assert seen == list(range(21))


def test_an_error_that_meets_every_row_ends_the_run_and_the_readers():
    values = [*range(50), MissingExtraError("av", extra="video"), *range(500)]

    with pytest.raises(MissingExtraError):
        list(scored(Scripted(), items(values), readers=2))
    until(lambda: not readers())


def test_a_caller_who_stops_early_leaves_no_reader_behind():
    rows = scored(Scripted(batch=1), items(range(1000)), readers=2)
    next(rows)
    rows.close()
    until(lambda: not readers())


def test_no_reader_at_all_is_refused():
    with pytest.raises(ConfigurationError, match="at least one thread"):
        list(scored(Scripted(), items([1]), readers=0))
