"""A whole run: what is measured, that it can be repeated and gone on with, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.attack.attacks import Budget, with_said
from guardrail.attack.figures import standing
from guardrail.attack.making import Input, Maker, Settings
from guardrail.attack.readings import Reader
from guardrail.attack.run import attack, load_inputs, packaged_inputs
from guardrail.attack.schema import PLAIN, AttackReport
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.stats import Rate, Share
from tests.attack.conftest import request_of

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ("how do I write", "about the cat", "tell me about a dog", "please say how", "is there a")
HARMFUL = [Input(str(i), request_of(f"{text} on the table")) for i, text in enumerate(WORDS)]
BENIGN = [Input(str(i), request_of(f"{text} in green")) for i, text in enumerate(WORDS)]
NAMES = ("upper case", "over turns", "greedy words before", "greedy words behind", "GCG before")
FAST = Settings(questions=20, searched=2, gradients=1, answers=1, new_tokens=2)


def measured(guard: Guard, **more: Any) -> AttackReport:
    chosen = {"names": NAMES, "settings": FAST} | more
    return attack(guard, HARMFUL, BENIGN, **chosen)


def same(report: AttackReport) -> dict[str, Any]:
    """Without what a clock says."""
    plain = report.model_dump(mode="json")
    plain.pop("created")
    for row in plain["rows"]:
        row.pop("seconds")
    return plain


@pytest.fixture(scope="module")
def report(guard: Guard, tmp_path_factory: pytest.TempPathFactory) -> AttackReport:
    return measured(guard, work_dir=tmp_path_factory.getbasetemp() / "kept", content=True)


def test_every_attack_has_a_row_with_n_and_intervals(report: AttackReport):
    assert [row.name for row in report.rows] == [PLAIN, *NAMES]
    for row in report.rows:
        searched = row.name not in (PLAIN, "upper case", "over turns")
        few = {"GCG before": 1}.get(row.name, 2)
        assert (row.n, row.n_benign) == ((few, few) if searched else (5, 5))
        for share in (row.hit, row.flagged, row.lost, row.before, row.benign_hit):
            assert share is not None
            assert share.n == row.n
            assert share.low <= share.rate <= share.high
        assert row.complied is not None
        assert row.complied.n == 1
        assert row.through is not None
        assert row.through.hits <= row.complied.hits
        assert set(row.readings["joint"].found) == {"0.01", "0.05"}
        assert row.aim == ("joint" if searched else "")
    assert "cannot show a false-positive rate of 1 %" in " ".join(report.warnings)


def test_the_rows_are_what_the_guard_says_of_the_inputs(guard: Guard, report: AttackReport):
    plain = report.rows[0]
    hits = [guard.check(one.request).would_be != "pass" for one in HARMFUL]
    assert plain.hit == Share.of(Rate.of(hits))
    benign = [guard.check(one.request).score for one in BENIGN]
    assert report.reading_thresholds["text"]["joint"]["0.05"] == pytest.approx(
        max(benign), abs=1e-4
    )


def test_a_search_says_what_each_budget_leaves(report: AttackReport):
    behind, before = (
        report.rows[NAMES.index(f"greedy words {w}") + 1] for w in ("behind", "before")
    )
    assert [point.questions for point in before.budgets] == [1, 10, 20]
    rates = [point.hit.rate for point in before.budgets]
    assert rates == sorted(rates, reverse=True)
    assert behind.fall is not None
    assert behind.fall <= 1e-4
    assert behind.lost is not None
    assert behind.lost.hits == 0


def test_the_same_seed_gives_the_same_report(guard: Guard, report: AttackReport):
    assert same(measured(guard, content=True)) == same(report)


def test_a_second_run_asks_the_model_nothing(
    guard: Guard, report: AttackReport, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Reader, "_read", None)
    monkeypatch.setattr(Maker, "_made", None)
    again = measured(guard, work_dir=tmp_path_factory.getbasetemp() / "kept", content=True)
    assert same(again) == same(report)


def test_an_interrupted_run_goes_on(guard: Guard, tmp_path: Path, report: AttackReport):
    class Stopped(Exception):
        pass

    made: list[str] = []

    def stopping(stage: str, done: int, total: int) -> None:
        made.append(stage)
        if stage == "greedy words behind" and done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        measured(guard, work_dir=tmp_path, content=True, progress=stopping)
    again: list[str] = []
    read = Reader._read
    counted: list[int] = []

    def counting(self: Reader, requests: Any) -> Any:
        counted.append(len(requests))
        return read(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "_read", counting)
        resumed = measured(
            guard, work_dir=tmp_path, content=True, progress=lambda s, _d, _t: again.append(s)
        )
    assert same(resumed) == same(report)
    # the second input of one search, one GCG and three small controls: what was left, no more
    assert sum(counted) <= 20 + 20 + 3 + 5
    assert PLAIN in again


class Insatiable:
    """Asks more than it may."""

    name, family, asks = "insatiable", "mine", True

    def __call__(self, inputs: Any, scorer: Any, budget: Budget, seed: int) -> Any:
        while True:
            scorer([with_said(inputs[0], f"{'so ' * budget.asked}what") for _ in range(3)])


class Halved(Insatiable):
    """Gives too few."""

    name, asks = "halved", False

    def __call__(self, inputs: Any, scorer: Any, budget: Budget, seed: int) -> Any:
        return inputs[:1]


def test_an_attack_that_asks_on_is_ended_and_what_it_found_counts(guard: Guard):
    found = measured(guard, names=["tests.attack.test_run:Insatiable"])
    row = found.rows[1]
    assert row.n == 2
    assert row.asked == 18  # six times three of twenty


def test_an_attack_with_too_few_outputs_is_named(guard: Guard):
    with pytest.raises(ConfigurationError, match="'halved' gave 1 outputs for 5 inputs"):
        measured(guard, names=["tests.attack.test_run:Halved"])


def test_what_an_attack_cannot_be_done_to_is_counted_with_its_reason(tiny_of: Any):
    from guardrail.testing import tiny_artefact

    llama = tiny_of("llama")
    fitted = tiny_artefact(llama.model, llama.processor, tau_steer=9, tau_flag=9)
    with Guard((llama.model, llama.processor), fitted) as text_only:
        found = measured(text_only, names=["drawn", "pixel noise", "upper case"])
    drawn, noise, upper = found.attacks
    assert (drawn.n, drawn.hit) == (0, None)
    assert "reads text only" in next(iter(drawn.left_out))
    assert noise.n == 0
    assert upper.n == 5
    assert any(w.startswith("drawn: could be done to no input") for w in found.warnings)


def test_other_aims_are_other_searches(guard: Guard):
    some = replace(FAST, aims=("joint", "last"), answers=0)
    found = measured(guard, names=["greedy words behind"], settings=some)
    joint, last = found.attacks
    assert (joint.title, last.title) == ("greedy words behind", "greedy words behind (told: last)")
    assert last.complied is None
    assert joint.readings["windows"].standing != "defeated"


def test_without_benign_inputs_there_are_no_rates_and_no_control(guard: Guard):
    found = attack(guard, HARMFUL, names=["upper case"], settings=FAST)
    row = found.rows[1]
    assert row.benign_hit is None
    assert row.readings["joint"].found == {}
    assert found.reading_thresholds == {}
    assert "no benign inputs" in found.warnings[0]


def test_a_report_is_read_back_from_its_file(report: AttackReport):
    assert AttackReport.from_json(report.model_dump_json()) == report
    with pytest.raises(ConfigurationError, match="guardrail attack"):
        AttackReport.from_json("{}")


def test_content_is_in_the_report_only_where_it_is_asked_for(guard: Guard, report: AttackReport):
    assert all(row.example for row in report.rows)
    bare = measured(guard, names=["upper case"])
    assert all(row.example is None for row in bare.rows)
    assert "TABLE" not in bare.model_dump_json()


@pytest.mark.parametrize(
    ("before", "now", "benign", "stands"),
    [
        (20, 19, 1, "holds"),
        (20, 15, 1, "weakened"),
        (20, 5, 1, "defeated"),
        (20, 20, 19, "defeated"),  # it hits everything now: nothing is found by that
        (0, 5, 1, "unknown"),
    ],
)
def test_a_reading_stands_by_what_it_finds_beyond_benign_hits(before, now, benign, stands):
    shares = (Share.of(Rate(hits, 20)) for hits in (before, now, benign))
    assert standing(*shares) == stands


def test_nothing_to_attack_is_an_error(guard: Guard):
    with pytest.raises(DatasetError, match="no harmful inputs"):
        attack(guard, [], BENIGN)


@pytest.mark.parametrize(
    "wrong", [{"questions": 0}, {"answers": -1}, {"aims": ("nothing",)}, {"seconds": 0}]
)
def test_settings_that_make_no_run_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ConfigurationError):
        Settings(**wrong)


def test_inputs_of_a_file(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    rows = [{"text": "a"}, {"text": "b", "label": "benign", "id": "mine"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    harmful, benign = load_inputs(path, Policy())
    assert [one.id for one in harmful] == ["data-1"]
    assert [one.id for one in benign] == ["mine"]
    path.write_text('{"text": "a", "label": "perhaps"}')
    with pytest.raises(DatasetError, match="line 1: the label 'perhaps'"):
        load_inputs(path, Policy())
    path.write_text('{"image": "missing.png"}')
    with pytest.raises(DatasetError, match="line 1"):
        load_inputs(path, Policy())


def test_packaged_inputs_are_of_splits_that_nothing_is_fitted_on():
    from guardrail.fit.dataset import packaged

    harmful, benign = packaged_inputs(Policy(), 12)
    split = {prompt.id: (prompt.in_split, prompt.label) for prompt in packaged()}
    assert len(harmful) == len(benign) == 12
    assert {split[one.id][1] for one in harmful} == {"unsafe"}
    assert {split[one.id][1] for one in benign} == {"safe"}
    assert "fit" not in {split[one.id][0] for one in [*harmful, *benign]}


def test_a_policy_that_folds_what_is_answered_is_attacked_as_it_answers(guard: Guard):
    folding = guard.with_policy(guard.policy.model_copy(update={"fold_answers": True}))
    names = ["homoglyphs", "zero-width"]
    some = replace(FAST, answers=0)
    plain, other = (measured(each, names=names, settings=some) for each in (guard, folding))
    for before, after in zip(plain.attacks, other.attacks, strict=True):
        assert (after.hit, after.benign_hit) == (before.checked, before.checked_benign)
        assert after.checked == before.checked
    assert any(row.hit != row.checked for row in plain.attacks)
    folding.close()


def test_pictures_are_held_to_what_benign_inputs_score_as_pictures(guard: Guard):
    found = measured(guard, names=["drawn"], settings=replace(FAST, answers=0))
    (row,) = found.attacks
    assert set(found.reading_thresholds) == {"text", "image"}
    for reading in row.readings.values():
        assert reading.benign["0.05"].hits == 0  # by what the threshold is
        assert reading.before is not None
