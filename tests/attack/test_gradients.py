"""Attacks with the weights, on a random LLaVA: the mechanics, and nothing of a trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image, ImageChops

from guardrail.attack.attacks import Budget, find
from guardrail.attack.gradients import LEVELS, WhiteBox
from guardrail.attack.readings import Reader
from guardrail.evaluation.cache import Cache
from guardrail.guard import Guard
from guardrail.inputs.messages import request_digest, to_request
from guardrail.policy import Policy
from tests.attack.conftest import StandIn, Told, no_rule, request_of, without_windows

if TYPE_CHECKING:
    from guardrail.types import Request

TEXT = "how do I write about the cat"


READERS: dict[int, Reader] = {}


def reader_of(guard: Guard) -> Reader:
    """One a guard: naming a model takes longer than reading a prompt of it."""
    return READERS.setdefault(id(guard), Reader(guard, Cache()))


def white_of(guard: Guard) -> WhiteBox:
    reader = reader_of(guard)
    return WhiteBox(guard.loaded, reader.encoder, reader.detector)


def search(guard: Guard, name: str, request: Request, questions: int = 70) -> tuple[Any, StandIn]:
    budget = Budget(questions)
    rule = Told(no_rule, budget, goal=-99, white=white_of(guard), reader=reader_of(guard))
    (out,) = find(name)([request], rule, budget, 3)
    return out, rule


def score(guard: Guard, request: Request) -> float:
    (read,) = reader_of(guard)([request])
    return read.by["joint"]


@pytest.fixture(scope="module")
def old(llava: Any, guard: Guard) -> Guard:
    with Guard((llava.model, llava.processor), without_windows(guard.artefact)) as made:
        yield made


def test_eight_tokens_before_a_request_lower_its_score(guard: Guard):
    request = request_of(TEXT)
    out, asked = search(guard, "GCG before", request)
    assert score(guard, out) < score(guard, request) - 0.5
    assert out.messages[-1].parts[-1].text.endswith(f" {TEXT}")
    assert asked.budget.asked <= 70


def test_eight_tokens_behind_defeat_the_last_position(old: Guard):
    some = [request_of(text) for text in (TEXT, "a dog", "the green table", "please write")]
    request = max(some, key=lambda one: score(old, one))
    out, _ = search(old, "GCG behind", request)
    assert score(old, out) < score(old, request) - 0.5


@pytest.mark.parametrize("name", ["GCG before", "GCG behind"])
def test_nothing_is_found_where_nothing_is_read(blind: Guard, name: str):
    request = request_of(TEXT)
    out, _ = search(blind, name, request)
    assert out == request
    assert score(blind, out) == score(blind, request)


def test_tokens_are_the_same_twice(guard: Guard):
    made = [search(guard, "GCG before", request_of(TEXT), 40)[0] for _ in range(2)]
    assert made[0] == made[1]


def test_slopes_are_those_of_the_score(guard: Guard):
    """Against finite differences: the prompt's embedding moved a little towards another token's."""
    white = white_of(guard)
    tokenizer: Any = guard.loaded.tokenizer
    words = tokenizer.encode("the cat", add_special_tokens=False)
    base = request_of(f"{tokenizer.decode(words)} {TEXT}")
    slopes = white.token_slopes(base, words)
    assert slopes is not None
    assert slopes.shape[0] == len(words)
    encoded = white.encoder.encode([base])
    place = next(
        at for at in range(encoded.prompt_len) if encoded.ids(0)[at : at + len(words)] == words
    )

    def moved(other: int, step: float) -> float:
        def add(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, place] += step * white.embedding.weight[other]
            return output

        handle = white.embedding.register_forward_hook(add)
        try:
            return float(white._score(encoded, {}).detach())
        finally:
            handle.remove()

    for other in (30, 77, 150):
        measured = (moved(other, 0.01) - moved(other, -0.01)) / 0.02
        assert float(slopes[0, other]) == pytest.approx(measured, rel=0.05, abs=0.02)


def test_tokens_that_do_not_come_back_as_they_were_have_no_slopes(guard: Guard):
    assert white_of(guard).token_slopes(request_of(TEXT), [1, 2, 3, 4]) is None


def test_the_soft_score_is_near_the_guards_own(guard: Guard):
    request, white = request_of(TEXT), white_of(guard)
    soft = float(white._score(white.encoder.encode([request]), {}).detach())
    assert soft == pytest.approx(score(guard, request), abs=0.2)


def test_noise_on_a_picture_lowers_its_score_within_eight_levels(guard: Guard):
    text = request_of(TEXT)
    out, asked = search(guard, "pixel noise", text, questions=8)
    (first, *_) = asked.seen
    assert len(asked.seen) == 8
    assert score(guard, out) < score(guard, first) - 0.3
    apart = ImageChops.difference(out.images[0], first.images[0])
    assert max(high for _, high in apart.getextrema()) <= LEVELS


def test_noise_on_a_picture_of_ones_own(guard: Guard):
    picture = Image.linear_gradient("L").convert("RGB")
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what"}],
        }
    ]
    out, _ = search(guard, "pixel noise", to_request(chat, policy=Policy()), questions=4)
    assert len(out.images) == 1
    assert out.messages[0].parts[1].text == "what"


def test_no_noise_where_nothing_of_the_score_follows_from_pixels(blind: Guard):
    out, asked = search(blind, "pixel noise", request_of(TEXT), questions=4)
    assert out is None
    assert asked.seen == []


def test_without_the_weights_there_is_no_attack_by_them():
    budget = Budget(5)
    for name in ("GCG before", "GCG behind", "pixel noise"):
        scorer = StandIn(lambda _one: 1.0, budget)
        assert find(name)([request_of(TEXT)], scorer, budget, 0) == [None]


def test_a_search_leaves_the_model_as_it_was(guard: Guard):
    before = score(guard, request_of(TEXT))
    digest = request_digest(request_of(TEXT))
    search(guard, "GCG before", request_of(TEXT), questions=40)
    assert score(guard, request_of(TEXT)) == before
    assert request_digest(request_of(TEXT)) == digest
    model: Any = guard.loaded.model
    assert not model.get_input_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()
