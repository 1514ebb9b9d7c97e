from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.fit.dataset import ContrastSet, Prompt
from guardrail.fit.estimators import LinearReadout
from guardrail.fit.reading import Readings, with_residuals
from guardrail.fit.reference import from_header, reference_scores, to_header

if TYPE_CHECKING:
    from pydantic import JsonValue


@pytest.fixture
def readings() -> Readings:
    from guardrail.fit.direction import difference_of_means
    from guardrail.fit.forms import plain

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
