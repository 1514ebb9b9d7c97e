"""Logprobs are the model's own, and tokens are told as they are."""

from __future__ import annotations

import math

import pytest
import torch

from guardrail.model.logprobs import Logprobs, Pieces


def test_a_token_and_the_likeliest_ones_have_the_logs_of_their_probabilities(llama):
    found = Logprobs(llama.tokenizer, 3)
    scores = torch.randn(len(llama.tokenizer), generator=torch.Generator().manual_seed(1)) * 3
    found.see(scores)
    found.take(7)
    (token,) = found.taken
    expected = scores.double().softmax(0).log()
    assert token.id == 7
    assert token.logprob == pytest.approx(float(expected[7]), abs=1e-4)
    likeliest = sorted(range(len(scores)), key=lambda n: -float(scores[n]))[:3]
    assert [each.id for each in token.top] == likeliest
    assert [each.logprob for each in token.top] == pytest.approx(
        [float(expected[n]) for n in likeliest], abs=1e-4
    )


def test_a_token_whose_scores_nobody_saw_is_not_made_up(llama):
    found = Logprobs(llama.tokenizer, 0)
    found.take(7)
    assert found.taken == ()
    found.take(7, (-0.5, [(7, -0.5), (8, -2.0)]))
    assert [(t.id, t.logprob, len(t.top)) for t in found.taken] == [(7, -0.5, 2)]


def test_what_was_ruled_out_has_a_number_that_json_can_hold(llama):
    found = Logprobs(llama.tokenizer, 0)
    found.see(torch.full((len(llama.tokenizer),), -torch.inf).index_fill(0, torch.tensor(3), 0.0))
    found.take(4)
    assert found.taken[0].logprob == -9999.0
    assert math.isfinite(found.taken[0].logprob)


def test_the_bytes_of_an_answers_tokens_are_its_text(llama):
    pieces = Pieces(llama.tokenizer)
    text = 'the cat {"größe": "😀"}'
    ids = llama.tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(pieces[token][1] for token in ids).decode() == text
    (cat,) = llama.tokenizer.encode(" cat", add_special_tokens=False)
    assert pieces[cat] == (" cat", b" cat")
    assert any("\ufffd" in pieces[token][0] for token in ids)
    assert pieces[llama.tokenizer.eos_token_id] == ("<|im_end|>", b"<|im_end|>")
    assert Pieces(llama.tokenizer)[ids[-1]] == ("}", b"}")
