from __future__ import annotations

import json
import sys
from collections import Counter
from types import ModuleType

import pytest
import torch

from guardrail.errors import ConfigurationError, DatasetError
from guardrail.evaluation import judge as judging
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.judge import (
    QUESTION,
    ModelJudge,
    PrefixJudge,
    judge_figures,
    judge_name,
    judged,
    load_judge,
    load_sample,
)
from guardrail.fit.collect import text_request
from guardrail.model.encode import Encoder
from guardrail.model.generate import next_token_logits
from guardrail.model.load import wrap_model
from guardrail.testing import tiny_model


def says_no(prompts, answers):
    return [answer.startswith("no") for answer in answers]


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("a_judge")
    made.says_no, made.number = says_no, 7
    monkeypatch.setitem(sys.modules, "a_judge", made)


def test_the_default_judge_knows_the_models_own_prefixes_and_the_common_ones():
    judge = PrefixJudge.also(["Nein"])
    assert judge(["?"] * 3, ["Nein, danke", "I'm sorry, no", "Yes"]) == [True, True, False]


def test_a_judge_is_found_by_name(module):
    judge = load_judge("a_judge:says_no")
    assert judge(["?"], ["no way"]) == [True]
    assert judge_name(judge).endswith(":says_no")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a_judge", "write package.module:function"),
        ("a_judge:", "write package.module:function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("a_judge:nobody", "has no 'nobody'"),
        ("a_judge:number", "is a int"),
    ],
)
def test_a_name_that_is_no_judge_is_refused(module, name, reason):
    with pytest.raises(ConfigurationError, match=reason):
        load_judge(name)


@pytest.mark.parametrize("said", [[True], [1, 0], ["yes", "no"], []])
def test_a_judge_that_gives_something_else_than_bools_is_refused(said):
    with pytest.raises(ConfigurationError, match="one bool for each"):
        judged(lambda prompts, answers: said, ["a", "b"], ["a", "b"], cache=Cache())


def test_equal_pairs_are_judged_once():
    asked = []

    def judge(prompts, answers):
        asked.extend(answers)
        return says_no(prompts, answers)

    said, _ = judged(judge, ["a", "a", "b"], ["no", "no", "no"], cache=Cache())
    assert said == [True] * 3
    assert len(asked) == 2


class Named:
    identity, name = "version 1", "named"

    def __init__(self):
        self.asked = 0

    def __call__(self, prompts, answers):
        self.asked += len(answers)
        return says_no(prompts, answers)


def test_what_a_judge_with_an_identity_said_is_kept(tmp_path):
    first, second, third = Named(), Named(), Named()
    third.identity = "version 2"
    pairs = (["a", "b"], ["no", "yes"])
    with Cache(tmp_path) as cache:
        assert judged(first, *pairs, cache=cache) == ([True, False], 0)
    with Cache(tmp_path) as cache:
        assert judged(second, *pairs, cache=cache) == ([True, False], 2)
        assert judged(third, *pairs, cache=cache) == ([True, False], 0)
    assert (first.asked, second.asked, third.asked) == (2, 0, 2)


def test_the_judges_own_error_is_counted_both_ways(tmp_path):
    rows = [("no", True), ("yes", True), ("no", False), ("yes", False), ("fine", False)]
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps({"answer": a, "refused": r}) + "\n" for a, r in rows))
    found = judge_figures(says_no, load_sample(path), cache=Cache())
    assert (found.false_refusals.hits, found.false_refusals.n) == (1, 3)
    assert (found.missed_refusals.hits, found.missed_refusals.n) == (1, 2)
    assert found.sample == f"{path}, n = 5"


def test_a_sample_with_one_label_gives_one_figure(tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_text('{"answer": "no", "refused": true}\n')
    found = judge_figures(says_no, load_sample(path), cache=Cache())
    assert found.false_refusals is None
    assert found.missed_refusals.rate == 0


def test_the_packaged_answers_are_of_all_kinds_and_hard_for_prefixes():
    sample = load_sample()
    assert len(sample.answers) >= 80
    kinds = Counter(row.kind for row in sample.answers)
    assert len(kinds) >= 8
    assert (
        min(sum(r.refused for r in sample.answers), sum(not r.refused for r in sample.answers)) > 30
    )
    assert len({row.language for row in sample.answers}) >= 5
    assert len({(row.prompt, row.answer) for row in sample.answers}) == len(sample.answers)
    found = judge_figures(PrefixJudge(), sample, cache=Cache())
    assert found.missed_refusals.rate > 0.2
    assert found.false_refusals.rate > 0.05
    direct = [row for row in sample.answers if row.kind == "direct refusal"]
    assert all(PrefixJudge()(["?"] * len(direct), [row.answer for row in direct]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ('{"answer": "a"}', "refused"),
        ('{"answer": "a", "refused": "yes"}', "refused"),
        ('{"answer": "a", "refused": true, "more": 1}', "more"),
    ],
)
def test_a_malformed_sample_is_named(tmp_path, line, reason):
    path = tmp_path / "sample.jsonl"
    path.write_text('{"answer": "a", "refused": false}\n' + line)
    with pytest.raises(DatasetError, match=f"line 2: .*{reason}"):
        load_sample(path)


def test_a_sample_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot read"):
        load_sample(tmp_path / "none")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DatasetError, match="no labelled answer"):
        load_sample(tmp_path / "empty")


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
    monkeypatch.setattr(judging, "QUESTION", "{prompt}{answer}?")
    assert ModelJudge(loaded).identity != before
    assert ModelJudge(loaded).name == "model a judge"


def test_a_tokenizer_that_begins_yes_and_no_alike_makes_no_judge(loaded, monkeypatch):
    monkeypatch.setattr(judging, "_first_tokens", lambda _loaded, _forms: {5})
    with pytest.raises(ConfigurationError, match="begins yes and no alike"):
        ModelJudge(loaded)
