"""A model spread over devices is the same model: accelerate moves its parts, the guard reads on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from guardrail import Guard
from guardrail.errors import ConfigurationError, UnsupportedModelError
from guardrail.fit.collect import Collector, text_request
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import generate_rows, last_residuals
from guardrail.model.load import LoadedModel, load_model, wrap_model
from guardrail.model.prefix import SharedPrefix
from guardrail.model.settings import Settings
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "llama")
families = pytest.mark.parametrize("family", FAMILIES)
# how much of the model may stay in memory: none of it, or so much that the decoder is torn apart
shares = pytest.mark.parametrize("share", [0.0, 0.6, pytest.param(0.8, marks=pytest.mark.slow)])


@pytest.fixture
def spread(
    saved: Callable[[str], Path], tiny_of: Any, tmp_path: Path
) -> Callable[[str, float], LoadedModel]:
    """`spread(family, share)`: that share of the weights in memory, the rest on disk."""

    def get(family: str, share: float) -> LoadedModel:
        size = sum(p.numel() * p.element_size() for p in tiny_of(family).model.parameters())
        loaded = load_model(
            saved(family),
            device_map="auto",
            max_memory={"cpu": int(share * size)},
            offload_folder=tmp_path / "offload",
        )
        places = {p.device.type for p in loaded.model.parameters()}
        assert "meta" in places  # else nothing was offloaded
        assert share == 0 or "cpu" in places
        return loaded

    return get


def question(family: str, picture: Any, text: str = "tell me about the cat") -> Any:
    if family == "llama":
        return text
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


@shares
@families
def test_verdict_answer_and_fingerprint_are_those_of_the_plain_model(
    tiny_of: Any, spread: Any, picture: Any, family: str, share: float
) -> None:
    tiny, loaded = tiny_of(family), spread(family, share)
    artefact = tiny_artefact(tiny.model, tiny.processor, tau_steer=-1e6, tau_flag=1e6)
    asked = question(family, picture)
    with Guard((tiny.model, tiny.processor), artefact) as guard:
        wanted = guard.generate(asked, max_new_tokens=5)
    assert not fingerprint(wrap_model(tiny.model, tiny.processor)).differences(fingerprint(loaded))
    with Guard(loaded, artefact) as guard:
        found = guard.generate(asked, max_new_tokens=5)
        alone = guard.check(asked)
    assert wanted.verdict.action is Action.STEER
    assert found.verdict == wanted.verdict
    assert (alone.score, alone.action) == (wanted.verdict.score, Action.STEER)
    assert found.text == wanted.text


@shares
@families
def test_residuals_for_a_fit_are_those_of_the_plain_model(
    tiny_of: Any, spread: Any, family: str, share: float
) -> None:
    plain, loaded = wrap_model(*tiny_of(family)[1:]), spread(family, share)
    prompts = [text_request(text) for text in ("hello", "what is this", "tell me about dogs")]
    one, other = Collector(plain)(prompts, "x"), Collector(loaded)(prompts, "x")
    torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)


@shares
def test_an_edit_reaches_the_next_layer_although_accelerate_replaces_forwards(
    spread: Any, two: Any, fake: Any, share: float
) -> None:
    loaded = spread("llava", share)
    encoded, inputs = two(loaded), []
    # what layer 3 is given, after accelerate's hooks and the guard's
    handle = decoder_layers(loaded.model)[3].register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0][:, -1].clone())
    )
    try:
        for actions in ((Action.PASS,) * 2, (Action.PASS, Action.STEER)):
            detector = fake(actions, strength=3.0)
            generate_rows(loaded, encoded, detector, Settings(max_new_tokens=1, do_sample=False))
    finally:
        handle.remove()
    plain, steered = inputs
    torch.testing.assert_close(steered[0], plain[0], rtol=0, atol=0)
    assert (steered[1] - plain[1]).norm() == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(last_residuals(loaded, encoded, (2,))[:, 0], plain)


def test_hooks_leave_an_offloaded_model_as_it_was(spread: Any, llava: Any, picture: Any) -> None:
    loaded = spread("llava", 0.6)
    artefact = tiny_artefact(llava.model, llava.processor)
    layers = list(decoder_layers(loaded.model))
    before = [(layer.forward, dict(layer._forward_hooks)) for layer in layers]
    with Guard(loaded, artefact) as guard:
        guard.check(question("llava", picture))
    after = [(layer.forward, dict(layer._forward_hooks)) for layer in layers]
    assert before == after
    assert any(hasattr(layer, "_hf_hook") for layer in layers)


def test_a_seed_repeats_a_sampled_answer_of_an_offloaded_model(spread: Any, picture: Any) -> None:
    loaded = spread("llava", 0.0)
    assert loaded.model.device.type == "meta"  # which is no place to draw numbers
    assert loaded.device.type == "cpu"
    artefact = tiny_artefact(loaded.model, loaded.processor, tau_steer=1e6, tau_flag=1e6)
    state = torch.random.get_rng_state()
    with Guard(loaded, artefact) as guard:
        asked = question("llava", picture)
        texts = {
            guard.generate(asked, max_new_tokens=6, temperature=1.0, seed=seed).text
            for seed in (5, 5, 6)
        }
    assert len(texts) == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_cached_start_is_used_for_an_offloaded_model_too(spread: Any) -> None:
    loaded, lengths = spread("llama", 0.0), []
    loaded.processor.chat_template = "Be short, be kind and be clear. " + (
        loaded.processor.chat_template
    )
    prompts = [text_request(text) for text in ("hello there", "what is this")]
    encoder = Encoder(loaded)
    shared = SharedPrefix(loaded, encoder)
    wanted, _ = shared.residuals(
        encoder.encode(prompts), lambda _: None
    )  # read whole, and compared with
    handle = decoder_layers(loaded.model)[0].register_forward_pre_hook(
        lambda _m, args: lengths.append(args[0].shape[1])
    )
    try:
        found, _ = shared.residuals(encoder.encode(prompts), lambda _: None)
    finally:
        handle.remove()
    assert max(lengths) < encoder.encode(prompts).prompt_len
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_tied_weights_count_once_when_offloading_makes_two_tensors_of_them() -> None:
    from accelerate import cpu_offload

    model, processor = tiny_model("llama")
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    tied = AutoModelForCausalLM.from_config(config)
    before = fingerprint(wrap_model(tied, processor))
    apart: Any = cpu_offload(copy.deepcopy(tied), execution_device="cpu")
    assert apart.lm_head.weight is not apart.get_input_embeddings().weight
    assert not before.differences(fingerprint(wrap_model(apart, processor)))


def test_a_tied_weight_that_was_changed_alone_counts() -> None:
    model, processor = tiny_model("llama")
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = True
    tied: Any = AutoModelForCausalLM.from_config(config)
    before = fingerprint(wrap_model(tied, processor))
    tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight.detach() * 1.1)
    assert set(before.differences(fingerprint(wrap_model(tied, processor)))) == {"weights_digest"}


@pytest.mark.parametrize("option", [{"max_memory": {"cpu": "1GB"}}, {"offload_folder": "x"}])
def test_memory_limits_need_a_device_map(saved: Any, option: Any) -> None:
    with pytest.raises(ConfigurationError, match="add device_map='auto'"):
        load_model(saved("llama"), **option)


def test_weights_that_are_nowhere_are_still_refused() -> None:
    model, processor = tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match="has no values"):
        fingerprint(wrap_model(model.to("meta"), processor))
