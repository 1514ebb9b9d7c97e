"""Sampled answers repeat themselves and disturb nobody."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from guardrail.model.decoder import decoder_layers
from guardrail.model.generate import generate_rows
from guardrail.model.settings import Settings
from guardrail.testing import tiny_model


def tokens(outcomes: Any) -> list[list[int]]:
    return [list(outcome.token_ids) for outcome in outcomes]


def test_seeded_answers_of_two_models_in_two_threads_do_not_disturb_each_other(
    llama, loaded_of, two
):
    settings = Settings(max_new_tokens=6, do_sample=True, temperature=5.0, seed=4)
    every = []
    for seed in (0, 1):
        model, processor = tiny_model("llama", seed=seed)
        every.append(loaded_of(llama._replace(model=model, processor=processor)))
        decoder_layers(model)[0].register_forward_pre_hook(lambda *_: time.sleep(0.002))

    def answer(loaded: Any) -> list[list[list[int]]]:
        return [tokens(generate_rows(loaded, two(loaded), None, settings)) for _ in range(5)]

    expected = [answer(loaded) for loaded in every]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answer, every)) == expected


def test_a_seeded_answer_leaves_the_callers_random_state_alone(llava, loaded_of, two):
    loaded = loaded_of(llava)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate_rows(loaded, two(loaded), None, Settings(max_new_tokens=2, do_sample=True, seed=1))
    assert torch.equal(torch.rand(1), expected)
