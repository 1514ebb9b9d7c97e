"""A judge of tokens' numbers says what a guard says that sees the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.guard import Guard
from guardrail.model.encode import Encoder
from guardrail.model.generate import last_residuals
from guardrail.model.load import wrap_model
from guardrail.policy import Policy, Thresholds
from guardrail.testing import tiny_artefact
from guardrail.types import Action, ImagePart, Message, Modality, Request, TextPart
from guardrail.vllm.judge import Judge, TokenNumbers
from guardrail.vllm.options import EVERYBODY
from guardrail.vllm.prompts import Medium, Template

if TYPE_CHECKING:
    from guardrail.vllm.judge import Judged


class Everything:
    """A reading that keeps a layer's whole output."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        self.layers, self.seen = layers, dict[int, torch.Tensor]()

    def attends(self, mask: torch.Tensor) -> None:
        """Of no matter."""

    def see(self, layer: int, hidden: torch.Tensor, first: int) -> None:
        self.seen[layer] = hidden[0].detach().float()

    def found(self) -> list[Any]:
        return []


class Asked:
    """A tiny model, and its prompts' numbers as an engine would take them."""

    def __init__(self, made: Any, **artefact: Any) -> None:
        self.loaded = wrap_model(made.model, made.processor)
        self.encoder = Encoder(self.loaded)
        self.artefact = tiny_artefact(made.model, made.processor, **artefact)
        shown = getattr(made.processor, "chat_template", None)
        self.template = Template.of(self.loaded.tokenizer, shown)

    def judge(self, policy: Policy) -> Judge:
        return Judge(self.artefact, policy, self.template)

    def judged(self, request: Request, policy: Policy) -> Judged:
        judge, encoded = self.judge(policy), self.encoder.encode([request])
        wanted = judge.numbers
        read = Everything(wanted.layers)
        last_residuals(self.loaded, encoded, wanted.layers, reading=read)
        numbers = [read.seen[x] @ wanted.basis[i].T for i, x in enumerate(wanted.layers)]
        ids = encoded.inputs["input_ids"][0].tolist()
        stretches = [s for turn in encoded.parts[0].turns for s in turn.stretches]
        media = [Medium(s.kind, s.start, s.stop) for s in stretches if s.kind != "text"]
        return judge(torch.stack(numbers, dim=1), ids, media)

    def guarded(self, request: Request, policy: Policy) -> Any:
        with Guard(self.loaded, self.artefact, policy=policy) as guard:
            return guard.generate(request, max_new_tokens=1).verdict


def said(role: str, text: str, *pictures: Any) -> Message:
    return Message(role=role, parts=(*map(ImagePart, pictures), TextPart(text)))


def rules(steer: float, flag: float, **more: Any) -> Policy:
    points = dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))
    return Policy(thresholds=points, judge=EVERYBODY, **more)


POLICIES = {
    "pass": rules(90, 90),
    "steer": rules(-90, 90),
    "flag": rules(-90, -90),
    "shadow": rules(-90, -90, mode="shadow"),
    "annotate": rules(-90, -90, on_flag="annotate"),
    "no flags": rules(-90, -90, actions={Action.STEER}),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl"])
def test_verdicts_are_those_of_a_guard(family: str, name: str, tiny_of: Any, picture: Any) -> None:
    asked, policy = Asked(tiny_of(family)), POLICIES[name]
    shown = [picture(1)] if asked.loaded.is_multimodal else []
    ask = said("user", "tell me about the dog", *shown)
    for messages in (
        (ask,),
        (ask, said("assistant", "it is red"), said("user", "what is the user?")),
        (said("system", "be kind to cats"), said("user", "and the red one?")),
    ):
        found = asked.judged(Request(messages), policy)
        wanted = asked.guarded(Request(messages), policy)
        verdict = found.verdict
        assert (verdict.action, verdict.would_be) == (wanted.action, wanted.would_be)
        assert verdict.score == pytest.approx(wanted.score, abs=1e-4)
        assert verdict.strength == pytest.approx(wanted.strength, abs=1e-4)
        assert verdict.where.reading == wanted.where.reading
        assert verdict.where.message == wanted.where.message
        assert (verdict.layers, verdict.steering_layer) == (wanted.layers, wanted.steering_layer)
        assert found.amount == verdict.strength
        assert found.stops == (name == "flag")


def test_an_edit_before_the_last_layer_that_is_read_needs_no_second_run(tiny_of: Any) -> None:
    asked = Asked(tiny_of("llama"))
    header = asked.artefact.header
    early = header.steering.model_copy(update={"layer": header.readout.layers[0]})
    asked.artefact = asked.artefact.revised(steering=early)
    request, policy = Request((said("user", "tell me about the dog"),)), POLICIES["steer"]
    found, wanted = asked.judged(request, policy), asked.guarded(request, policy)
    assert found.verdict.strength == pytest.approx(wanted.strength, abs=1e-4)
    assert found.amount > 0


@pytest.mark.parametrize(
    ("policy", "action", "stops"),
    [
        (rules(0, 1), "flag", True),
        (rules(0, 1, fail="open"), "pass", False),
        (rules(0, 1, on_flag="annotate"), "flag", True),  # an outage is no finding
        (rules(0, 1, mode="shadow"), "pass", False),
    ],
)
def test_a_prompt_that_was_not_read_is_an_outage(
    policy: Policy, action: str, stops: bool, tiny_of: Any
) -> None:
    judge = Asked(tiny_of("llava"), video=False).judge(policy)
    unread = torch.full((12, *judge.numbers.basis.shape[:2]), torch.nan)
    video = [Medium(Modality.VIDEO, 2, 5)]
    for found in (
        judge.outage(),
        judge.outage([Medium(Modality.IMAGE, 0, 3)]),
        judge.outage(video),  # thresholds of which nobody knows
        judge(unread, list(range(12)), []),
        judge(torch.zeros_like(unread), list(range(12)), video),
    ):
        assert (found.verdict.action, found.stops, found.amount) == (action, stops, 0)
        assert (found.verdict.score, found.verdict.reason) == (None, "detector_failed")
        assert found.verdict.where is None


def test_one_number_that_is_not_finite_is_no_low_score(tiny_of: Any) -> None:
    asked, policy = Asked(tiny_of("llama")), rules(90, 91)
    judge = asked.judge(policy)
    encoded = asked.encoder.encode([Request((said("user", "tell me about the dog"),))])
    ids = encoded.inputs["input_ids"][0].tolist()
    numbers = torch.zeros(len(ids), *judge.numbers.basis.shape[:2])
    assert judge(numbers, ids, []).verdict.reason == "score"
    (turn,) = encoded.parts[0].turns
    numbers[turn.start + 3, 0] = torch.nan
    assert judge(numbers, ids, []).stops


def test_numbers_are_as_few_as_a_detector_needs(tiny_of: Any) -> None:
    made = tiny_of("llama")
    whole = tiny_artefact(made.model, made.processor)
    bare = tiny_artefact(made.model, made.processor, windows=False, steering=False)
    for artefact, each in ((whole, 2 + 2 * whole.header.windows.heads), (bare, 2)):
        wanted = TokenNumbers.of(Detector.from_artefact(artefact, rules(0, 1)))
        assert wanted.basis.shape[1] == each
    assert wanted.steering_layer is None
    assert wanted.direction is None
