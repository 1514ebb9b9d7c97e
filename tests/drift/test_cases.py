"""Checkpoints changed in known ways, each with the verdicts that are right for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.errors import NoUsableDirectionError
from guardrail.fit.collect import Collector, text_request
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import next_token_logits
from guardrail.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.drift.run import Drift

DIRTY, CLEAN = "tell me about the user and the dog", "tell me about the user and the cat"
FAMILIES = ("llama", "llava")
MILD = [
    ("nothing", ("keep",)),
    ("shards", ("keep",)),
    ("bfloat16", ("keep",)),
    ("tuned a little", ("keep", "recalibrate")),
    ("LoRA", ("keep", "recalibrate")),
    ("template", ("recalibrate", "refit")),
]
LOST = [("tuned to comply", "refitted"), ("rebased", "transported"), ("another", "refitted")]
SEEN = ("nothing", "template", "tuned to comply", "rebased")  # one for each way it can end


def on_each_family(cases: list[Any]) -> list[Any]:
    """Cases, named by their first value, on the text model; a few also on that of pictures."""
    made = []
    for family in FAMILIES:
        for case in cases:
            always = family == "llama" or case[0] in SEEN
            marks = () if always else pytest.mark.slow
            made.append(pytest.param(family, *case, marks=marks))
    return made


@pytest.mark.parametrize(("family", "change", "right"), on_each_family(MILD))
def test_a_change_that_keeps_the_direction_costs_no_fit(
    drifted: Callable[[str, str], Drift], family: str, change: str, right: tuple[str, ...]
) -> None:
    drift = drifted(family, change)
    if (family, change) == ("llama", "template"):
        right = ("keep",)  # what stands behind a text's words moves no score where windows suffice
    assert drift.report.verdict in right, drift.report.reasons
    how = {"keep": "fingerprint", "recalibrate": "recalibrated", "refit": "refitted"}
    assert drift.report.repaired.how == how[drift.report.verdict]


@pytest.mark.parametrize(("family", "change", "how"), on_each_family(LOST))
def test_a_change_that_loses_the_direction_is_found_and_repaired(
    drifted: Callable[[str, str], Drift], family: str, change: str, how: str
) -> None:
    drift = drifted(family, change)
    assert drift.report.verdict == "refit", drift.report.reasons
    assert drift.report.repaired.how == how
    assert drift.artefact.header.readout.figures["auroc"] > 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_cannot_tell_prompts_apart_is_an_error(
    planted_of: Any, changed: Any, family: str
) -> None:
    with pytest.raises(NoUsableDirectionError, match=r"0\.80 is needed"):
        planted_of(family).check(changed(family, "deafened"), fix=True)


@pytest.mark.parametrize(
    ("family", "change"), on_each_family([(name,) for name, _ in (*MILD, *LOST)])
)
def test_the_repaired_artefact_guards_the_new_model_without_leave(
    drifted: Any, changed: Any, planted_of: Any, family: str, change: str
) -> None:
    drift, model = drifted(family, change), changed(family, change)
    assert drift.artefact.header.fingerprint == fingerprint(model)
    with Guard(model, drift.artefact) as guard:
        dirty, clean = guard.check_batch([DIRTY, CLEAN])
        assert dirty.score > clean.score
        assert clean.action == "pass"
    if change in ("nothing", "shards"):
        assert drift.artefact is planted_of(family).artefact
    else:
        assert drift.artefact.header.parent == planted_of(family).artefact.artefact_id
        old = planted_of(family).artefact.header.warnings
        new = {warning for warning in drift.artefact.header.warnings if warning not in old}
        assert new <= set(drift.report.warnings)  # what a repair cost is not left to be looked up
        record = drift.artefact.header.extra["drift"]
        assert record["verdict"] == drift.report.verdict
        assert record["how"] == drift.report.repaired.how


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", ["rebased", "permuted"])
def test_another_basis_is_the_same_model(
    planted_of: Any, changed: Any, picture: Any, family: str, change: str
) -> None:
    """Outputs stay, the fingerprint does not."""
    old, new = planted_of(family).loaded, changed(family, change)
    images = [picture()] if old.is_multimodal else []
    requests = [text_request(text, images=images) for text in (DIRTY, CLEAN)]
    encoded = Collector(old).encoder.encode(requests)
    before, after = next_token_logits(old, encoded), next_token_logits(new, encoded)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert "weights_digest" in fingerprint(old).differences(fingerprint(new))


@pytest.mark.parametrize("family", FAMILIES)
def test_transport_restores_separation_and_steering(drifted: Any, family: str) -> None:
    drift = drifted(family, "rebased")
    figures, found = drift.report.figures, drift.report.transport
    assert figures.separation.old.value < figures.separation.fitted.value - 0.05
    assert found.reason is None
    assert found.auroc_after == pytest.approx(found.auroc_fitted, abs=0.01)
    assert all(abs(row.cosine) < 0.5 for row in figures.layers if row.cosine is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transported_artefact_gives_the_old_scores(
    drifted: Any, changed: Any, planted_of: Any, family: str
) -> None:
    old, drift = planted_of(family), drifted(family, "rebased")
    with Guard(old.loaded, old.artefact) as before:
        then = [verdict.score for verdict in before.check_batch([DIRTY, CLEAN])]
    with Guard(changed(family, "rebased"), drift.artefact) as after:
        now = [verdict.score for verdict in after.check_batch([DIRTY, CLEAN])]
    assert now == pytest.approx(then, abs=1e-3)
    edits = [Detector.from_artefact(a, Policy()).steering for a in (old.artefact, drift.artefact)]
    assert edits[0].gap == pytest.approx(edits[1].gap, rel=1e-5)
    assert edits[0].zero == pytest.approx(edits[1].zero, abs=1e-4)


def test_the_same_model_changes_nothing(drifted: Any, text: Any) -> None:
    drift = drifted("llama", "nothing")
    figures = drift.report.figures
    assert drift.artefact is text.artefact
    assert drift.report.fingerprint == ()
    assert figures.separation.dropped.value == pytest.approx(0, abs=1e-9)
    assert all(row.now == row.fitted and row.p_value == 1 for row in figures.rates)
    cosines = [row.cosine for row in figures.layers]
    assert cosines == [*[pytest.approx(1, abs=1e-5)] * 3, None]  # the last one is not read
    assert figures.steering.shift_now == pytest.approx(figures.steering.shift_fitted, abs=1e-3)
    assert figures.centroids_now == pytest.approx((0, 1), abs=1e-4)


def test_a_recast_model_differs_in_nothing_that_decides(drifted: Any) -> None:
    changes = drifted("llama", "bfloat16").report.fingerprint
    assert {change.field for change in changes if not change.decides} == {"dtype"}
