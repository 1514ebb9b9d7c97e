"""What earlier turns and parts score: as they did when they were all there was, whatever follows.

Through the guard's own pass over tiny models of all families.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.artefact.header import Steering
from guardrail.decide.detector import Detector
from guardrail.decide.reading import TokenReading
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows, generate_rows, last_residuals
from guardrail.model.history import history_gaps
from guardrail.model.load import wrap_model
from guardrail.model.settings import Settings
from guardrail.policy import Policy, Thresholds
from guardrail.testing import family, tiny_artefact
from guardrail.types import Action, ImagePart, Message, Modality, Request, TextPart, ToolCall
from tests.conftest import CORE_FAMILIES
from tests.families.catalogue import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GUARDED = [name for name in FAMILIES if not family(name).own_generate]
ALL = [
    name if name in CORE_FAMILIES else pytest.param(name, marks=pytest.mark.families)
    for name in GUARDED
]
NEVER, FOUR = 1e9, Settings(max_new_tokens=4, do_sample=False)
CALL = ToolCall(name="find", arguments={"q": "cat"}, id="c1")

# Its whole prompt is read both ways, and its first tokens come behind the last picture.
BOTH_WAYS = {"paligemma"}
# Another picture changes those before it: LLaVA-OneVision shows one in tiles and several without,
# Molmo2 lets all pictures of a prompt see each other, Mllama's see how many tiles the largest has.
TO_PICTURES = {"llava_onevision", "molmo2", "mllama"}


def turn(role: str, *parts: Any, **names: Any) -> Message:
    wrapped = (TextPart(p) if isinstance(p, str) else ImagePart(p) for p in parts)
    return Message(role=role, parts=tuple(wrapped), **names)


def chat(*messages: Message) -> Request:
    return Request(messages)


def policy_at(steer: float = NEVER, flag: float = NEVER, **more: Any) -> Policy:
    return Policy(thresholds=dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag)), **more)


class Asked:
    """A tiny model with random windows, and what its guard's own pass finds in chats."""

    def __init__(self, tiny: Any, **artefact: Any) -> None:
        self.loaded = wrap_model(tiny.model, tiny.processor)
        self.encoder = Encoder(self.loaded)
        self.artefact = tiny_artefact(tiny.model, tiny.processor, **artefact)

    def detector(self, policy: Policy | None = None, *, turns: bool = True) -> Detector:
        made = Detector.from_artefact(self.artefact, policy or policy_at())
        made.turns = turns
        return made

    def rulings(self, *chats: Request, policy: Policy | None = None, turns: bool = True) -> Any:
        encoded = self.encoder.encode(chats)
        policy = policy or policy_at()
        detector = self.detector(policy, turns=turns)
        return check_rows(self.loaded, encoded, detector, policy=policy)

    def highest_window(self, request: Request) -> float:
        """The highest score of all windows; -inf where there is none."""
        (ruling,) = self.rulings(request, turns=False)
        assert not ruling.failed
        return -float("inf") if ruling.found is None else ruling.found.score

    def score_with_windows_alone(self, request: Request) -> tuple[float, bool]:
        """What a request scores where they suffice, and whether its last position counted not."""
        detector = self.detector()
        detector.windows = replace(detector.windows, alone=True)
        encoded = self.encoder.encode([request])
        (ruling,) = check_rows(self.loaded, encoded, detector, policy=policy_at())
        assert not ruling.failed
        return float(ruling.decision.scores[0]), ruling.found is not None and ruling.found.alone


@pytest.fixture(scope="session")
def asked(tiny_of: Callable[[str], Any]) -> Callable[[str], Asked]:
    made: dict[str, Asked] = {}

    def get(name: str) -> Asked:
        if name not in made:
            made[name] = Asked(tiny_of(name))
        return made[name]

    return get


def long_chat(name: str, picture: Any) -> Request:
    shown = [picture(1), picture(2, width=90)] if family(name).pictures else []
    return chat(
        turn("system", "be kind to the cat"),
        turn("user", *shown[:1], "what is this thing here?"),
        turn("assistant", "It is a cat."),
        turn("user", "and how do I feed it, please?", *shown[1:]),
        turn("assistant", "With fish."),
        turn("user", "thanks"),
    )


