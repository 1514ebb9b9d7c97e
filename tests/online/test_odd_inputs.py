"""Inputs that are unusual but allowed, scored as they should be; and those that are not, refused.

What a request should score is worked out here without the package's own encoder: the chat is
written by hand for the model's processor, and the score's formula is applied to a plain pass.
"""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from guardrail.artefact.header import Line
from guardrail.errors import InputError, LimitExceededError, UnsupportedContentError
from guardrail.fit.collect import text_request
from guardrail.inputs.messages import to_request
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.policy import Limits, Policy
from guardrail.testing import tiny_model
from guardrail.types import Action

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "llama")
CONTEXT = 2048  # positions of the tiny models
LONG = Limits(image_aspect=4000)


@pytest.fixture(params=FAMILIES)
def odd(request, tiny_of):
    """Families that place pictures in three ways, and one that reads text only."""
    return tiny_of(request.param)


@pytest.fixture(params=FAMILIES[:3])
def seeing(request, tiny_of):
    """The families that take pictures."""
    return tiny_of(request.param)


def turn(role, *parts):
    """A message of texts and pictures, in the form that both sides are given."""
    return {
        "role": role,
        "content": [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part}
            for part in parts
        ],
    }


def request_of(chat):
    """What the encoder is given."""
    return to_request(chat, policy=Policy())


def noise(width, height, seed=0):
    """A picture no two pixels of which need be alike."""
    return Image.frombytes(
        "RGB", (width, height), random.Random(seed).randbytes(3 * width * height)
    )


def for_text_models(chat):
    """The same chat with contents as strings."""
    return [{**m, "content": "".join(part["text"] for part in m["content"])} for m in chat]


def expected(tiny, artefact, chat):
    """The highest score of all turns, each asked by itself: what an answer was given to counts."""
    ends = [*(n for n, message in enumerate(chat) if n and message["role"] == "assistant"), None]
    return max(at_the_end(tiny, artefact, chat[:end]) for end in ends)


