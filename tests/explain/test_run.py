"""One request, position by position: the last one is the guard's, the rest is where it was."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.errors import (
    ConfigurationError,
    GuardClosedError,
    LimitExceededError,
    UnsupportedContentError,
)
from guardrail.explain import explain
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.model.decoder import decoder_layers, decoder_module
from guardrail.model.encode import Encoder
from guardrail.model.generate import last_residuals
from guardrail.policy import Limits, Policy, Thresholds, VideoSampling
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.artefact import Artefact
    from guardrail.explain import Explanation


@pytest.fixture
def guard_on() -> Iterator[Callable[..., Guard]]:
    """`guard_on(tiny, steer=..., flag=...)`; closed after the test."""
    guards: list[Guard] = []

    def make(
        tiny: Any,
        *,
        steer: float = 1e6,
        flag: float = 2e6,
        artefact: Artefact | None = None,
        **policy: Any,
    ) -> Guard:
        both = dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))
        fitted = artefact or tiny_artefact(tiny.model, tiny.processor)
        rules = Policy(thresholds=both, **policy)
        guards.append(Guard((tiny.model, tiny.processor), fitted, policy=rules))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


def chat(text: str, *images: Any, system: str = "be a cat") -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    content: Any = [*parts, {"type": "text", "text": text}] if images else text
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def hooks_on(model: Any) -> int:
    layers = decoder_layers(model)
    before = len(decoder_module(model)._forward_pre_hooks)
    return before + sum(len(layer._forward_hooks) for layer in layers)


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_the_last_position_and_the_verdict_are_the_guards_own(tiny, guard_on, picture, pictures):
    if tiny.family == "llama" and pictures:
        pytest.skip("a text-only model")
    guard = guard_on(tiny)
    value = chat("what is this? \N{GRINNING FACE}", *(picture(seed) for seed in range(pictures)))
    found = explain(guard, value)
    assert found.verdict == guard.check(value)
    assert found.where == found.verdict.where
    assert found.highest(1)[0].score == found.verdict.score
    assert len(found.pictures) == pictures


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TURNS = [
    {"role": "system", "content": "you are a cat of few words, who has never seen a dog"},
    {"role": "user", "content": "tell me about the dog and the cat"},
    {"role": "assistant", "content": "the dog is not a cat, and what is this?"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "what is the cat"},
    {"role": "user", "content": "tell me about the \N{GREEK SMALL LETTER THETA} in this picture"},
]
CALLED = [
    {"role": "user", "content": "what is this?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "the dog and the cat are the same"},
]


def residuals(guard: Guard, encoded: Any) -> torch.Tensor:
    """What a plain pass has at the layers read: (positions, k, d_model)."""
    outputs: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden[0].double())

    stack = decoder_layers(guard.loaded.model)
    layers = guard.artefact.header.readout.layers
    handles = [stack[number].register_forward_hook(keep) for number in layers]
    with torch.no_grad():
        guard.loaded.model(**encoded.inputs)
    for handle in handles:
        handle.remove()
    return torch.stack(outputs, dim=1)


def by_hand(guard: Guard, encoded: Any) -> dict[int, float]:
    """Each position's score, one after the other, from what a plain pass has there."""
    hidden, header = residuals(guard, encoded), guard.artefact.header
    held = {name: tensor.double() for name, tensor in guard.artefact.tensors.items()}
    (parts,) = encoded.parts

    def end(position: int, kind: str) -> float:
        read = (hidden[position] * held["readout_weight"]).sum(-1) - held["readout_zero"]
        score = float((read / held["readout_gap"]).mean())
        if kind == "text":
            return score
        line = header.recentring[kind].score
        return (score - line.intercept) / line.slope

    def window(tokens: torch.Tensor) -> float:
        score = 0.0
        for number, layer in enumerate(tokens.unbind(1)):
            queries, values = held["window_query"][number], held["window_value"][number]
            for query, value in zip(queries, values, strict=True):
                score += float((layer @ query).softmax(0) @ (layer @ value))
            score += float(held["window_bias"][number])
        return (score / tokens.shape[1] - header.windows.zero) / header.windows.gap

    found = {header.position: end(header.position, header.kind) for header in parts.headers}
    found[len(hidden) - 1] = end(len(hidden) - 1, encoded.kinds[0])
    for turn in parts.turns:
        if turn.role in guard.policy.judged_roles:
            for last in range(turn.start + header.windows.first - 1, turn.stop):
                first = max(turn.start, last - header.windows.width + 1)
                found[last] = window(hidden[first : last + 1])
    return found


