"""The checks can fail: a guard that gives the model other inputs than it should is found out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.conformance import Outcome, check_model
from guardrail.model import encode
from guardrail.testing import tiny_model
from tests.conformance.every_check import check_everything

if TYPE_CHECKING:
    from collections.abc import Callable

    Patch = Callable[[pytest.MonkeyPatch], None]

EDITS = {"steering", "early_edit", "beams"}
CHECKS = {"layers", "score", "unsteered", "batch", "flag", *EDITS}


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_model("llava")


def padding_is_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.Encoder._apply

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        batch = real(self, *args, **options)
        return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}

    monkeypatch.setattr(encode.Encoder, "_apply", apply)


def padding_on_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.Encoder._apply

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        batch = real(self, *args, **options)
        for row, count in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            for name in ("input_ids", "attention_mask"):
                batch[name][row] = batch[name][row].roll(count)
        return batch

    monkeypatch.setattr(encode.Encoder, "_apply", apply)


def the_picture_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.Encoder._apply

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        batch = real(self, *args, **options)
        if "pixel_values" in batch:
            batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])
        return batch

    monkeypatch.setattr(encode.Encoder, "_apply", apply)


def pictures_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.Encoder._apply

    def apply(self: Any, *args: Any, **options: Any) -> Any:
        batch = real(self, *args, **options)
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].flip(0)
        return batch

    monkeypatch.setattr(encode.Encoder, "_apply", apply)


MUTANTS: list[tuple[Patch, set[str]]] = [
    (padding_is_attended_to, {"batch", "flag", *EDITS}),
    (padding_on_the_right, {"batch", "flag", *EDITS}),
    (the_picture_is_forgotten, {"layers", "score", "unsteered", "batch", "steering"}),
    (pictures_in_another_order, {"score", "batch"}),
]


@pytest.mark.parametrize(("patch", "wrong"), MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_other_inputs_fail_the_checks_that_look_there_and_no_others(
    patch: Patch, wrong: set[str], llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    assert {check.name for check in check_everything(*llava, names=CHECKS).failed} == wrong


def frames_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode.video_turn_part

    def part(clip: Any) -> dict[str, Any]:
        return real(clip) | {"video": list(clip.frames)[::-1]}

    monkeypatch.setattr(encode, "video_turn_part", part)


def frames_at_other_times(monkeypatch: pytest.MonkeyPatch) -> None:
    real = encode._metadata
    monkeypatch.setattr(encode, "_metadata", lambda clip: real(clip) | {"fps": 500.0})


@pytest.mark.parametrize("patch", [frames_backwards, frames_at_other_times])
def test_a_video_is_held_against_what_plain_transformers_makes_of_it(
    patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    (check,) = check_model(*tiny_model("qwen2_5_vl"), names=["video"]).checks
    assert check.outcome is Outcome.FAILED, check