def at_the_end(tiny, artefact, chat):
    """The score's formula over a plain forward pass of a chat given to the model's processor."""
    written = for_text_models(chat) if tiny.family == "llama" else chat
    inputs = tiny.processor.apply_chat_template(
        written, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    with torch.no_grad():
        states = tiny.model(**inputs, output_hidden_states=True).hidden_states
    count = sum(part["type"] == "image" for m in chat for part in m["content"])
    kind = ("text", "image", "images")[min(count, 2)]
    terms = []
    for k, layer in enumerate(artefact.header.readout.layers):
        value = lambda name, k=k: artefact.tensors[f"readout_{name}"][k].double()  # noqa: E731
        read = states[layer + 1][0, -1].double() @ value("weight")
        terms.append((read - value("zero")) / value("gap"))
    score = float(sum(terms) / len(terms))
    line = artefact.header.recentring[kind].score if count else Line(intercept=0, slope=1)
    return (score - line.intercept) / line.slope


def chat_of_30_turns(*pictures):
    lines = [turn(("user", "assistant")[i % 2], f"line {i} about the cat") for i in range(29)]
    return [*lines, turn("user", *pictures, "what is this?")]


TEXTS = {
    "empty text": [turn("user", "")],
    "white space": [turn("user", " \n\t ")],
    "a system prompt": [turn("system", "be kind"), turn("user", "hello")],
    "an empty system prompt": [turn("system", ""), turn("user", "hello")],
    "two system prompts": [turn("system", "a"), turn("system", "b"), turn("user", "hello")],
    "a system prompt last": [turn("user", "hello"), turn("system", "be kind")],
    "an assistant's turn last": [turn("user", "tell me"), turn("assistant", "sure, the")],
    "a tool's result last": [turn("user", "add"), turn("assistant", "ok"), turn("tool", "42")],
    "an assistant alone": [turn("assistant", "hello")],
    "two user turns in a row": [turn("user", "one"), turn("user", "two")],
    "30 turns": chat_of_30_turns(),
    "Chinese": [turn("user", "如何在家制作蛋糕。")],
    "Arabic": [turn("user", "كيف أصنع كعكة في المنزل؟")],
    "both directions": [turn("user", "say \u202eabc\u202c then שלום, 123")],
    "emoji": [turn("user", "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪 ok?")],
    "combining marks": [turn("user", "e\u0301 n\u0303 " + "z" + "\u0335\u0321" * 20)],
    "zero width": [turn("user", "wh\u200bat\u2060 is\ufeff th\u00adis?")],
    "control characters": [turn("user", "a\x00b\x07c\x1b[31m")],
    "a very long word": [turn("user", "a" * 900)],
}


def pictures():
    """Chats with pictures in unusual places and of unusual shapes."""
    one, two, three = (noise(56, 40, seed) for seed in range(3))
    shapes = [(1, 1), (2, 1), (120, 1), (1, 120), (3, 90), (90, 3), (4000, 40), (3000, 2500)]
    return {
        "a picture alone": [turn("user", one)],
        "a picture and empty text": [turn("user", one, "")],
        "a picture in an earlier turn": [
            turn("user", one, "what is this?"),
            turn("assistant", "a dog"),
            turn("user", "and the colour?"),
        ],
        "a picture in each of two turns": [
            turn("user", one, "what is this?"),
            turn("assistant", "a dog"),
            turn("user", "and this?", two),
        ],
        "pictures between texts": [turn("user", "first", one, "then", two, "last", three, "end")],
        "pictures side by side": [turn("user", one, two, three)],
        "a picture behind its words": [turn("user", "what is this?", one)],
        "a picture of the system": [turn("system", "be kind", one), turn("user", "hello")],
        "a picture from a tool": [turn("user", "look"), turn("assistant", "ok"), turn("tool", one)],
        "a picture after 29 turns": chat_of_30_turns(one),
        **{f"{w} x {h} pixels": [turn("user", noise(w, h), "what?")] for w, h in shapes},
    }


CHATS = TEXTS | pictures()


@pytest.mark.parametrize("name", CHATS)
def test_the_score_is_that_of_a_plain_pass(odd, artefact_of, guard_on, name):
    if odd.family == "llama" and name not in TEXTS:
        pytest.skip("this family reads text only")
    verdict = guard_on(odd, fold_text=False).check(CHATS[name])
    score = expected(odd, artefact_of(odd), CHATS[name])
    assert verdict.score == pytest.approx(score, abs=1e-4)


def test_odd_chats_score_the_same_in_a_batch(odd, guard_on):
    names = [name for name in CHATS if odd.family != "llama" or name in TEXTS]
    guard = guard_on(odd)
    rows = []
    layer = decoder_layers(odd.model)[0]
    handle = layer.register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[0]))
    try:
        together = guard.check_batch([CHATS[name] for name in names])
    finally:
        handle.remove()
    alone = [guard.check(CHATS[name]) for name in names]
    assert max(rows) > 4  # they did share batches
    for name, one, other in zip(names, together, alone, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4), name


def test_the_order_of_pictures_and_texts_is_the_callers(seeing, guard_on):
    one, two = noise(56, 40, 1), noise(56, 40, 2)
    orders = [
        ("a", one, "b", two),
        ("a", two, "b", one),
        ("b", one, "a", two),
        (one, "a", two, "b"),
    ]
    scores = [guard_on(seeing).check([turn("user", *parts)]).score for parts in orders]
    assert len({round(score, 5) for score in scores}) == len(orders)


@pytest.mark.parametrize("size", [(8000, 4), (4, 8000)])
def test_a_long_strip_is_refused_before_it_is_decoded(seeing, guard_on, size, tmp_path):
    path = tmp_path / "strip.png"
    Image.new("RGB", size).save(path)
    path.write_bytes(path.read_bytes()[:60])  # the header says it all
    chat = [turn("user", "what?"), {"role": "user", "content": [{"type": "image", "path": path}]}]
    with pytest.raises(
        LimitExceededError, match=r"messages\[1\]\.content\[0\].* image_aspect 2000"
    ):
        guard_on(seeing).check(chat)


