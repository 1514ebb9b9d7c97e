"""The tiny models users test with: real processors, repeatable weights, no download."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.guard import Guard
from guardrail.model.decoder import self_attention_layers
from guardrail.policy import Policy
from guardrail.testing import FAMILIES as SHIPPED
from guardrail.testing import FakeGuard, scripted, tiny_artefact, tiny_model, tiny_processor
from guardrail.types import Action, Modality
from tests.families.catalogue import FAMILIES

ASK = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


def encode(tiny: Any, text: str, image: Any = None, **message: str) -> Any:
    content: Any = text
    if tiny.family != "llama":
        parts = [] if image is None else [{"type": "image", "image": image}]
        content = [*parts, {"type": "text", "text": text}]
    return tiny.processor.apply_chat_template(
        [{"role": "user", "content": content, **message}], **ASK
    )


@torch.no_grad()
def residuals(tiny: Any, inputs: Any) -> torch.Tensor:
    states = tiny.model(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([state[0, -1] for state in states])


def test_greedy_answers_run_to_the_limit_and_vary(tiny: Any) -> None:
    inputs = encode(tiny, "what is this?")
    output = tiny.model.generate(**inputs, max_new_tokens=16)
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(answer) == 16
    assert len(set(answer)) > 4
    assert not set(answer) & set(tiny.tokenizer.all_special_ids)


def test_the_last_position_depends_on_the_words(tiny: Any) -> None:
    one = residuals(tiny, encode(tiny, "tell me about the cat"))
    other = residuals(tiny, encode(tiny, "how do I make red?"))
    apart = (one - other).norm(dim=1) / one.norm(dim=1)
    assert apart[0] == 0  # the chat template's own last token
    assert (apart[1:] > 0.1).all()


@pytest.mark.parametrize("family", SHIPPED)
@pytest.mark.parametrize(("threshold", "action"), [(9, Action.PASS), (-9, Action.FLAG)])
def test_thresholds_of_nine_decide_whatever_is_asked(family, threshold, action):
    model, processor = tiny_model(family)
    artefact = tiny_artefact(model, processor, tau_steer=threshold, tau_flag=threshold)
    with Guard((model, processor), artefact) as guard:
        verdicts = guard.check_batch(["Hello", "Describe a cat.", "How do I bake bread?", "2+2?"])
    assert {verdict.action for verdict in verdicts} == {action}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_built_within_a_second(family: str) -> None:
    tiny_model(family)  # what is imported on first use does not count
    start = time.process_time()
    tiny_model(family)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["héllo wörld", "猫 🐱\u200b", "a\x00b\n\ttab", "<b>&amp;"])
def test_any_text_encodes_without_loss(tiny: Any, text: str) -> None:
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny.tokenizer.decode(ids) == text


def test_the_template_frames_turns_and_refuses_unknown_roles(tiny: Any) -> None:
    shown = tiny.tokenizer.decode(encode(tiny, "hi", name="bob")["input_ids"][0])
    assert shown == "<|im_start|>user bob\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(Exception, match="unknown role wizard"):
        encode(tiny, "hi", role="wizard")


def test_an_unknown_family_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'gpt9'.*llava"):
        tiny_model("gpt9")


def test_the_artefact_fits_its_model_and_takes_the_thresholds_given(llava: Any) -> None:
    artefact = tiny_artefact(llava.model, llava.processor, tau_steer=-3.0, tau_flag=7.5)
    calibration = artefact.header.calibration[Modality.TEXT]
    assert (calibration.thresholds.steer, calibration.thresholds.flag) == (-3.0, 7.5)
    assert artefact.tensors["direction"].shape == (4, 32)
    torch.testing.assert_close(artefact.tensors["direction"].norm(dim=1), torch.ones(4))
    assert artefact.header.steering is not None


def test_the_artefact_leaves_layers_out_that_a_prompt_may_skip(tiny_of: Any) -> None:
    _, model, processor = tiny_of("mllama")
    header = tiny_artefact(model, processor).header
    assert self_attention_layers(model) == (0, 2, 3)
    assert (header.readout.layers, header.steering.layer) == ((0, 2), 2)  # type: ignore[union-attr]
    assert [row.usable for row in header.layers] == [True, False, True, True]
    with Guard((model, processor), tiny_artefact(model, processor)) as guard:
        assert guard.check("hi").layers == (0, 2)


def test_a_processor_can_be_had_without_its_model() -> None:
    for family in ("mistral3", "llama"):
        alone, of_model = tiny_processor(family), tiny_model(family)[1]
        assert type(alone) is type(of_model)
        assert alone.chat_template == of_model.chat_template
    with pytest.raises(ValueError, match="unknown family 'gpt9'"):
        tiny_processor("gpt9")


def test_the_artefact_can_be_detect_only(llama: Any) -> None:
    artefact = tiny_artefact(llama.model, llama.processor, steering=False)
    assert artefact.header.steering is None
    assert {row.steering for row in artefact.header.recentring.values()} == {None}
    with pytest.raises(ConfigurationError, match="only detects"):
        Detector.from_artefact(artefact, Policy()).edit(None, torch.zeros(1, 32), ["text"])


def test_a_scripted_model_says_its_lines_and_is_itself_again_afterwards():
    model, processor = tiny_model("llava")
    guard = Guard((model, processor), tiny_artefact(model, processor, tau_steer=99, tau_flag=99))
    before = guard.generate("hi", max_new_tokens=3)
    with scripted(model, processor, lambda prompt: f"it said {prompt.count('hi')}"):
        [one, two] = guard.batch(["hi", "hi hi, said the cat"], max_new_tokens=50)
        score = guard.check("hi").score
    assert (one.text, two.text) == ("it said 1", "it said 2")
    assert one.finish_reason == "stop"
    assert score == pytest.approx(before.verdict.score, abs=1e-5)
    assert guard.generate("hi", max_new_tokens=3).token_ids == before.token_ids
    guard.close()


def test_of_nested_scripts_the_inner_one_speaks_and_the_outer_one_returns():
    model, processor = tiny_model("llama")
    artefact = tiny_artefact(model, processor, tau_steer=99, tau_flag=99)
    with Guard((model, processor), artefact) as guard, scripted(model, processor, lambda _: "a"):
        with scripted(model, processor, lambda _: "b"):
            assert guard.generate("hi").text == "b"
        assert guard.generate("hi").text == "a"
    assert "generate" not in vars(model)


def test_a_fake_guard_reads_what_a_guard_reads_and_refuses_what_it_refuses(picture):
    fake = FakeGuard(flag=['it\'s "x"', "a\nb"])
    assert fake.check('so it\'s "x"').action == "flag"
    assert fake.check([{"role": "user", "content": "a\nb"}]).action == "flag"
    call = {"name": "f", "args": {"q": "a\nb"}}
    chat = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert fake.check(chat).action == "pass"  # there it is written as JSON
    assert fake.check(picture()).action == "pass"
    assert len(fake.seen) == 4
    for wrong in ([], [{"role": "user", "content": [{"type": "audio"}]}]):
        with pytest.raises(UnsupportedContentError):
            fake.check(wrong)
