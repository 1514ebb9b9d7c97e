"""What a fit asks of the model before it decides."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Rates
from guardrail.fit import readings
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt
from guardrail.fit.prompts import plain
from guardrail.fit.select import is_safe, is_unsafe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.fit.prompts import Form
    from guardrail.fit.readings import FormResiduals
    from guardrail.types import Request


def contrast(*kinds: str, n: int = 60) -> ContrastSet:
    return ContrastSet(
        tuple(
            Prompt(text=f"{kind} {split} {i}", split=split, kind=kind, label=label)
            for split in SPLITS
            for label, kind in (("unsafe", "unsafe"), *(("safe", kind) for kind in kinds))
            for i in range(n)
        )
    )


def ones(requests: Sequence[Request], _stage: str) -> torch.Tensor:
    assert all(request.offset_kind == "image" for request in requests)
    return torch.ones(len(requests), 2, 3)


def read(
    form: Form, prompts: ContrastSet, rates: Rates, offset: torch.Tensor, *, videos: int = 0
) -> FormResiduals:
    samples = readings.samples_shown(prompts, rates, videos)[form]
    ask: Any = filmed if videos else ones
    return readings.read_form(ask, prompts, form, samples, offset)


def test_rows_are_narrowed_to_a_split_and_kinds() -> None:
    prompts = contrast("near", "ordinary", n=16)
    samples = plain(prompts, None)
    one = readings.with_residuals(prompts, samples, torch.arange(len(samples) * 2.0).view(-1, 1, 2))
    assert one.rows("fit", is_unsafe).shape == (16, 1, 2)
    assert one.rows("fit", is_safe).shape == (32, 1, 2)
    assert one.rows("select").shape == (48, 1, 2)
    assert one.rows("held out").shape == (0, 1, 2)
    asked = one.samples_of("fit", is_unsafe)
    assert one.rows("fit", is_unsafe)[:, 0, 0].tolist() == [2.0 * samples.index(s) for s in asked]
    in_select = [prompts.prompts[s.index] for s in samples]
    assert one.kinds_of("select") == [p.kind for p in in_select if p.split == "select"]


def test_what_a_picture_adds_is_taken_off_prompts_beside_one() -> None:
    offset = torch.arange(6.0).reshape(2, 3).double()
    for form in ("pictured", "drawn"):
        found = read(form, contrast("near"), Rates(steer=0.1, flag=0.1), offset)
        assert len(found.residuals) == len(found.samples)
        torch.testing.assert_close(found.residuals[0], (1 - offset).float())


def test_no_unsafe_prompt_is_drawn() -> None:
    found = read("drawn", contrast("near"), Rates(steer=0.1, flag=0.1), torch.zeros(2, 3))
    assert set(found.kinds) == {"near"}
    assert set(found.splits) == {"calibrate"}


@pytest.mark.parametrize("kinds", [("near",), ("near", "matched", "ordinary")])
def test_there_are_enough_prompts_with_pictures_for_the_rates(
    kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few kinds of safe prompts there are, as long as there are enough prompts."""
    monkeypatch.setattr(readings, "DRAWN", 4)
    rates = Rates(steer=0.1, flag=1 / 50)
    found = read("drawn", contrast(*kinds), rates, torch.zeros(2, 3))
    pairs = zip(found.splits, found.kinds, strict=True)
    counts = Counter(kind for split, kind in pairs if split == "calibrate" and kind != "unsafe")
    assert set(counts) == set(kinds)
    assert 50 <= sum(counts.values()) <= 50 + len(kinds)


def test_no_more_prompts_are_asked_for_than_there_are() -> None:
    found = read("drawn", contrast("near"), Rates(steer=0.1, flag=0.001), torch.zeros(2, 3))
    assert max(Counter(zip(found.splits, found.kinds, strict=True)).values()) == 60


def filmed(requests: Sequence[Request], _stage: str) -> torch.Tensor:
    assert all(request.offset_kind == "video" for request in requests)
    return torch.ones(len(requests), 2, 3)


def test_only_safe_prompts_are_filmed_and_what_a_video_adds_is_taken_off() -> None:
    offset = torch.arange(6.0).reshape(2, 3).double()
    rates = Rates(steer=0.1, flag=0.1)
    found = read("filmed", contrast("near", "ordinary"), rates, offset, videos=10)
    assert set(found.kinds) == {"near", "ordinary"}
    assert set(found.splits) == {"calibrate"}
    assert len({sample.index for sample in found.samples}) == 10
    torch.testing.assert_close(found.residuals[0], (1 - offset).float())