@pytest.mark.parametrize("case", ["picture", "pictures", "turns", "tools"])
@pytest.mark.parametrize("judge", [{"turns", "tools"}, {"answers"}])
def test_every_position_has_the_score_of_what_ends_there(tiny, guard_on, picture, case, judge):
    if tiny.family == "llama" and case.startswith("picture"):
        pytest.skip("a text-only model")
    guard = guard_on(tiny, judge=judge)
    count = {"picture": 1, "pictures": 2}.get(case, 0)
    told = chat("tell me about the \N{GREEK SMALL LETTER THETA}", *map(picture, range(count)))
    value = {"turns": TURNS, "tools": CALLED}.get(case, told)
    tools = [TOOL] if case == "tools" and Encoder(guard.loaded).supports_tools else None
    found = explain(guard, value, tools=tools)
    assert found.verdict == guard.check(value, tools=tools)
    assert found.verdict.score == found.highest(1)[0].score
    request = to_request(value, policy=Policy(), tools=tools)
    encoded = Encoder(guard.loaded).encode([request])
    ids = encoded.inputs["input_ids"][0]
    assert [p.index for p in found.positions] == list(range(len(ids)))
    assert "".join(p.text for p in found.positions) == tiny.tokenizer.decode(ids)
    wanted = by_hand(guard, encoded)
    scores = {p.index: p.score for p in found.positions if p.score is not None}
    assert scores == pytest.approx(wanted, abs=1e-5)
    assert (len(scores) > 1) == (judge != {"answers"} or case in ("turns", "tools"))
    highest = max(wanted, key=lambda at: wanted[at])
    assert found.decided[-1] == highest
    assert len(found.decided) == 1 or found.decided[0] >= highest - 7


def test_words_of_a_turn_are_told_from_the_templates(tiny, guard_on, picture):
    images = [] if tiny.family == "llama" else [picture(), picture(1)]
    found = explain(guard_on(tiny), chat("user what is <|im_end|>", *images, system="a cat system"))
    texts = {"system": "", "user": ""}
    for position in found.positions:
        if position.kind == "text":
            texts[position.role or ""] += position.text
    # control tokens in what people write are broken by the guard
    assert texts == {"system": "a cat system", "user": "user what is <\u200b|im_end|>"}
    kinds = Counter(position.kind for position in found.positions)
    assert kinds["image"] == sum(len(p.positions) for p in found.pictures)
    assert found.positions[-1].kind == "template"
    assert not found.notes


def test_a_template_that_changes_with_the_words_is_admitted(llama, guard_on):
    model, tokenizer = tiny_model("llama")
    changing = "{%- if messages[0]['content'] == 'the cat' %}{{- 'tell me ' }}{%- endif %}"
    tokenizer.chat_template = changing + tokenizer.chat_template
    tiny = type(llama)("llama", model, tokenizer)
    guard = guard_on(tiny, artefact=tiny_artefact(model, tokenizer))
    found = explain(guard, "the cat")
    assert "is not known" in found.notes[0]
    assert {p.role for p in found.positions} == {None}
    assert "is not known" not in "".join(explain(guard, "the dog").notes)