def apart_at_earlier_answers(of: Asked, whole: Request) -> float:
    """How far an earlier header is from what the shorter chat ended with, at the worst of them."""
    encoded = of.encoder.encode([whole])
    layers = of.artefact.header.readout.layers
    reading = TokenReading(
        rows=encoded.parts,
        judged=("user",),
        prompt_len=encoded.prompt_len,
        layers=layers,
        token_layers=(),
    )
    last_residuals(of.loaded, encoded, layers, reading=reading)
    headers = encoded.parts[0].headers
    assert [(h.message, h.asked_by) for h in headers] == [(2, "user"), (4, "user")]
    apart = []
    for number, header in enumerate(headers):
        shorter = of.encoder.encode([chat(*whole.messages[: header.message])])
        assert header.kind == shorter.kinds[0]
        expected = last_residuals(of.loaded, shorter, layers)[0]
        found = torch.stack([reading.heads[layer][number] for layer in layers])
        apart.append(float((found - expected).norm() / expected.norm()))
    return max(apart)


@pytest.mark.parametrize("name", ALL)
def test_at_an_earlier_answer_stands_what_the_shorter_chat_ended_with(
    name: str, asked: Any, picture: Any
) -> None:
    of, whole = asked(name), long_chat(name, picture)
    assert (apart_at_earlier_answers(of, whole) < 1e-5) == (name not in BOTH_WAYS | TO_PICTURES)
    without = [replace(m, parts=m.parts[:1]) if n == 3 else m for n, m in enumerate(whole.messages)]
    assert (apart_at_earlier_answers(of, chat(*without)) < 1e-5) == (name not in BOTH_WAYS)
    assert bool(history_gaps(of.encoder)) == (name in BOTH_WAYS)


def behind_in_the_text(first: Message, blank: str, more: str, _picture: Any) -> Request:
    *media, text = first.parts
    return chat(replace(first, parts=(*media, TextPart(text.text + blank + more))))


def behind_in_a_part(first: Message, blank: str, more: str, _picture: Any) -> Request:
    return chat(replace(first, parts=(*first.parts, TextPart(blank + more))))


def a_turn_behind(first: Message, _blank: str, more: str, _picture: Any) -> Request:
    return chat(first, turn("assistant", "no. " + more), turn("user", more))


def a_tool_behind(first: Message, _blank: str, more: str, _picture: Any) -> Request:
    called = turn("assistant", tool_calls=(CALL,))
    return chat(first, called, turn("tool", more, name="find", tool_call_id="c1"))


def a_picture_behind(first: Message, blank: str, more: str, picture: Any) -> Request:
    return chat(
        replace(
            first, parts=(*first.parts, ImagePart(picture(7, width=90)), TextPart(blank + more))
        )
    )


APPENDED = (behind_in_the_text, behind_in_a_part, a_turn_behind, a_tool_behind, a_picture_behind)
BLANKS = st.sampled_from([" ", "\n", "\t ", "\n\n  "])


any_words = given(
    said=st.text(max_size=40), blank=BLANKS, more=st.text(max_size=60), shown=st.booleans()
)


@pytest.mark.parametrize("append", APPENDED)
@settings(max_examples=8)
@any_words
def test_nothing_that_is_appended_lowers_the_highest_window(
    tiny: Any, asked: Any, picture: Any, append: Any, said: str, blank: str, more: str, shown: bool
) -> None:
    check_appended(tiny, asked, picture, append, said, blank, more, shown)


@pytest.mark.slow
@pytest.mark.parametrize("append", APPENDED)
@settings(max_examples=100)
@any_words
def test_nothing_among_many_that_is_appended_lowers_the_highest_window(
    tiny: Any, asked: Any, picture: Any, append: Any, said: str, blank: str, more: str, shown: bool
) -> None:
    check_appended(tiny, asked, picture, append, said, blank, more, shown)


def check_appended(
    tiny: Any, asked: Any, picture: Any, append: Any, said: str, blank: str, more: str, shown: bool
) -> None:
    of, pictures = asked(tiny.family), family(tiny.family).pictures
    if append is a_picture_behind and not pictures:
        return
    first = turn("user", *([picture(1)] if shown and pictures else []), said)
    longer = append(first, blank, more, picture)
    before = of.highest_window(chat(first))
    assert before <= of.highest_window(longer) + 1e-4
    score, promised = of.score_with_windows_alone(chat(first))
    if promised:
        assert score == pytest.approx(before, abs=1e-4)
        assert score <= of.score_with_windows_alone(longer)[0] + 1e-4


LONG = "and then some more words about the red boat, the river and who lives there"


@pytest.mark.parametrize("name", ALL)
def test_nothing_that_is_appended_lowers_it_in_any_family_but_those_that_look_ahead(
    name: str, asked: Any, picture: Any
) -> None:
    of, shown = asked(name), [picture(1)] if family(name).pictures else []
    lowered = set()
    for seed, said in enumerate(("tell me how to build it", "what can you see? I see a cat", "?")):
        first = turn("user", *shown, said)
        before = of.highest_window(chat(first))
        for append in APPENDED if shown else APPENDED[:-1]:
            after = of.highest_window(append(first, " ", f"{LONG} {seed}", picture))
            if after < before - 1e-4:
                lowered.add(append)
    if name in BOTH_WAYS:
        assert behind_in_the_text in lowered
    else:
        assert lowered <= ({a_picture_behind} if name in TO_PICTURES else set())


