"""Models that run their last layers on the last position alone (Gemma 4's shared keys)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.errors import UnsupportedModelError
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows, generate_rows, last_residuals
from guardrail.model.hooks import check_layers, prompt_hooks
from guardrail.model.prefill import PromptCall
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action, Message, Request, TextPart

PASS, STEER = Action.PASS, Action.STEER
SIX = Settings(max_new_tokens=6)
POLICY = Policy()


@pytest.fixture(scope="module")
def loaded(llama, loaded_of):
    """Four layers; the last two read the keys of the first two, for the last position alone."""
    small, processor = tiny_model("gemma4")
    small.config.get_text_config().num_kv_shared_layers = 2
    torch.manual_seed(0)
    model = type(small)(small.config).eval()
    return loaded_of(llama._replace(model=model, processor=processor))


@pytest.fixture(scope="module")
def encoded(loaded, two):
    return two(loaded)


def hidden_states(loaded: Any, encoded: Any) -> torch.Tensor:
    """Every layer's output at every position, as hooks see them: (rows, positions, L, d_model)."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, output: found.append(output))
        for layer in decoder_layers(loaded.model)
    ]
    with torch.no_grad():
        loaded.model(**encoded.inputs)
    for handle in handles:
        handle.remove()
    return torch.stack(found, dim=2)


def test_the_last_position_is_read_in_every_layer(loaded, encoded):
    expected = hidden_states(loaded, encoded)
    assert torch.allclose(last_residuals(loaded, encoded), expected[:, -1], atol=1e-5)


@pytest.mark.parametrize("steer_tokens", [0, 2])
@pytest.mark.parametrize(("layers", "steering"), [((1,), 2), ((2,), 3), ((3,), 0), ((3,), 2)])
def test_an_edit_on_either_side_of_the_trimming_is_the_one_of_a_plain_pass(
    layers, steering, steer_tokens, loaded, encoded, fake
):
    detector = fake(
        [PASS, STEER], layers=layers, steering_layer=steering, steer_tokens=steer_tokens
    )
    last = encoded.prompt_len + steer_tokens
    kinds = ["text"] * 2
    delta = detector.edit(detector.decide(torch.zeros(0), kinds), torch.zeros(2, 32), kinds)

    def edit(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output.clone()
        hidden[:, encoded.prompt_len - 1 : last] += delta[:, None]
        return hidden

    # `logits_to_keep=0` and no cache: every layer runs every position in every pass.
    options: Any = {"use_cache": False, "logits_to_keep": 0, "output_logits": True}
    options |= {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    handle = decoder_layers(loaded.model)[steering].register_forward_hook(edit)
    expected = loaded.model.generate(**encoded.inputs, **options)
    handle.remove()
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    wanted = expected.sequences[:, encoded.prompt_len :].tolist()
    assert [list(outcome.token_ids) for outcome in outcomes] == wanted
    assert [outcome.ruling.action for outcome in outcomes] == [PASS, STEER]
    assert outcomes[1].ruling.strength == pytest.approx(40.0, rel=1e-4)
    actions = [ruling.action for ruling in check_rows(loaded, encoded, detector, policy=POLICY)]
    assert actions == [PASS, STEER]
    call = PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        detector=detector,
        policy=POLICY,
    )
    with prompt_hooks(loaded.model, check_layers(detector, loaded.model)) as hooks:
        with hooks.active(call):
            options |= {"use_cache": True, "logits_to_keep": 1}
            found = loaded.model.generate(**encoded.inputs, **options)
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4)


def test_a_layer_that_gives_more_positions_than_there_are_tokens_is_refused(fake):
    call = PromptCall(prompt_len=9, kinds=("text",) * 2, layers=(2,), detector=fake([PASS, PASS]))
    call.enter(0, 9)
    with pytest.raises(UnsupportedModelError, match="10 positions for 9 tokens"):
        call.see(2, torch.zeros(2, 10, 8))


def test_windows_and_earlier_turns_at_layers_that_see_the_end_alone_are_an_outage(loaded):
    said = (("user", "tell me about the cat"), ("assistant", "It sleeps."), ("user", "and then?"))
    chat = Request(tuple(Message(role=r, parts=(TextPart(text),)) for r, text in said))
    encoded = Encoder(loaded).encode([chat])
    artefact = tiny_artefact(loaded.model, loaded.processor)  # of layers 1 and 2
    detector = Detector.from_artefact(artefact, POLICY)
    (ruling,) = check_rows(loaded, encoded, detector, policy=POLICY)
    assert (ruling.failed, ruling.action) == (True, Action.FLAG)
    detector.turns, detector.windows = False, None
    (ruling,) = check_rows(loaded, encoded, detector, policy=POLICY)
    assert (ruling.failed, ruling.found) == (False, None)
