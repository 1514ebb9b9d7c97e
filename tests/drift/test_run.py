"""The whole check: its report, its premises, and the old model at hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.drift.run import _Check
from guardrail.drift.schema import DriftReport
from guardrail.errors import ArtefactMismatchError, ConfigurationError, DatasetError


def test_a_report_comes_back_from_its_json(drifted: Any) -> None:
    report = drifted("llava", "rebased").report
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert report.schema_version == 1


def test_the_report_names_what_was_compared(drifted: Any, text: Any, changed: Any) -> None:
    report = drifted("llama", "rebased").report
    assert report.artefact_id == text.artefact.artefact_id
    assert report.model == changed("llama", "rebased").name
    assert report.readout["layers"] == list(text.artefact.header.readout.layers)
    assert report.data["digest"] == text.artefact.header.data["digest"]
    (change,) = report.fingerprint
    assert (change.field, change.decides) == ("weights_digest", True)
    assert change.fitted == text.artefact.header.fingerprint.weights_digest
    assert report.repaired.artefact_id == drifted("llama", "rebased").artefact.artefact_id
    assert report.warnings == ()


def test_without_fix_nothing_is_made(text: Any, changed: Any) -> None:
    drift = text.check(changed("llama", "rebased"))
    assert drift.artefact is None
    assert drift.report.repaired is None
    assert drift.report.transport.reason is None


@pytest.mark.parametrize(
    ("reads", "seeing", "told"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_a_refit_says_when_it_reads_no_videos_that_it_could(
    reads: bool, seeing: bool, told: bool
) -> None:
    fitted: Any = SimpleNamespace(reads_videos=reads)
    collect: Any = SimpleNamespace(loaded=SimpleNamespace(is_multimodal=seeing))
    nothing: Any = None
    check = _Check(fitted, nothing, collect, nothing, nothing, nothing)
    assert (check._without_video() is not None) is told


def test_transport_is_looked_for_only_where_the_direction_is_lost(drifted: Any) -> None:
    assert drifted("llama", "bfloat16").report.transport is None
    assert "not a signed permutation" in drifted("llama", "another").report.transport.reason


def test_an_older_artefact_is_compared_through_the_old_model(text: Any, changed: Any) -> None:
    """Measured on the old model or taken from the artefact: the same figures."""
    older = text.artefact.revised(extra={})
    blind = text.check(changed("llama", "tuned a little"), artefact=older)
    assert blind.report.figures.separation.fitted is None
    assert "give --old-model" in blind.report.warnings[0]
    paired = text.check(
        changed("llama", "tuned a little"), artefact=older, old_model=text.loaded
    ).report
    wanted = text.check(changed("llama", "tuned a little")).report
    assert paired.warnings == ()
    assert paired.figures.rates == wanted.figures.rates
    found, known = paired.figures.separation, wanted.figures.separation
    assert found.fitted.value == pytest.approx(known.fitted.value)
    assert found.dropped.low == pytest.approx(known.dropped.low)
    shifts = [[row.shift.value for row in r.figures.shifts] for r in (paired, wanted)]
    assert shifts[0] == pytest.approx(shifts[1], abs=1e-5)
    assert paired.verdict == wanted.verdict


def test_a_basis_is_recovered_from_prompts_with_the_old_model(text: Any, changed: Any) -> None:
    drift = text.check(changed("llama", "rebased"), old_model=text.loaded, fix=True)
    assert drift.report.transport.source == "activations"
    assert drift.report.repaired.how == "transported"


def test_a_transport_that_does_not_hold_ends_in_a_fit(
    text: Any, changed: Any, monkeypatch: Any
) -> None:
    from guardrail.drift import run
    from guardrail.drift.basis import SignedPermutation

    real = run.find_transport

    def wrong(*args: Any) -> Any:
        found = real(*args)
        reversed_map = SignedPermutation(found.map.places.flip(0), found.map.signs)
        return run.Transport(reversed_map, found.figures)

    monkeypatch.setattr(run, "find_transport", wrong)
    drift = text.check(changed("llama", "rebased"), fix=True)
    assert drift.report.repaired.how == "refitted"
    assert "transport was found but does not hold" in drift.report.warnings[0]


def test_the_old_model_must_be_the_artefacts_own(text: Any, changed: Any) -> None:
    with pytest.raises(ArtefactMismatchError, match="weights_digest") as raised:
        text.check(text.loaded, old_model=changed("llama", "another"))
    fitted, running = raised.value.fields["weights_digest"]
    assert fitted == text.artefact.header.fingerprint.weights_digest
    assert running not in str(raised.value)


def test_other_prompts_are_refused_before_the_model_is_asked(text: Any) -> None:
    from guardrail.drift.run import check_drift

    seen: list[str] = []
    with pytest.raises(DatasetError, match="--replace-data"):
        check_drift(
            text.artefact,
            text.loaded,
            measure=True,
            progress=lambda name, *_: seen.append(name),
        )
    assert seen == []


@pytest.mark.parametrize("fix", [False, True])
def test_the_model_of_the_fit_is_kept_without_a_look_at_it(text: Any, fix: bool) -> None:
    seen: list[str] = []
    drift = text.check(
        text.loaded, measure=False, fix=fix, progress=lambda name, *_: seen.append(name)
    )
    report = drift.report
    assert (report.verdict, report.figures, report.scores, seen) == ("keep", None, (), [])
    assert report.reasons[0].startswith("nothing was measured, because nothing has changed")
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert drift.artefact is (text.artefact if fix else None)
    assert (report.repaired is not None) is fix


def test_a_change_that_does_not_decide_is_measured_where_it_moves_scores(
    text: Any, changed: Any
) -> None:
    assert text.check(changed("llama", "bfloat16"), measure=False).report.figures is not None
    elsewhere = text.artefact.header.fingerprint.model_copy(update={"revision": "abc"})
    moved = text.artefact.revised(fingerprint=elsewhere)
    assert text.check(text.loaded, artefact=moved, measure=False).report.figures is None


def test_other_packages_are_named_where_nothing_is_measured(text: Any) -> None:
    older = text.artefact.revised(packages={"torch": "1.0", "safetensors": "0.1"})
    (warning,) = text.check(text.loaded, artefact=older, measure=False).report.warnings
    assert "fitted with torch 1.0" in warning
    assert "--measure" in warning


def test_fewer_prompts_are_among_those_of_the_fit_and_compared_in_pairs(
    text: Any, changed: Any
) -> None:
    whole = text.check(changed("llama", "tuned a little")).report
    fewer = text.check(changed("llama", "tuned a little"), per_kind=5).report
    plain, all_plain = (report.figures.forms[0] for report in (fewer, whole))
    assert (plain.form, plain.n_unsafe) == ("plain", 3)
    assert plain.n_safe < all_plain.n_safe
    assert plain.fitted is not None
    assert all(row.fitted is not None for row in fewer.figures.rates)
    assert fewer.verdict == whole.verdict


def test_a_change_of_basis_is_not_looked_for_in_other_prompts_than_the_means(
    text: Any, changed: Any
) -> None:
    report = text.check(changed("llama", "rebased"), per_kind=5).report
    assert (report.verdict, report.transport) == ("refit", None)


def test_a_repair_of_fewer_prompts_than_the_fits_is_refused(text: Any, changed: Any) -> None:
    with pytest.raises(ConfigurationError, match="as many prompts as the fit"):
        text.check(changed("llama", "rebased"), per_kind=5, fix=True)


def test_the_prompts_of_the_fit_are_read_however_many_it_took(text: Any) -> None:
    from guardrail.drift.fitted import Fitted

    data = text.artefact.header.data
    assert Fitted.of(text.artefact).per_kind == 112
    for stored, wanted in (({}, 112), ({"per_kind": None}, None), ({"per_kind": 7}, 7)):
        kept = {k: v for k, v in data.items() if k != "per_kind"}
        assert Fitted.of(text.artefact.revised(data=kept | stored)).per_kind == wanted


def test_residuals_are_kept_per_model(text: Any, changed: Any, tmp_path: Any) -> None:
    """One work_dir for several models must not give one model the other's residuals."""
    first = text.check(text.loaded, work_dir=tmp_path)
    second = text.check(changed("llama", "rebased"), work_dir=tmp_path)
    assert first.report.verdict == "keep"
    assert second.report.verdict == "refit"
    before = sorted(path.name for path in tmp_path.iterdir())
    again = text.check(changed("llama", "rebased"), work_dir=tmp_path)
    assert again.report.figures == second.report.figures
    assert sorted(path.name for path in tmp_path.iterdir()) == before