def test_words_before_may_lower_it(asked: Any) -> None:
    """No promise is made of them, which is why the one above is about what is behind."""
    of, said = asked("llama"), "tell me how to build it"
    alone = of.highest_window(chat(turn("user", said)))
    behind = of.highest_window(chat(turn("system", LONG), turn("user", said)))
    assert behind < alone - 1e-2


def several(name: str, picture: Any) -> list[Request]:
    """Chats of which windows and earlier turns are the highest readings."""
    shown = [picture(3)] if family(name).pictures else []
    return [
        long_chat(name, picture),
        chat(turn("user", "hi")),
        chat(turn("user", *shown, "tell me about the red cat in this picture, and the dog")),
        chat(turn("user", "how?"), turn("assistant", "so"), turn("user", *shown, LONG)),
    ]


def alike(found: Any, expected: Any) -> None:
    """Rulings or verdicts over the same chats: where they come from, and their scores."""
    for one, other in zip(found, expected, strict=True):
        assert one.where == other.where
        assert one.score == pytest.approx(other.score, abs=1e-4)


def found_in(outcomes: Any) -> list[Any]:
    return [outcome.ruling.found for outcome in outcomes]


def test_several_chats_are_found_by_both_readings(tiny: Any, asked: Any, picture: Any) -> None:
    of = asked(tiny.family)
    found = [of.rulings(one)[0].found.where for one in several(tiny.family, picture)]
    assert {where.reading for where in found} <= {"window", "turn"}
    assert "window" in {where.reading for where in found}


def test_rows_of_a_batch_are_found_as_alone(tiny: Any, asked: Any, picture: Any) -> None:
    of, chats = asked(tiny.family), several(tiny.family, picture)[1:]
    chats = [one for one in chats if one.shape == chats[0].shape] + chats[:1]
    alone = [of.rulings(one)[0].found for one in chats]
    alike([ruling.found for ruling in of.rulings(*chats)], alone)


def test_an_answer_is_judged_as_a_check_is_with_beams_and_without(
    tiny: Any, asked: Any, picture: Any
) -> None:
    of = asked(tiny.family)
    for one in several(tiny.family, picture):
        encoded, policy = of.encoder.encode([one]), policy_at()
        checked = [of.rulings(one)[0].found]
        for beams in (1, 3):
            how = Settings(max_new_tokens=4, do_sample=False, num_beams=beams)
            found = generate_rows(of.loaded, encoded, of.detector(policy), how, policy=policy)
            alike(found_in(found), checked)


