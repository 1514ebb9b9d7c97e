from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from guardrail.errors import ConfigurationError, UnsupportedModelError
from guardrail.guard import Guard
from guardrail.model.load import wrap_model
from guardrail.model.settings import Settings, generation_config
from guardrail.testing import tiny_artefact


def model(do_sample: bool):
    return SimpleNamespace(generation_config=SimpleNamespace(do_sample=do_sample))


@pytest.mark.parametrize(
    ("options", "by_default", "sampling"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"temperature": 0}, True, False),
        ({"temperature": 0, "do_sample": True}, True, False),
        ({"temperature": 0.5}, False, True),
        ({"top_p": 0.5}, False, True),
        ({"top_k": 3}, False, True),
        ({"top_k": 3, "do_sample": False}, True, False),
        ({"seed": 3}, False, False),
    ],
)
def test_whether_tokens_are_drawn_follows_from_what_is_asked(options, by_default, sampling):
    assert Settings(**options).samples(model(by_default).generation_config) is sampling


def test_requests_have_in_common_what_is_not_a_rows_own_affair(llama):
    def common(**options):
        return Settings(**options).in_common(llama.model)

    plain = common()
    for own in ({"max_new_tokens": 3}, {"stop": ("x",)}, {"seed": 4}, {"temperature": 0}):
        assert common(**own) == plain
    assert common(repetition_penalty=1.5) != plain
    assert common(temperature=0.5) is None
    assert common(num_beams=2) is None


@pytest.mark.parametrize("name", [*Settings.model_fields, "no_repeat_ngram_size"])
def test_requests_share_a_batch_in_spite_of_a_setting_only_where_it_is_known_not_to_matter(
    llama, name
):
    class Extended(Settings):
        no_repeat_ngram_size: int = 0

    plain, other = Extended(), Extended().model_copy(update={name: 2})
    own = {"max_new_tokens", "stop", "seed", "json_schema", "tool_choice", "logprobs"}
    if name in own:
        assert other.in_common(llama.model) == plain.in_common(llama.model)
    elif name in {"temperature", "top_p", "top_k"}:
        greedy = other.model_copy(update={"do_sample": False})
        assert other.in_common(llama.model) is None
        assert greedy.in_common(llama.model) == plain.in_common(llama.model)
    else:
        assert other.in_common(llama.model) != plain.in_common(llama.model)


def test_a_token_that_is_forced_at_the_end_keeps_lengths_apart(llama, monkeypatch):
    monkeypatch.setattr(llama.model.generation_config, "forced_eos_token_id", 2)
    two, three = (Settings(max_new_tokens=n).in_common(llama.model) for n in (2, 3))
    assert two != three


def test_temperature_zero_never_reaches_the_library(llama):
    config = generation_config(llama.model, Settings(temperature=0))
    assert (config.do_sample, config.temperature) == (False, 1.0)
    assert generation_config(llama.model, Settings(temperature=0.3)).temperature == 0.3
    with pytest.raises(ValidationError):
        Settings(temperature=-0.1)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("prompt_lookup_num_tokens", 3, "assisted decoding"),
        ("assistant_early_exit", 2, "assisted decoding"),
        ("use_mtp", True, "assisted decoding"),
        ("dola_layers", "low", "DoLa decoding"),
        ("penalty_alpha", 0.6, "contrastive search"),
        ("constraints", [object()], "constrained beam search"),
        ("force_words_ids", [[1]], "constrained beam search"),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_ways_of_generating_that_emit_tokens_unseen_are_refused_by_name(
    llama, monkeypatch, name, value, what, beams
):
    monkeypatch.setattr(llama.model.generation_config, name, value, raising=False)
    if name == "penalty_alpha" and beams > 1:  # transformers does not listen to it then
        generation_config(llama.model, Settings(num_beams=beams))
        return
    with pytest.raises(UnsupportedModelError, match=f"{name}=.* asks for {what}.*unset it"):
        generation_config(llama.model, Settings(num_beams=beams))


def test_groups_of_beams_are_refused(llama, monkeypatch):
    monkeypatch.setattr(llama.model.generation_config, "num_beam_groups", 2, raising=False)
    with pytest.raises(UnsupportedModelError, match="group_beam_search"):
        generation_config(llama.model, Settings(num_beams=2))


def test_several_answers_to_one_request_are_refused_with_the_way_to_get_them():
    with pytest.raises(ValidationError, match=r"guard\.batch\(\[messages\] \* 3, temperature"):
        Settings(num_return_sequences=2)
    assert Settings(num_return_sequences=1) == Settings()


def test_a_model_that_wants_to_return_several_answers_is_refused_not_overruled(llama, monkeypatch):
    config = llama.model.generation_config
    monkeypatch.setattr(config, "num_return_sequences", 3)
    with pytest.raises(UnsupportedModelError, match=r"num_return_sequences=3; unset it.*batch"):
        generation_config(llama.model, Settings(num_beams=4))
    monkeypatch.setattr(config, "num_return_sequences", 1)
    assert generation_config(llama.model, Settings(num_beams=4)).num_beams == 4


def test_a_guard_says_so_too(llama):
    artefact = tiny_artefact(llama.model, llama.processor)
    with Guard(wrap_model(llama.model, llama.processor), artefact) as guard:
        with pytest.raises(
            ConfigurationError, match=r"hold: num_return_sequences=2: a guard gives.*guard\.batch"
        ):
            guard.generate("hello", num_return_sequences=2)
        answers = guard.batch(["hello"] * 2, temperature=5.0, max_new_tokens=8)
    assert len({answer.text for answer in answers}) == 2


def test_a_schema_is_copied_in_the_order_of_its_keys():
    schema = {"type": "object", "properties": {"b": {}, "a": {"enum": ["é"]}}}
    settings = Settings(json_schema=schema)
    written = settings.json_schema
    schema["properties"].clear()
    assert settings.json_schema == written
    assert list(json.loads(written)["properties"]) == ["b", "a"]
    assert settings.constrained
    assert not settings.forces_call


@pytest.mark.parametrize(
    ("choice", "forces"),
    [(None, False), ("auto", False), ("none", False), ("required", True), ("find", True)],
)
def test_a_choice_forces_a_call_unless_it_leaves_one_open(choice, forces):
    assert Settings(tool_choice=choice).forces_call is forces


@pytest.mark.parametrize("count", [True, "3", 2.0, -1, 21])
def test_a_count_of_logprobs_is_a_small_number(count):
    with pytest.raises(ValueError, match="logprobs"):
        Settings(logprobs=count)
