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
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt
from guardrail.fit.directions import Offset, difference_of_means, layer_scores, no_offsets
from guardrail.fit.outcome import (
    TRAFFIC,
    Outcome,
    artefact_of,
    from_header,
    reference_scores,
    to_header,
    video_notes,
)
from guardrail.fit.readings import Readings, with_residuals
from guardrail.fit.select import Candidate, LinearReadout, Separation, readout
from guardrail.fit.steering import CausalEffect, SteeringFound, Trial, steering_at
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Thresholds
from guardrail.stats import Rate
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.model.load import LoadedModel

LAYERS, WIDTH = 3, 6


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
        **offsets: Any,
    ) -> Outcome:
        high = unsafe.clone()
        if bad_layer is not None:
            high[0, bad_layer, 0] = math.inf
        directions = difference_of_means(high, safe)
        chosen = Candidate(
            readout("difference of means", 1, [high], [safe]), {"plain": Separation({"near": 0.9})}
        )
        edit = steering_at(directions, 1, high)
        trials = [
            Trial(
                steering=edit,
                factor=1.0,
                unsteered=Rate(0, 4),
                induced=Rate(3, 4),
                false_refusal=Rate(0, 9),
                kl=kl,
            )
            for kl in kls
        ]
        return Outcome(
            fingerprint=fingerprint(llama_loaded),
            readings=Readings(
                contrast,
                {},
                no_offsets(LAYERS, WIDTH) | offsets,
                directions,
                layer_scores(directions, high, safe, None),
            ),
            chosen=chosen,
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


def test_an_offset_as_wide_as_the_text_gap_is_a_warning(outcome_of: Any) -> None:
    directions = outcome_of().readings.directions
    apart = (directions.mu_unsafe - directions.mu_safe)[None] * torch.tensor([-1.0, 1.0])[
        :, None, None
    ]
    made = artefact_of(outcome_of(kls=(0.01,), image=Offset(apart.mean(0), apart, apart * 0.1)))
    (warning,) = made.header.warnings
    assert warning.startswith("re-centring of kind 'image' varies by 1.41 text gaps")
    row = made.header.offsets["image"]
    assert (row.spread_colours, row.n_colours) == (pytest.approx(math.sqrt(2), abs=1e-4), 2)
    assert row.spread_prompts == pytest.approx(0.1 * math.sqrt(2), abs=1e-4)


def test_the_offset_of_videos_is_kept_with_a_note_on_their_thresholds(outcome_of: Any) -> None:
    shift = torch.full((LAYERS, WIDTH), 0.01)
    made = artefact_of(outcome_of(kls=(0.01,), video=Offset(shift, shift[None], shift[None])))
    weight, direction = made.tensors["readout_weight"], made.tensors["direction"][1]
    assert made.reads_videos
    torch.testing.assert_close(made.tensors["readout_offset_video"], (weight * 0.01).sum(-1))
    torch.testing.assert_close(made.tensors["steer_offset_video"], (direction * 0.01).sum())
    (warning,) = made.header.warnings
    assert warning.startswith("video: held to the thresholds of text inputs")


def test_why_no_video_can_be_scored_is_in_the_artefact(outcome_of: Any) -> None:
    made = artefact_of(replace(outcome_of(kls=(0.01,)), without_video="too small"))
    assert made.header.warnings == ("video: no video can be scored: too small",)
    assert not made.reads_videos


@pytest.fixture
def readings() -> Readings:
    from guardrail.fit.directions import difference_of_means
    from guardrail.fit.prompts import plain

    contrast = ContrastSet(
        tuple(
            Prompt(text=f"{split} {label} {i}", label=label, split=split)
            for split in ("fit", "select", "calibrate")
            for label in ("unsafe", "safe")
            for i in range(16)
        )
    )
    samples = plain(contrast)
    residuals = torch.randn(len(samples), 2, 3, generator=torch.Generator().manual_seed(0))
    forms = {"plain": with_residuals(contrast, samples, residuals)}
    return Readings(contrast, forms, {}, difference_of_means(residuals, residuals + 1), [])


READOUT = LinearReadout(
    "made up", (1,), torch.eye(3)[:1], torch.zeros(1).double(), torch.ones(1).double()
)


def test_every_prompt_outside_the_fit_split_has_its_score(readings: Readings) -> None:
    found = reference_scores(readings, READOUT)["plain"]
    form = readings.forms["plain"]
    wanted = {
        sample.index: float(row[1, 0])
        for sample, split, row in zip(form.samples, form.splits, form.residuals, strict=True)
        if split != "fit"
    }
    assert found == pytest.approx(wanted, abs=1e-6)
    assert {readings.contrast.prompts[i].split for i in found} == {"select", "calibrate"}


def test_scores_come_back_from_a_header(readings: Readings) -> None:
    found = reference_scores(readings, READOUT)
    assert from_header(to_header(found)) == found


def test_scores_that_are_no_numbers_are_left_out(readings: Readings) -> None:
    form = readings.forms["plain"]
    place = next(i for i, split in enumerate(form.splits) if split == "select")
    form.residuals[place] = math.nan
    assert form.samples[place].index not in reference_scores(readings, READOUT)["plain"]


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
