"""What vLLM is asked with, and what its tokens are read as; vLLM itself is not started here."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.errors import ConfigurationError
from guardrail.model.constrained import Grammar
from guardrail.model.settings import Settings
from guardrail.testing import tiny_processor
from guardrail.vllm.guard import _grown, sampling

HOST: Any = SimpleNamespace(
    generation_config=SimpleNamespace(do_sample=False, temperature=0.6, top_p=0.9, top_k=20)
)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's words, each as a plain namespace of what it was given."""
    named = SimpleNamespace
    inner = named(StructuredOutputsParams=named, RequestOutputKind=named(DELTA="delta"))
    monkeypatch.setitem(sys.modules, "vllm", named(SamplingParams=named))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", inner)


def test_a_grammar_and_logprobs_go_to_vllm(words: None) -> None:
    tokenizer: Any = tiny_processor("llama")
    grammar = Grammar(tokenizer, [tokenizer.eos_token_id], schema='{"type": "null"}')
    asked = Settings(json_schema={"type": "null"}, logprobs=3)
    found = sampling(asked, HOST, room=9, lark=grammar.lark)
    assert found.structured_outputs.grammar == grammar.lark
    assert "%json" in grammar.lark
    assert (found.logprobs, found.max_tokens, found.temperature) == (3, 9, 0.0)


def test_a_plain_request_and_a_check_ask_for_neither(words: None) -> None:
    for settings in (Settings(), None):
        found = sampling(settings, HOST, room=9)
        assert not hasattr(found, "structured_outputs")
        assert getattr(found, "logprobs", None) is None


def test_beams_are_still_refused(words: None) -> None:
    with pytest.raises(ConfigurationError, match="no beams"):
        sampling(Settings(num_beams=2), HOST, room=9)


def test_tokens_are_taken_with_what_vllm_tells_of_them() -> None:
    taken: list[Any] = []

    def take(token: int, likely: Any = None) -> bool:
        taken.append((token, likely))
        return token == 8

    def told(logprob: float, rank: int) -> Any:
        return SimpleNamespace(logprob=logprob, rank=rank)

    first = {7: told(-4.0, 9), 1: told(-0.5, 1), 2: told(-0.9, 2)}
    second = {8: told(-0.1, 1), 3: told(-3.0, 2)}
    answer = SimpleNamespace(token_ids=[7, 8, 9], logprobs=[first, second, {}])
    answering: Any = SimpleNamespace(take=take)
    tokens: list[int] = []
    assert _grown(answering, tokens, answer, 2)
    assert tokens == [7, 8]
    assert taken == [
        (7, (-4.0, [(1, -0.5), (2, -0.9)])),
        (8, (-0.1, [(8, -0.1), (3, -3.0)])),
    ]
    plain = SimpleNamespace(token_ids=[1, 2], logprobs=None)
    assert not _grown(answering, tokens, plain, 0)
    assert taken[2:] == [(1, None), (2, None)]