@pytest.mark.parametrize("size", [(400, 2), (2, 400)])
def test_the_longest_shape_is_allowed_and_no_longer_one(size):
    request_of([turn("user", noise(*size))])
    longer = tuple(side + (side > 2) for side in size)
    with pytest.raises(LimitExceededError, match="image_aspect 201, the policy allows 200"):
        request_of([turn("user", noise(*longer))])


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_a_long_strip_is_scored_where_policy_and_processor_allow_it(
    tiny_of, artefact_of, guard_on, family
):
    tiny, chat = tiny_of(family), [turn("user", noise(8000, 4), "what?")]
    verdict = guard_on(tiny, limits=LONG).check(chat)
    assert verdict.score == pytest.approx(expected(tiny, artefact_of(tiny), chat), abs=1e-4)


def test_a_picture_that_the_processor_refuses_is_named(qwen2_5_vl, guard_on):
    guard = guard_on(qwen2_5_vl, limits=LONG)
    fine, strip = noise(56, 40), noise(4, 900)
    chat = [turn("user", fine, "first"), turn("assistant", "ok"), turn("user", fine, "or", strip)]
    named = r"messages\[2\]: picture 2 of 2 is 4 x 900 pixels.*aspect ratio"
    with pytest.raises(UnsupportedContentError, match=named):
        guard.check(chat)
    with pytest.raises(UnsupportedContentError, match=named):
        guard.generate(chat)


def test_a_refused_picture_spoils_no_otherrequest_of(qwen2_5_vl, guard_on):
    guard = guard_on(qwen2_5_vl, limits=LONG)
    good = [[turn("user", noise(56, 40, seed), "what?")] for seed in range(3)]
    bad = [turn("user", noise(4, 900), "what?")]
    found = guard.check_batch([good[0], bad, *good[1:]], return_exceptions=True)
    assert isinstance(found[1], InputError)
    alone = [guard.check(chat).score for chat in good]
    assert [v.score for v in (found[0], *found[2:])] == pytest.approx(alone, abs=1e-4)


def strict(template):
    """The template, but it takes one system turn and wants the user to speak last."""
    return (
        "{%- if messages | selectattr('role', 'equalto', 'system') | list | length > 1 %}"
        "{{- raise_exception('only one system turn, please') }}{%- endif %}"
        "{%- if messages[-1]['role'] != 'user' %}"
        "{{- raise_exception('the last turn must be a user turn') }}{%- endif %}" + template
    )


