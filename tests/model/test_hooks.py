"""Hooks stay on the model and never meet another thread's or another guard's call."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch

from guardrail.errors import ConfigurationError
from guardrail.model.decoder import decoder_layers, decoder_module
from guardrail.model.encode import Encoder
from guardrail.model.generate import generate_rows
from guardrail.model.hooks import PromptHooks, prompt_hooks
from guardrail.model.prefill import PromptCall
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.types import Action

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
SIX = Settings(max_new_tokens=6)


def hooks_on(model) -> int:
    layers = decoder_layers(model)
    before = len(decoder_module(model)._forward_pre_hooks)
    return before + sum(len(layer._forward_hooks) for layer in layers)


def test_hooks_are_removed_when_the_block_raises(llava):
    before = hooks_on(llava.model)
    within = []

    def boom():
        within.append(hooks_on(llava.model))
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), prompt_hooks(llava.model, [1, 2]):
        boom()
    assert within == [before + 3]
    assert hooks_on(llava.model) == before


def test_removing_twice_is_harmless(llava):
    before = hooks_on(llava.model)
    hooks = PromptHooks(llava.model, [0])
    hooks.remove()
    hooks.remove()
    assert hooks_on(llava.model) == before


def test_a_layer_the_model_does_not_have_is_named_and_nothing_is_hooked(llava):
    before = hooks_on(llava.model)
    with pytest.raises(ConfigurationError, match=r"4 layers; there is no \[4\]"):
        PromptHooks(llava.model, [1, 4])
    assert hooks_on(llava.model) == before


def test_no_call_is_left_after_a_call_that_failed(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    with prompt_hooks(llava.model, [1, 2]) as hooks:
        expected = generate_rows(loaded, encoded, None, SIX)
        call = PromptCall(prompt_len=1, kinds=("text",), layers=(1, 2))
        with pytest.raises(RuntimeError, match="boom"), hooks.active(call):
            raise RuntimeError("boom")
        detector = fake([PASS, STEER])
        again = generate_rows(loaded, encoded, detector, SIX, policy=Policy(), hooks=hooks)
        after = generate_rows(loaded, encoded, None, SIX)
    assert not call.decided
    assert again[0].token_ids == expected[0].token_ids
    assert [row.token_ids for row in after] == [row.token_ids for row in expected]


@pytest.mark.parametrize("family", ["llava", "gemma3", "llama"])
def test_threads_with_different_calls_do_not_mix(tiny_of, family, loaded_of, ask, fake):
    loaded = loaded_of(tiny_of(family))
    encoder = Encoder(loaded)
    jobs = [
        (encoder.encode([ask(f"tell me about the cat and dog number {n}")]), action, 40.0 + n)
        for n in range(4)
        for action in (PASS, STEER, FLAG)
    ]

    def answer(job):
        encoded, action, strength = job
        outcomes = generate_rows(
            loaded,
            encoded,
            fake([action], strength=strength),
            SIX,
            policy=Policy(),
            hooks=hooks,
        )
        return outcomes[0].token_ids, outcomes[0].ruling.action, outcomes[0].ruling.strength

    with prompt_hooks(loaded.model, [1, 2]) as hooks:
        serial = [answer(job) for job in jobs]
        with ThreadPoolExecutor(6) as pool:
            parallel = list(pool.map(answer, jobs))
    for (tokens, action, strength), other in zip(serial, parallel, strict=True):
        assert other == (tokens, action, pytest.approx(strength, rel=1e-5))
    assert len({tokens for tokens, _, _ in serial}) > 4


def test_two_guards_on_one_model_ignore_each_others_calls(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    first, second = fake([STEER, PASS]), fake([PASS, STEER])
    with prompt_hooks(llava.model, [1, 2]) as mine, prompt_hooks(llava.model, [1, 2]) as theirs:
        one = generate_rows(loaded, encoded, first, SIX, policy=Policy(), hooks=mine)
        other = generate_rows(loaded, encoded, second, SIX, policy=Policy(), hooks=theirs)
        call = PromptCall(prompt_len=1, kinds=("text",), layers=(1, 2))
        with mine.active(call):
            assert (mine._call(), theirs._call()) == (call, None)
    plain = generate_rows(loaded, encoded, None, SIX)
    assert len(first.seen) == len(second.seen) == 1
    assert one[1].token_ids == plain[1].token_ids
    assert other[0].token_ids == plain[0].token_ids


def test_a_plain_thread_does_not_inherit_the_call_but_a_copied_context_does(llava):
    hooks = PromptHooks(llava.model, [0])
    call = PromptCall(prompt_len=1, kinds=("text",), layers=(0,))
    seen: list[object] = []
    with hooks.active(call):
        plain = threading.Thread(target=lambda: seen.append(hooks._call()))
        copied = threading.Thread(
            target=copy_context().run, args=(lambda: seen.append(hooks._call()),)
        )
        for thread in (plain, copied):
            thread.start()
            thread.join()

        async def in_a_thread() -> None:
            seen.append(await asyncio.to_thread(hooks._call))

        asyncio.run(in_a_thread())
    hooks.remove()
    assert seen == [None, call, call]


def test_the_position_is_found_by_its_number_not_by_the_length_of_the_pass(fake):
    """Chunks, a cached prefix and a one-token prompt: only the pass that holds it counts."""
    detector = fake([PASS], layers=(0,), steering_layer=None)
    call = PromptCall(
        prompt_len=7, kinds=("text",), layers=(0,), detector=detector, policy=Policy()
    )
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    call.enter(past=0, length=4)
    call.see(0, hidden)
    assert not call.decided
    call.enter(past=4, length=4)  # a draft token follows the prompt in the same pass
    call.see(0, hidden)
    assert torch.equal(detector.seen[0], hidden[:, 2][:, None])
    call.enter(past=8, length=1)
    call.see(0, hidden[:, :1])
    assert len(detector.seen) == 1


def test_generated_tokens_are_edited_until_enough_are_out(fake):
    detector = fake([STEER], layers=(0,), steering_layer=0, steer_tokens=2)
    call = PromptCall(
        prompt_len=3, kinds=("text",), layers=(0,), detector=detector, policy=Policy()
    )
    hidden = torch.zeros(1, 3, 32)
    call.enter(past=0, length=3)
    prefill = call.see(0, hidden)
    assert prefill is not None
    assert prefill[0].norm(dim=1).tolist() == pytest.approx([0.0, 0.0, 40.0])
    edited = []
    for past in (3, 4, 5):
        call.enter(past=past, length=1)
        out = call.see(0, hidden[:, :1])
        edited.append(0.0 if out is None else float(out.norm()))
    assert edited == pytest.approx([40.0, 40.0, 0.0])
    assert torch.equal(hidden, torch.zeros(1, 3, 32))  # the model's own tensor is not touched


def test_a_position_that_comes_again_is_edited_again_but_judged_once(fake):
    detector = fake([STEER], layers=(0,), steering_layer=0)
    call = PromptCall(
        prompt_len=2, kinds=("text",), layers=(0,), detector=detector, policy=Policy()
    )
    for length in (2, 3, 4):
        call.enter(past=0, length=length)
        out = call.see(0, torch.zeros(1, length, 32))
        assert out is not None
        assert (out[0].norm(dim=1) > 0).tolist() == [False, True] + [False] * (length - 2)
    assert len(detector.seen) == 1


def test_half_precision_rows_that_are_not_steered_stay_bit_for_bit(fake):
    detector = fake([PASS, STEER], layers=(0,), steering_layer=0)
    call = PromptCall(
        prompt_len=1, kinds=("text", "text"), layers=(0,), detector=detector, policy=Policy()
    )
    hidden = torch.randn(2, 1, 32, dtype=torch.bfloat16)
    call.enter(past=0, length=1)
    out = call.see(0, hidden)
    assert out is not None
    assert out.dtype is torch.bfloat16
    assert torch.equal(out[0], hidden[0])
    assert not torch.equal(out[1], hidden[1])


def test_what_is_kept_does_not_grow_with_the_prompt(fake):
    detector = fake([PASS], layers=(0, 1), steering_layer=None)
    call = PromptCall(
        prompt_len=500, kinds=("text",), layers=(0, 1), detector=detector, policy=Policy()
    )
    call.enter(past=0, length=500)
    for layer in (0, 1):
        call.see(layer, torch.randn(1, 500, 32))
    kept = [residual.untyped_storage().nbytes() for residual in call.residuals.values()]
    assert kept == [32 * 4] * 2


def test_a_broken_residual_at_the_steering_layer_fails_its_own_row_only(fake):
    detector = fake([STEER, STEER, PASS], layers=(0,), steering_layer=1)
    call = PromptCall(
        prompt_len=1, kinds=("text",) * 3, layers=(0,), detector=detector, policy=Policy()
    )
    hidden = torch.zeros(3, 1, 32)
    call.enter(past=0, length=1)
    call.see(0, hidden)
    hidden[0, 0, 3] = hidden[2, 0, 3] = torch.inf
    call.see(1, hidden)
    call.settle()
    rulings = [call.ruling(row) for row in range(3)]
    assert [(r.action, r.failed, r.stops) for r in rulings] == [
        (FLAG, True, True),
        (STEER, False, False),
        (PASS, False, False),
    ]
    assert [r.strength for r in rulings] == pytest.approx([0.0, 40.0, 0.0])


def test_a_hook_that_is_taken_off_in_the_middle_of_a_pass_does_nothing_there(llava):
    """Torch has then forgotten that it wants keywords; another thread may close a guard so."""
    decoder, inputs = decoder_module(llava.model), torch.ones((1, 3), dtype=torch.long)
    made = []
    handle = decoder.register_forward_pre_hook(lambda *_: made[0].remove())
    try:
        made.append(PromptHooks(llava.model, [1]))
        decoder(input_ids=inputs)
    finally:
        handle.remove()
    assert made[0]._handles == []