def test_positions_behind_an_unsafe_word_score_high_and_those_before_it_low(guard_on, llama):
    planted = _planted()
    artefact = _contrast_artefact(planted)
    tiny = type(llama)("llama", planted.model, planted.processor)
    found = explain(guard_on(tiny, artefact=artefact), "tell me about the dog and the picture")
    word = next(p.index for p in found.positions if p.text == " dog")
    user = [p for p in found.positions if p.kind == "text"]
    before = [p.score for p in user if p.index < word and p.score is not None]
    behind = [p.score for p in user if p.index > word]
    assert before
    assert len(behind) >= 3
    assert max(before) < min(behind)
    assert max(behind) > 0.5
    assert found.positions[-1].score > 0.5
    assert (found.where.reading, list(found.decided)) == ("last", [len(found.positions) - 1])
    safe = explain(guard_on(tiny, artefact=artefact), "tell me about the cat and the picture")
    assert safe.verdict.score < 0.5
    more = explain(
        guard_on(tiny, artefact=artefact),
        [
            {"role": "user", "content": "tell me about the dog and the picture"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "hi"},
        ],
    )
    assert more.verdict.score >= found.verdict.score - 1e-6
    assert (more.where.reading, list(more.decided)) == ("turn", list(found.decided))
    assert more.positions[word].score == pytest.approx(found.positions[word].score, abs=1e-6)


def test_a_window_that_decides_is_told_with_its_words(guard_on, llama):
    planted = _planted()
    artefact = _means(_contrast_artefact(planted), gap=0.25)
    tiny = type(llama)("llama", planted.model, planted.processor)
    found = explain(guard_on(tiny, artefact=artefact), "tell me about the dog and the picture")
    words = "".join(found.positions[at].text for at in found.decided)
    assert found.where.reading == "window"
    assert found.where.words == words
    assert len(found.decided) == 8
    assert "dog" in words
    assert {found.positions[at].role for at in found.decided} == {"user"}
    assert found.positions[found.decided[-1]].score == found.verdict.score


@pytest.mark.parametrize(("word", "plain"), [("\uff44\uff4f\uff47", True), ("dog c4t", False)])
def test_a_request_that_scores_higher_in_plain_letters_is_explained_in_them(
    guard_on, llama, word, plain
):
    planted = _planted()
    tiny = type(llama)("llama", planted.model, planted.processor)
    guard = guard_on(tiny, artefact=_contrast_artefact(planted))
    found = explain(guard, f"tell me about the {word}")
    assert found.verdict == guard.check(f"tell me about the {word}")
    assert found.highest(1)[0].score == pytest.approx(found.verdict.score, abs=1e-6)
    assert found.where is not None
    assert any("plain letters" in note for note in found.notes) == found.verdict.folded == plain
    assert (word in "".join(p.text for p in found.positions)) == (not plain)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_a_residual_at_one_patch_is_found_at_its_place(tiny_of, guard_on, picture, family):
    tiny = tiny_of(family)
    guard = guard_on(tiny, artefact=_means(tiny_artefact(tiny.model, tiny.processor)))
    image = picture(width=80, height=40)
    spans = explain(guard, chat("hi", image)).pictures[0]
    hot = spans.positions[-1]
    weight = guard.artefact.tensors["readout_weight"][0]

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, hot] += 400 * weight
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(tiny.model)[1].register_forward_hook(add)
    try:
        explanation = explain(guard, chat("hi", image))
    finally:
        handle.remove()
    (found,) = explanation.pictures
    rows, columns = found.grid
    assert rows * columns == len(found.scores)
    before, last = found.scores[1:-1], found.scores[-1]
    assert last > 1 + max((score for score in before), default=0.0)
    assert hot in explanation.decided
    assert found.seen.size == ((80, 40) if family == "qwen2_5_vl" else (28, 28))
    assert found.original.size == (80, 40)


