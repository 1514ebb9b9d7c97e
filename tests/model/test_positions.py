"""Every position, in the pass that reads the last one."""

from __future__ import annotations

import threading

import pytest
import torch

from guardrail.errors import ConfigurationError, UnsupportedModelError
from guardrail.model.decoder import decoder_layers, decoder_module
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows, last_residuals
from guardrail.model.hooks import prompt_hooks
from guardrail.model.positions import PositionsCall, check_positions, position_residuals
from guardrail.types import Action


def hooks_on(model) -> int:
    layers = decoder_layers(model)
    before = len(decoder_module(model)._forward_pre_hooks)
    return before + sum(len(layer._forward_hooks) for layer in layers)


def test_every_position_is_what_a_plain_pass_has_there(tiny, loaded_of, two):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    read = position_residuals(loaded, encoded)
    with torch.no_grad():
        states = loaded.model(**encoded.inputs, output_hidden_states=True).hidden_states
    real = encoded.inputs["attention_mask"].bool()
    assert read.shape == (2, encoded.prompt_len, 4, 32)
    for layer in range(3):  # the last hidden state is after the final norm
        assert torch.allclose(read[:, :, layer][real], states[layer + 1][real], atol=1e-4)


def test_the_last_position_is_bit_for_bit_the_guards(tiny, loaded_of, two):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    assert torch.equal(
        position_residuals(loaded, encoded, [1, 2])[:, -1],
        last_residuals(loaded, encoded, [1, 2]),
    )


def test_what_is_reduced_is_judged_as_a_check_judges_it(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    detector, again = fake([Action.STEER, Action.FLAG]), fake([Action.STEER, Action.FLAG])
    read = check_positions(loaded, encoded, detector, lambda _layer, hidden: hidden.sum(-1))
    wanted = check_rows(loaded, encoded, again)
    assert [ruling.action for ruling in read.rulings] == [ruling.action for ruling in wanted]
    assert torch.equal(detector.seen[0], again.seen[0])
    summed = position_residuals(loaded, encoded, [1, 2]).sum(-1)
    assert torch.allclose(read.values, summed, atol=1e-5)


def test_padding_is_not_attended_to(llava, llama, loaded_of, two, fake):
    for tiny in (llava, llama):
        loaded = loaded_of(tiny)
        encoded = two(loaded)
        read = check_positions(loaded, encoded, fake([Action.PASS] * 2), lambda _l, h: h.sum(-1))
        assert torch.equal(read.attended, encoded.inputs["attention_mask"].bool())
        assert not read.attended.all()


def test_the_pass_ends_after_the_deepest_layer_read(llava, loaded_of, two):
    loaded = loaded_of(llava)
    runs = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, _o, number=number: runs.append(number))
        for number, layer in enumerate(decoder_layers(loaded.model))
    ]
    try:
        position_residuals(loaded, two(loaded), [0, 2])
    finally:
        for handle in handles:
            handle.remove()
    assert runs == [0, 1, 2]


def test_no_hook_outlives_an_error(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    before = hooks_on(llava.model)

    def boom(_layer, _hidden):
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        check_positions(loaded, two(loaded), fake([Action.PASS] * 2), boom)
    with pytest.raises(ConfigurationError, match="no \\[9\\]"):
        position_residuals(loaded, two(loaded), [1, 9])
    assert hooks_on(llava.model) == before


def test_other_hooks_on_the_model_see_nothing_of_it(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    with prompt_hooks(llava.model, [1, 2]) as hooks:
        call = PositionsCall(prompt_len=3, kinds=("image",), layers=(1, 2), reduce=lambda _l, h: h)
        with hooks.active(call):
            pass
        alone = position_residuals(loaded, two(loaded), [1, 2])
        assert not call.seen
        assert not call.decided
    assert torch.equal(alone, position_residuals(loaded, two(loaded), [1, 2]))


def test_two_threads_read_their_own_prompts(llama, loaded_of, ask):
    loaded = loaded_of(llama)
    prompts = [Encoder(loaded).encode([ask(text)]) for text in ("a cat", "tell me about the dog")]
    wanted = [position_residuals(loaded, encoded, [1]) for encoded in prompts]
    found: dict[int, list[bool]] = {0: [], 1: []}

    def read(number: int) -> None:
        for _ in range(8):
            residuals = position_residuals(loaded, prompts[number], [1])
            found[number].append(torch.equal(residuals, wanted[number]))

    threads = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [True] * 8, 1: [True] * 8}


def test_a_model_that_runs_other_positions_than_tokens_is_refused():
    call = PositionsCall(
        prompt_len=6, kinds=("text",), layers=(1,), reduce=lambda _layer, hidden: hidden
    )
    call.enter(0, 9)
    call.see(1, torch.zeros(1, 9, 32))
    with pytest.raises(UnsupportedModelError, match="ran 9 positions for a prompt of 6 tokens"):
        call.values()


def test_a_prompt_in_chunks_is_joined():
    call = PositionsCall(
        prompt_len=5, kinds=("text",), layers=(1, 2), reduce=lambda _layer, hidden: hidden[..., 0]
    )
    hidden = torch.arange(10.0).reshape(1, 5, 2)
    for past, part in ((0, hidden[:, :3]), (3, hidden[:, 3:])):
        call.enter(past, part.shape[1])
        call.see(1, part)
        call.see(2, -part)
    assert call.values().tolist() == [[[n, -n] for n in (0.0, 2.0, 4.0, 6.0, 8.0)]]
