from __future__ import annotations

import pytest
import torch

from guardrail.errors import ConfigurationError
from guardrail.evaluation import model_judge
from guardrail.evaluation.model_judge import QUESTION, ModelJudge
from guardrail.fit.collect import text_request
from guardrail.model.generate import next_token_logits
from guardrail.model.inputs import Encoder
from guardrail.model.load import wrap_model
from guardrail.testing import tiny_model


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(*tiny_model("llama", seed=9), source="a judge")


def test_the_judge_weighs_the_models_own_yes_against_its_no(loaded):
    answers = ["I'm sorry", "red green", "", "{prompt} {answer}", "Yes Yes Yes"] * 3
    prompts = [f"how do I {n}" for n in range(len(answers))]
    said = ModelJudge(loaded, batch_size=4)(prompts, answers)
    first = {
        w: loaded.tokenizer.encode(w, add_special_tokens=False)[0]
        for w in ("Yes", "yes", "No", "no")
    }
    for prompt, answer, word in zip(prompts, answers, said, strict=True):
        request = text_request(QUESTION.format(prompt=prompt, answer=answer))
        logits = next_token_logits(loaded, Encoder(loaded).encode([request]))[0].double()
        yes, no = (
            torch.logsumexp(logits[[first[a], first[b]]], 0)
            for a, b in (("Yes", "yes"), ("No", "no"))
        )
        assert word == bool(yes > no)
    assert ModelJudge(loaded)([], []) == []


def test_a_model_taught_to_say_yes_or_no_is_heard():
    model, tokenizer = tiny_model("llama", seed=9)
    head = model.get_output_embeddings().weight
    for word, wanted in (("Yes", True), ("No", False)):
        ids = tokenizer.encode(word, add_special_tokens=False)
        with torch.no_grad():
            head.zero_()
        judge = ModelJudge(wrap_model(model, tokenizer))
        request = text_request(QUESTION.format(prompt="p", answer="a"))
        encoded = Encoder(wrap_model(model, tokenizer)).encode([request])
        final = _final_hidden(model, encoded)
        with torch.no_grad():
            head[ids[0]] = final
        assert judge(["p"], ["a"]) == [wanted]


def _final_hidden(model, encoded):
    with torch.no_grad():
        output = model(**encoded.inputs, output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def test_identity_and_name_tell_models_and_questions_apart(loaded, monkeypatch):
    other = wrap_model(*tiny_model("llama", seed=10))
    assert ModelJudge(loaded).identity == ModelJudge(loaded).identity
    assert ModelJudge(loaded).identity != ModelJudge(other).identity
    before = ModelJudge(loaded).identity
    monkeypatch.setattr(model_judge, "QUESTION", "{prompt}{answer}?")
    assert ModelJudge(loaded).identity != before
    assert ModelJudge(loaded).name == "model a judge"


def test_a_tokenizer_that_begins_yes_and_no_alike_makes_no_judge(loaded, monkeypatch):
    monkeypatch.setattr(model_judge, "_first_tokens", lambda _loaded, _forms: {5})
    with pytest.raises(ConfigurationError, match="begins yes and no alike"):
        ModelJudge(loaded)
