"""What a fit found, as an artefact.

What an artefact says about the thresholds of videos.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.artefact.header import Calibration
from guardrail.decide.detector import Detector
from guardrail.decide.windows import WindowReadout
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt
from guardrail.fit.directions import difference_of_means, layer_scores
from guardrail.fit.effects import CausalEffect
from guardrail.fit.joint import JointReadout
from guardrail.fit.outcome import (
    TRAFFIC,
    Outcome,
    artefact_of,
    from_header,
    reference_scores,
    to_header,
    video_notes,
)
from guardrail.fit.prompts import plain
from guardrail.fit.readings import Readings
from guardrail.fit.recentring import Beside
from guardrail.fit.run import recentred_readout
from guardrail.fit.select import Candidate, LinearReadout, Separation, readout
from guardrail.fit.steering import SteeringFound, Trial, steering_at
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Policy, Thresholds
from guardrail.stats import Rate
from guardrail.types import Modality
from tests.fit.residuals import form_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.model.load import LoadedModel

LAYERS, WIDTH = 3, 6
FIXED = Policy(thresholds=dict.fromkeys(Modality, Thresholds(steer=0.0, flag=1.0)))


def beside(kind_of_shift: Any = 0.1) -> Beside:
    """Requests of both classes, alone and beside a picture that adds something to all layers."""
    generator = torch.Generator().manual_seed(7)
    unsafe = [i % 2 == 0 for i in range(80)]
    alone = torch.randn(80, LAYERS, WIDTH, generator=generator)
    alone[unsafe] += 2
    return Beside(["fit"] * 40 + ["select"] * 40, unsafe, alone, alone + kind_of_shift)


@pytest.fixture
def outcome_of(llama_loaded: LoadedModel) -> Callable[..., Outcome]:
    """`outcome_of(bad_layer=0, kls=(0.01,))`: a made-up fit with a trial for each KL."""
    generator = torch.Generator().manual_seed(0)
    safe = torch.randn(30, LAYERS, WIDTH, generator=generator)
    unsafe = torch.randn(30, LAYERS, WIDTH, generator=generator) + 2
    contrast = ContrastSet(
        tuple(
            Prompt(text=f"{split} {label} {i}", label=label, split=split)
            for split in SPLITS
            for label in ("unsafe", "safe")
            for i in range(16)
        )
    )

    def make(
        *,
        bad_layer: int | None = None,
        kls: tuple[float, ...] = (),
        shift: float = 1.0,
        turns: bool = True,
        windows: WindowReadout | None = None,
        **kinds: Beside,
    ) -> Outcome:
        high = unsafe.clone()
        if bad_layer is not None:
            high[0, bad_layer, 0] = math.inf
        directions = difference_of_means(high, safe)
        found = Readings(
            contrast,
            {},
            kinds,
            directions,
            layer_scores(directions, high, safe, None),
            token_layers=(1,),
            whole_layers=(0, 1, 2) if turns else (0,),
        )
        made = readout("difference of means", 1, [high], [safe])
        assert made is not None
        made = recentred_readout(made, found)
        chosen = Candidate(made, {"plain": Separation({"near": 0.9})})
        edit = steering_at(directions, 1, high, kinds)
        trials = [
            Trial(
                steering=edit,
                factor=1.0,
                unsteered=Rate(0, 4),
                induced=Rate(3, 4),
                false_refusal=Rate(0, 9),
                kl=kl,
                garbled=Rate(0, 4),
                induced_by={"plain": Rate(3, 4)},
            )
            for kl in kls
        ]
        return Outcome(
            fingerprint=fingerprint(llama_loaded),
            readings=found,
            chosen=chosen,
            joint=JointReadout(made, windows, turns),
            window_figures={"auroc": 0.9},
            candidates=[chosen],
            calibration={},
            steering=SteeringFound({1: CausalEffect(shift, 0.0)}, trials),
            prefixes=("Sorry",),
        )

    return make


def test_what_was_found_survives_its_file(outcome_of: Any, tmp_path: Path) -> None:
    made = artefact_of(outcome_of(kls=(0.01, 0.05)))
    again = Artefact.load(made.save(tmp_path / "made.guard.safetensors"))
    assert again.header == made.header
    steering = again.header.steering
    assert (steering.layer, steering.kl) == (1, 0.01)
    assert [trial["kl"] for trial in steering.figures["trials"]] == [0.01, 0.05]
    assert [row.causal for row in again.header.layers] == [None, 1.0, None]
    assert again.header.warnings == ()


def test_a_layer_that_overflowed_does_not_keep_the_others_from_being_saved(
    outcome_of: Any, tmp_path: Path
) -> None:
    made = artefact_of(outcome_of(bad_layer=2, kls=(0.01,)))
    again = Artefact.load(made.save(tmp_path / "made.guard.safetensors"))
    assert [row.usable for row in again.header.layers] == [True, True, False]
    assert again.header.layers[2].norm == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_edit_that_broke_the_model_leaves_a_gap_in_the_figures_not_a_failed_fit(
    outcome_of: Any, bad: float
) -> None:
    made = artefact_of(outcome_of(kls=(0.01, bad), shift=bad))
    assert [trial["kl"] for trial in made.header.steering.figures["trials"]] == [0.01, None]
    assert made.header.layers[1].causal is None


def test_without_an_edit_the_artefact_says_it_only_detects(outcome_of: Any) -> None:
    made = artefact_of(outcome_of())
    assert made.header.steering is None
    (warning,) = made.header.warnings
    assert warning.startswith("detect only")
    assert "1 layers measured, 0 settings tried" in warning


def test_a_picture_that_leaves_requests_their_scores_is_no_warning(outcome_of: Any) -> None:
    made = artefact_of(outcome_of(kls=(0.01,), image=beside(0.3)))
    assert made.header.warnings == ()
    row = made.header.recentring["image"]
    assert (row.n, row.score.slope) == (40, pytest.approx(1, abs=1e-5))
    assert row.score.intercept > 0.05  # what the picture adds along the readout, taken back
    assert (row.safe, row.unsafe) == pytest.approx((0, 0), abs=1e-5)
    # of the same direction at the same layer
    assert row.steering.model_dump() == pytest.approx(row.score.model_dump(), abs=1e-5)


def test_scores_that_requests_lose_beside_a_picture_are_a_warning(outcome_of: Any) -> None:
    noise = 9 * torch.randn(80, LAYERS, WIDTH, generator=torch.Generator().manual_seed(3))
    made = artefact_of(outcome_of(kls=(0.01,), image=beside(noise)))
    (warning,) = made.header.warnings
    assert warning.startswith("re-centring: beside a picture (kind 'image', n = 40) scores of safe")
    assert f"by {made.header.recentring['image'].safe:+.2f} text gaps" in warning


def test_windows_are_in_the_artefact_as_a_guard_reads_them(outcome_of: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    query, value = (torch.randn(1, 2, WIDTH, generator=generator) for _ in range(2))
    windows = WindowReadout((1,), query, value, torch.ones(1), 16, 4, zero=0.5, gap=2.0)
    made = artefact_of(outcome_of(kls=(0.01,), windows=windows))
    again = Artefact.load(made.save(tmp_path / "made.guard.safetensors"))
    read = Detector.from_artefact(again, FIXED).windows
    assert read is not None
    tokens = torch.randn(20, 1, WIDTH, generator=generator)
    scores = [w.scores(w.products(1, tokens[:, 0])[:, None]) for w in (windows, read)]
    assert len(scores[0]) == 17
    torch.testing.assert_close(scores[0], scores[1])
    assert again.header.windows.figures == {"auroc": 0.9}


def test_a_model_whose_layers_run_at_the_end_alone_is_said_to_forget_earlier_turns(
    outcome_of: Any,
) -> None:
    made = artefact_of(outcome_of(kls=(0.01,), turns=False))
    assert not made.header.readout.turns
    (warning,) = made.header.warnings
    assert warning.startswith("earlier turns are not judged again")


def test_what_a_video_does_is_kept_with_a_note_on_their_thresholds(outcome_of: Any) -> None:
    made = artefact_of(outcome_of(kls=(0.01,), video=beside(0.01)))
    assert made.reads_videos
    assert set(made.header.recentring) == {"video"}
    (warning,) = made.header.warnings
    assert warning.startswith("video: held to the thresholds of text inputs")


def test_why_no_video_can_be_scored_is_in_the_artefact(outcome_of: Any) -> None:
    made = artefact_of(replace(outcome_of(kls=(0.01,)), without_video="too small"))
    assert made.header.warnings == ("video: no video can be scored: too small",)
    assert not made.reads_videos


@pytest.fixture
def readings() -> Readings:
    contrast = ContrastSet(
        tuple(
            Prompt(text=f"{split} {label} {i}", label=label, split=split)
            for split in SPLITS
            for label in ("unsafe", "safe")
            for i in range(16)
        )
    )
    some = plain(contrast)
    residuals = torch.randn(len(some), 2, 3, generator=torch.Generator().manual_seed(0))
    prompts = [contrast.prompts[s.index] for s in some]
    form = form_of(residuals, [p.in_split for p in prompts], [p.kind for p in prompts], some)
    means = difference_of_means(residuals, residuals + 1)
    return Readings(contrast, {"plain": form}, {}, means, [], (1,), (0, 1))


JOINT = JointReadout(
    LinearReadout(
        "made up", (1,), torch.eye(3)[:1], torch.zeros(1).double(), torch.ones(1).double()
    )
)


def test_every_prompt_outside_the_fit_split_has_its_score(readings: Readings) -> None:
    found = reference_scores(readings, JOINT)["plain"]
    form = readings.forms["plain"]
    wanted = {
        sample.key: float(row[1, 0])
        for sample, split, row in zip(form.samples, form.splits, form.residuals, strict=True)
        if split != "fit"
    }
    assert found == pytest.approx(wanted, abs=1e-6)
    assert {readings.contrast.prompts[int(key.split()[0])].split for key in found} == {
        "select",
        "calibrate",
    }


def test_scores_come_back_from_a_header(readings: Readings) -> None:
    found = reference_scores(readings, JOINT)
    assert from_header(to_header(found)) == found


def test_scores_that_are_no_numbers_are_left_out(readings: Readings) -> None:
    form = readings.forms["plain"]
    place = next(i for i, split in enumerate(form.splits) if split == "select")
    form.reads[place].last[:] = math.nan
    found = reference_scores(readings, JOINT)["plain"]
    assert form.samples[place].key not in found
    assert found


@pytest.mark.parametrize(
    "stored",
    [None, 3, [], {"plain": 3}, {"plain": {"index": [1]}}, {"plain": {"index": [1], "score": []}}],
)
def test_what_cannot_be_read_counts_as_not_known(stored: JsonValue) -> None:
    assert from_header(stored) == {}


def calibration(source: str = "safe contrast prompts, drawn") -> Calibration:
    levels = Thresholds(steer=0.5, flag=1.0)
    return Calibration(scores=(0.0,), thresholds=levels, source=source, n=1)


@pytest.mark.parametrize("whose", [Modality.TEXT, Modality.IMAGE])
def test_borrowed_thresholds_are_named(whose: Modality) -> None:
    known = {m: calibration() for m in (Modality.TEXT, whose)}
    (note,) = video_notes(known, reads_videos=True)
    assert f"held to the thresholds of {whose} inputs" in note
    assert "guardrail calibrate" in note


def test_drawn_videos_of_one_window_give_no_rate_for_long_ones() -> None:
    (note,) = video_notes({Modality.VIDEO: calibration("prompts, filmed")}, reads_videos=True)
    assert "videos of one window (prompts, filmed)" in note


def test_nothing_is_said_of_videos_of_ones_own_or_where_none_are_read() -> None:
    assert not list(video_notes({Modality.VIDEO: calibration(TRAFFIC)}, reads_videos=True))
    assert not list(video_notes({Modality.TEXT: calibration()}, reads_videos=False))