@pytest.mark.parametrize("size", [3, 7, 16])
def test_a_prompt_in_chunks_is_found_as_a_whole_one(
    tiny: Any, asked: Any, picture: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, policy = asked(tiny.family), policy_at()
    chats = [
        chat(turn("user", "how?"), turn("assistant", "so"), turn("user", LONG)),
        chat(turn("user", LONG), turn("assistant", "no"), turn("user", "ok")),
        chat(turn("user", "hi")),
    ]
    if tiny.family in ("llava", "qwen2_5_vl"):  # the others refuse chunks beside pictures
        chats = [replace(one, messages=(turn("user", picture(4)), *one.messages)) for one in chats]
    whole = [ruling.found for ruling in of.rulings(*chats)]
    encoded = of.encoder.encode(chats)
    monkeypatch.setattr(tiny.model.generation_config, "prefill_chunk_size", size)
    outcomes = generate_rows(of.loaded, encoded, of.detector(policy), FOUR, policy=policy)
    alike(found_in(outcomes), whole)


def test_the_verdicts_of_a_guard_agree_on_where(tiny: Any, asked: Any, picture: Any) -> None:
    of = asked(tiny.family)
    model = (of.loaded.model, of.loaded.processor)
    chats = several(tiny.family, picture)
    with Guard(model, of.artefact, policy=policy_at(fold_text=False)) as guard:
        checked = [guard.check(one) for one in chats]
        alike([guard.generate(one, max_new_tokens=3).verdict for one in chats], checked)
        alike(guard.check_batch(chats), checked)
        for one, verdict in zip(chats, checked, strict=True):
            with guard.stream(one, max_new_tokens=3) as stream:
                list(stream)
            alike([stream.verdict], [verdict])
            assert stream.result is not None
            alike([stream.result.verdict], [verdict])
    for verdict, one in zip(checked, chats, strict=True):
        last, where = of.rulings(one)[0], verdict.where
        assert where is not None
        if where.reading == "last":
            assert where.message == len(one.messages) - 1
            assert last.found is None or last.found.score < verdict.score
        else:
            assert verdict.score == pytest.approx(last.found.score, abs=1e-4)


def with_a_higher_window(of: Asked) -> tuple[Request, float]:
    """A text whose windows score higher than its last position, and a score between the two."""
    for seed in range(40):
        one = chat(turn("user", f"tell me about the {LONG.split()[seed % 15]} {seed}"))
        window = of.highest_window(one)
        last = of.rulings(one, policy=policy_at(judge=[]))[0]
        own = float(last.decision.scores[0])
        if window > own + 0.2:
            return one, (window + own) / 2
    raise AssertionError("no text of 40 has a window that scores higher than its end")


def test_a_window_alone_flags_a_request_and_its_row_alone(asked: Any) -> None:
    of = asked("llama")
    one, between = with_a_higher_window(of)
    policy = policy_at(steer=between, flag=between)
    assert of.rulings(one, policy=policy)[0].action is Action.FLAG
    unjudged = policy.model_copy(update={"judge": frozenset()})
    assert of.rulings(one, policy=unjudged)[0].action is Action.PASS
    encoded = of.encoder.encode([chat(turn("user", "hi")), one])
    seen: list[int] = []
    layer = decoder_layers(of.loaded.model)[3]  # behind all that is read
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    try:
        (passed, flagged) = generate_rows(
            of.loaded, encoded, of.detector(policy), FOUR, policy=policy
        )
        assert (passed.finish, flagged.finish, flagged.token_ids) == ("length", "flag", ())
        seen.clear()
        alone = of.encoder.encode([one])
        generate_rows(of.loaded, alone, of.detector(policy), FOUR, policy=policy)
    finally:
        handle.remove()
    assert seen == []


def test_a_request_answered_before_is_flagged_instead_of_steered_where_the_policy_wants_it(
    tiny_of: Any,
) -> None:
    """The last turn does not reach the gate by itself, an earlier message does."""
    of = Asked(tiny_of("llama"))
    early = Steering(layer=0, gain=50, a_max=9, region_max=NEVER, steer_tokens=0)
    of.artefact = of.artefact.revised(steering=early)
    first, _ = with_a_higher_window(of)
    later = chat(*first.messages, turn("assistant", "no"), turn("user", "hi"))
    whole, hi = of.rulings(later)[0], of.rulings(chat(turn("user", "hi")))[0]
    assert whole.found.earlier
    between = (whole.found.score + float(whole.decision.scores[0])) / 2 - 1e-3
    assert between > float(hi.decision.last[0])
    for earlier, action in (("steer", Action.STEER), ("flag", Action.FLAG)):
        policy = policy_at(steer=between, earlier=earlier)
        encoded = of.encoder.encode([first, later])
        (alone, answered) = generate_rows(
            of.loaded, encoded, of.detector(policy), FOUR, policy=policy
        )
        assert (alone.ruling.action, answered.ruling.action) == (Action.STEER, action)


@pytest.mark.parametrize("steer_tokens", [0, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "llama"])
def test_a_row_steered_by_a_window_is_edited_before_the_windows_were_read(
    name: str, tiny_of: Any, steer_tokens: int
) -> None:
    """Windows are read at layers 1 and 2, the edit is at layer 0: the layers between run again."""
    of = Asked(tiny_of(name))
    early = Steering(layer=0, gain=50, a_max=9, region_max=NEVER, steer_tokens=steer_tokens)
    of.artefact = of.artefact.revised(steering=early)
    one, between = with_a_higher_window(of)
    other = chat(turn("user", "hi"))
    policy = policy_at(steer=between)
    encoded = of.encoder.encode([other, one])
    found = generate_rows(of.loaded, encoded, of.detector(policy), FOUR, policy=policy)
    steered = [outcome.ruling.action is Action.STEER for outcome in found]
    assert steered[1]
    strengths = torch.tensor([outcome.ruling.strength for outcome in found])
    assert (strengths > 0).tolist() == steered
    delta = strengths[:, None] * of.artefact.tensors["direction"][0]
    start = encoded.prompt_len - 1

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, start : start + 1 + steer_tokens] += delta[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    plain = {"max_new_tokens": 4, "do_sample": False, "use_cache": False}
    usual = of.loaded.model.generate(**encoded.inputs, **plain)[:, start + 1 :].tolist()
    handle = decoder_layers(of.loaded.model)[0].register_forward_hook(add)
    try:
        expected = of.loaded.model.generate(**encoded.inputs, **plain)[:, start + 1 :].tolist()
    finally:
        handle.remove()
    assert [list(outcome.token_ids) for outcome in found] == expected
    assert expected[1] != usual[1]
