"""What a comparison with vLLM concludes from its figures."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.fit.dataset import load_contrast
from guardrail.vllm.parity import Conclusion, Parity, requests

FIGURES: dict[str, Any] = {
    "engine": "vllm 0",
    "dtype": "float32",
    "texts": 24,
    "pictures": 15,
    "steered": 3,
    "score_apart": 0.001,
    "noise": 0.0,
    "changed": 0,
    "logprob_apart": 0.001,
}


@pytest.mark.parametrize(
    ("figures", "conclusion"),
    [
        ({}, Conclusion.PASS),
        ({"score_apart": 0.06}, Conclusion.STALE),
        ({"score_apart": 0.06, "noise": 0.02}, Conclusion.PASS),  # no further than its own runs
        ({"changed": 1}, Conclusion.STALE),
        ({"noise": 0.06}, Conclusion.INCONCLUSIVE),
        ({"noise": 0.06, "changed": 2, "score_apart": 1.0}, Conclusion.INCONCLUSIVE),
    ],
)
def test_figures_lead_to_one_conclusion(figures: dict[str, Any], conclusion: Conclusion) -> None:
    assert Parity(**{**FIGURES, **figures}).conclusion is conclusion


@pytest.mark.parametrize("pictures", [True, False])
def test_what_is_compared_is_held_out_and_of_both_classes(pictures: bool) -> None:
    contrast = load_contrast()
    asked = requests(contrast, pictures=pictures)
    texts = [one.messages[0].parts[-1].text for one in asked if not one.images]
    of = {prompt.text: prompt for prompt in contrast.prompts}
    assert {of[text].in_split for text in texts} == {"calibrate"}
    assert {of[text].kind for text in texts} == {"unsafe", "matched", "near", "ordinary"}
    assert any(one.images for one in asked) == pictures
