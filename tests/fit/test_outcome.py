"""What a fit found, as an artefact."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.fit.causal import CausalEffect
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt
from guardrail.fit.direction import difference_of_means
from guardrail.fit.estimators import Separation, readout
from guardrail.fit.layers import layer_scores
from guardrail.fit.outcome import Outcome, artefact_of
from guardrail.fit.reading import Readings
from guardrail.fit.recentre import Offset, no_offsets
from guardrail.fit.select import Candidate
from guardrail.fit.steer_search import SteeringFound
from guardrail.fit.steering import Trial, steering_at
from guardrail.model.fingerprint import fingerprint
from guardrail.stats import Rate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