@pytest.mark.parametrize("name", ["two system prompts", "an assistant's turn last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_template_refuses_is_an_error_in_its_own_words(family, name):
    model, processor = tiny_model(family)
    processor.chat_template = strict(processor.chat_template)
    chat = TEXTS[name]
    said = "only one system turn" if name == "two system prompts" else "must be a user turn"
    encoder = Encoder(wrap_model(model, processor))
    with pytest.raises(UnsupportedContentError, match=said):
        encoder.encode([request_of(chat)])
    encoder.encode([request_of(TEXTS["a system prompt"])])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_template_that_breaks_on_a_chat_is_no_bare_error(family):
    model, processor = tiny_model(family)
    processor.chat_template = processor.chat_template + "{{- 1 + messages[0]['role'] }}"
    with pytest.raises(UnsupportedContentError, match=r"template or processor .*TypeError"):
        Encoder(wrap_model(model, processor)).encode([text_request("hello")])


def cut_at(tokenizer, length):
    """What a tokenizer's files may say: cut whatever is longer."""
    tokenizer.init_kwargs.update(truncation=True, max_length=length)
    tokenizer.backend_tokenizer.enable_truncation(length)
    tokenizer.model_max_length = length


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_that_is_told_to_cut_cuts_nothing(family, tiny_of):
    model, processor = tiny_model(family)
    images = [] if family == "llama" else [noise(56, 40)] * 3
    request = text_request("what is this picture about? " * 8, images=images)
    whole = Encoder(wrap_model(*tiny_of(family)[1:])).encode([request])
    cut_at(getattr(processor, "tokenizer", processor), 16)
    encoded = Encoder(wrap_model(model, processor)).encode([request])
    assert encoded.lengths == whole.lengths
    for name, value in whole.inputs.items():
        assert torch.equal(encoded.inputs[name], value), name


def test_image_tokens_that_a_processor_lost_are_an_error(llava, monkeypatch):
    """A processor with a mind of its own: it cuts whatever it is told."""
    real = type(llava.tokenizer).__call__

    def cutting(self, *args, **options):
        return real(self, *args, **options | {"truncation": True, "max_length": 8})

    monkeypatch.setattr(type(llava.tokenizer), "__call__", cutting)
    encoder = Encoder(wrap_model(llava.model, llava.processor))
    with pytest.raises(UnsupportedContentError, match="Mismatch in `image` token count"):
        encoder.encode([text_request("what?", images=[noise(56, 40)] * 2)])


def filled(tiny, tokens):
    """A chat whose prompt has exactly this many tokens (its letters never merge)."""
    encoder = Encoder(wrap_model(tiny.model, tiny.processor))
    empty = encoder.encode([text_request("")]).prompt_len
    chat = [turn("user", ("!?" * tokens)[: tokens - empty])]
    assert encoder.encode([request_of(chat)]).prompt_len == tokens
    return chat


@pytest.fixture
def passes(odd):
    """How many forward passes the model's first layer has seen."""
    seen = []
    handle = decoder_layers(odd.model)[0].register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


@pytest.mark.parametrize("over", [1, 3 * CONTEXT])
def test_a_prompt_over_the_context_is_refused_before_the_model_runs(odd, guard_on, passes, over):
    guard = guard_on(odd)
    with pytest.raises(LimitExceededError, match="for a model of 2048 positions") as caught:
        guard.check(filled(odd, CONTEXT + over))
    assert (caught.value.found, caught.value.allowed) == (CONTEXT + over, CONTEXT)
    with pytest.raises(LimitExceededError):
        guard.generate(filled(odd, CONTEXT))  # no room for a single token of an answer
    assert passes == []


def test_a_prompt_that_just_fits_is_scored_whole(odd, artefact_of, guard_on):
    guard = guard_on(odd)
    full = filled(odd, CONTEXT)
    assert guard.check(full).score == pytest.approx(expected(odd, artefact_of(odd), full), abs=1e-4)
    result = guard.generate(filled(odd, CONTEXT - 1), max_new_tokens=4)
    assert (result.prompt_tokens, result.completion_tokens) == (CONTEXT - 1, 1)


def test_the_policys_limit_is_inclusive(odd, guard_on, passes):
    guard = guard_on(odd, limits=Limits(prompt_tokens=60))
    with pytest.raises(LimitExceededError, match=r"prompt_tokens 61.*allows 60.*limits\.prompt"):
        guard.check(filled(odd, 61))
    assert passes == []
    assert guard.check(filled(odd, 60)).action is Action.PASS


def test_a_request_over_the_limit_spoils_no_other(odd, guard_on):
    guard = guard_on(odd, limits=Limits(prompt_tokens=60))
    fits, over = filled(odd, 60), filled(odd, 61)
    found = guard.check_batch([fits, over, fits], return_exceptions=True)
    assert isinstance(found[1], LimitExceededError)
    assert found[0].score == pytest.approx(guard.check(fits).score, abs=1e-4)
    assert found[2].score == pytest.approx(found[0].score, abs=1e-4)