def test_slots_that_the_model_hides_have_no_score(llava, guard_on, picture):
    guard = guard_on(llava)
    slots = explain(guard, chat("hi", picture())).pictures[0].positions

    def hide(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = torch.ones(kwargs["inputs_embeds"].shape[:2], dtype=torch.long)
        mask[:, slots[2:]] = 0
        return args, kwargs | {"attention_mask": mask}

    handle = decoder_module(llava.model).register_forward_pre_hook(hide, with_kwargs=True)
    try:
        found = explain(guard, chat("hi", picture()))
    finally:
        handle.remove()
    # a window has two tokens at least
    assert [score is None for score in found.pictures[0].scores] == [True, False, True, True]
    assert found.verdict.score is not None
    assert not {p.index for p in found.highest(99)} & set(slots[2:])


def test_a_score_that_is_no_number_is_left_out_and_counted(llama, guard_on):
    model, tokenizer = tiny_model("llama")
    tiny = type(llama)("llama", model, tokenizer)
    guard = guard_on(tiny, artefact=tiny_artefact(model, tokenizer))
    value = "tell me about the cat and the dog in this picture"
    wanted = explain(guard, value)
    text = [p.index for p in wanted.positions if p.kind == "text"]

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output.clone()
        hidden[:, text[-1]] = torch.nan
        return hidden

    handle = decoder_layers(model)[2].register_forward_hook(spoil)
    try:
        found = explain(guard, value)
    finally:
        handle.remove()
    assert wanted.positions[text[-1]].score is not None
    lost = [a.index for a, b in _both(found, wanted) if a.score is None and b.score is not None]
    assert lost == text[-1:]
    assert found.notes == ("positions that were read without a finite score: 1",)
    # it might have been the highest
    assert (found.verdict.reason, found.where, len(found.decided)) == ("detector_failed", None, 0)


def _both(first: Explanation, second: Explanation) -> Any:
    return zip(first.positions, second.positions, strict=True)


@pytest.mark.parametrize(
    ("steer", "flag", "action"), [(1e6, 2e6, "pass"), (-1e6, 1e6, "steer"), (-2e6, -1e6, "flag")]
)
def test_the_action_is_the_guards(llava, guard_on, steer, flag, action):
    guard = guard_on(llava, steer=steer, flag=flag)
    assert explain(guard, "the cat").verdict == guard.check("the cat")
    assert guard.check("the cat").would_be is Action(action) or action == "steer"


def test_a_guard_answers_and_explains_at_the_same_time(llava, guard_on, picture):
    guard = guard_on(llava)
    prompts = [chat(f"tell me about the {noun}", picture()) for noun in ("cat", "dog")]
    wanted = [explain(guard, prompt) for prompt in prompts]
    said = [guard.generate(prompt, max_new_tokens=6).text for prompt in prompts]
    before = hooks_on(llava.model)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for _ in range(4):
            if guard.generate(prompts[number], max_new_tokens=6).text != said[number]:
                wrong.append("answer")

    def look(number: int) -> None:
        for _ in range(4):
            found = explain(guard, prompts[number])
            if _scores(found) != _scores(wanted[number]):
                wrong.append("explanation")

    threads = [threading.Thread(target=work, args=(n,)) for work in (ask, look) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert hooks_on(llava.model) == before


def test_no_hook_outlives_a_failing_pass_and_the_guard_goes_on(llava, guard_on):
    guard = guard_on(llava)
    before = hooks_on(llava.model)

    def fail(*_: Any) -> None:
        raise RuntimeError("boom")

    handle = decoder_layers(llava.model)[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="boom"):
            explain(guard, "the cat")
    finally:
        handle.remove()
    assert hooks_on(llava.model) == before
    assert guard.check("the cat").reason == "score"


def test_limits_and_a_closed_guard_are_respected(llama, guard_on):
    guard = guard_on(llama, limits=Limits(prompt_tokens=12))
    with pytest.raises(LimitExceededError, match="prompt_tokens"):
        explain(guard, "tell me about the cat and the dog")
    guard.close()
    with pytest.raises(GuardClosedError):
        explain(guard, "the cat")


def test_a_layout_can_be_asked_for(llava, qwen2_5_vl, guard_on, picture):
    value = chat("hi", picture())
    strip = explain(guard_on(llava), value, layout="strip").pictures[0]
    assert strip.grid is None
    assert "as asked" in strip.note
    qwen = guard_on(qwen2_5_vl)
    assert explain(qwen, value, layout="grid").pictures[0].grid is not None
    with pytest.raises(ConfigurationError, match="no square"):
        _grid_of_a_model_without_numbers(guard_on(llava), picture)


def test_the_document_is_plain_and_whole(llava, guard_on, picture):
    found = explain(guard_on(llava), chat("what is this?", picture()))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [p["score"] for p in document["positions"]] == [p.score for p in found.positions]
    assert document["pictures"][0]["grid"] == [2, 2]
    assert document["verdict"] == json.loads(json.dumps(found.verdict.to_dict()))


def _scores(found: Explanation) -> list[float]:
    return [round(p.score or 0.0, 6) for p in found.positions]


def _grid_of_a_model_without_numbers(guard: Guard, picture: Any) -> None:
    """The session's model under a config whose tower says nothing, with three slots a picture."""
    from guardrail.explain.patches import picture_spans

    picture_spans(guard.loaded, {}, [[1, 2, 3]], "grid")


def _planted() -> Any:
    """The tiny model of the fitting tests in which one word is unsafe."""
    path = Path(__file__).parents[1] / "fit" / "conftest.py"
    spec = importlib.util.spec_from_file_location("planted_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from guardrail.model.load import wrap_model

    loaded = wrap_model(*tiny_model("llama", seed=3))
    module.plant(loaded)
    return loaded


def _contrast_artefact(loaded: Any) -> Artefact:
    """The difference of means of two prompts, and windows that read its mean."""
    made = tiny_artefact(loaded.model, loaded.processor, steering=False)
    layers = list(made.header.readout.layers)
    encoder = Encoder(loaded)
    safe, unsafe = (
        last_residuals(
            loaded,
            encoder.encode([to_request(f"tell me about the {noun}", policy=Policy())]),
            layers,
        )[0]
        for noun in ("cat", "dog")
    )
    gap = (unsafe - safe).norm(dim=1)
    weight = (unsafe - safe) / gap[:, None]
    tensors = made.tensors | {
        "readout_weight": weight,
        "readout_zero": (safe * weight).sum(1),
        "readout_gap": gap,
    }
    return _means(made.revised(tensors=tensors))


def _means(artefact: Artefact, gap: float = 1.0) -> Artefact:
    """Windows that score the mean of their tokens' projections, on the readout's own scale."""
    held, windows = artefact.tensors, artefact.header.windows
    shape = (-1, windows.heads, -1)
    value = (held["readout_weight"] / held["readout_gap"][:, None] / windows.heads)[:, None]
    tensors = held | {
        "window_query": torch.zeros_like(held["window_query"]),
        "window_value": value.expand(shape).contiguous(),
        "window_bias": -held["readout_zero"] / held["readout_gap"],
    }
    plain = windows.model_copy(update={"zero": 0.0, "gap": gap})
    return artefact.revised(tensors=tensors, windows=plain)


def film(frames: int, text: str = "what is this?", *, before: tuple[Any, ...] = ()) -> list[Any]:
    """A chat with a video of that many coloured frames, one a second."""
    shown = [Image.new("RGB", (56, 40), (30 * i % 256, 90, 200 - 20 * i)) for i in range(frames)]
    pictures = [{"type": "image", "image": image} for image in before]
    content = [*pictures, {"type": "video", "video": shown}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_frame_of_a_video_has_the_highest_score_of_its_slots(tiny_of, guard_on, family):
    guard = guard_on(tiny_of(family))
    found = explain(guard, film(4))
    assert found.verdict == guard.check(film(4))
    assert found.highest(1)[0].score == found.verdict.score
    (video,) = found.videos
    assert not found.pictures
    times = [frame.time_s for frame in video.frames]
    assert times == ([1.0, 3.0] if family == "qwen2_5_vl" else [0.0, 1.0, 2.0, 3.0])  # pairs
    places = [frame.position for frame in video.frames]
    assert places == sorted(set(places))
    assert [frame.score for frame in video.frames] == [found.positions[at].score for at in places]
    assert {found.positions[at].kind for at in video.positions} == {"video"}
    assert sum(p.kind == "video" for p in found.positions) == len(video.positions)
    for frame, slots in zip(video.frames, _shares(video, len(video.frames)), strict=True):
        known = [s for at in slots if (s := found.positions[at].score) is not None]
        assert frame.score == max(known, default=None)
    # in frame k nothing of later frames is known: a video that goes on otherwise scores alike
    if family != "gemma3":  # whose picture tokens see each other
        other = film(4)
        other[0]["content"][0]["video"][2:] = [Image.new("RGB", (56, 40), "white")] * 2
        (changed,) = explain(guard, other).videos
        same = [a.score == pytest.approx(b.score, abs=1e-5) for a, b in _pairs(video, changed)]
        assert same == [time < 2 for time in times]


def _shares(video: Any, count: int) -> list[Any]:
    each = len(video.positions) // count
    return [video.positions[each * n : each * (n + 1)] for n in range(count)]


def _pairs(first: Any, second: Any) -> Any:
    return zip(first.frames, second.frames, strict=True)


def test_pictures_beside_a_video_stay_apart_from_its_frames(tiny_of, guard_on, picture):
    for family in ("llava", "qwen2_5_vl"):
        found = explain(guard_on(tiny_of(family)), film(2, before=(picture(3),)))
        (shown,), (video,) = found.pictures, found.videos
        assert shown.original is not None
        assert shown.original.tobytes() == picture(3).tobytes()
        assert video.frames
        assert max(shown.positions) < min(video.positions)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_long_video_is_explained_by_its_highest_window(tiny_of, guard_on, family):
    tiny = tiny_of(family)
    guard = guard_on(tiny, video=VideoSampling(window=2, answer_frames=2))
    found, wanted = explain(guard, film(7)), guard.check(film(7))  # which reads windows in batches
    assert found.verdict.score == pytest.approx(wanted.score, abs=1e-5)
    assert replace(found.verdict, score=0.0) == replace(wanted, score=0.0)
    assert [w.video for w in found.windows] == [0, 0, 0, 0, None]
    assert [(w.start_s, w.end_s) for w in found.windows[:4]] == [(0, 1), (2, 3), (4, 5), (5, 6)]
    assert (found.windows[4].start_s, found.windows[4].end_s) == (0, 6)
    for window in found.windows:
        chosen = [i for i in (0, 6) if window.video is None] or [*map(int, _ends(window))]
        alone = film(7)
        frames = alone[0]["content"][0]["video"]
        alone[0]["content"][0] |= {"video": [frames[i] for i in chosen]}
        if family == "llava":  # times are no part of what it is shown
            assert guard.check(alone).score == pytest.approx(window.score, abs=1e-5)
    highest = max(found.windows, key=lambda window: window.score)
    assert found.verdict.score == pytest.approx(highest.score, abs=1e-9)
    assert found.highest(1)[0].score == pytest.approx(highest.score, abs=1e-5)
    assert found.where is not None
    assert {f.time_s for f in found.videos[0].frames} <= {highest.start_s, highest.end_s}
    assert "the prompt is that of window" in found.notes[0]
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["windows"][0]["score"] == found.windows[0].score
    assert len(plain["videos"][0]["frames"]) == len(found.videos[0].frames)


def _ends(window: Any) -> tuple[float, float]:
    return window.start_s, window.end_s


def test_a_video_needs_an_artefact_that_was_fitted_with_videos(llava, guard_on):
    old = tiny_artefact(llava.model, llava.processor, video=False)
    with pytest.raises(UnsupportedContentError, match="fitted without video"):
        explain(guard_on(llava, artefact=old), film(2))
