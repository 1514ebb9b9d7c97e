"""Calls are found in an answer, whatever the form, and never shown as text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from guardrail.online.tool_calls import CallReader, split_calls
from guardrail.testing import scripted, tiny_model
from guardrail.types import Action

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("find", "add")
]
FIND = '{"name": "find", "arguments": {"q": "a"}}'
ADD = '{"name": "add", "parameters": {"x": 1}}'


def found(text: str, **options: Any) -> tuple[str, list[tuple[str, Any]]]:
    rest, calls = split_calls(text, TOOLS, **options)
    return rest, [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"<tool_call>\n{FIND}\n</tool_call>", ""),
        (f"Let me see. <tool_call>{FIND}</tool_call> Done. ", "Let me see.  Done."),
        (f"<tool_call>{FIND}", ""),
        (f"[TOOL_CALLS] [{FIND}]", ""),
        (f"Well, [TOOL_CALLS]{FIND}", "Well,"),
        (f"<|python_tag|>{FIND}", ""),
        (FIND, ""),
        (f"[{FIND}]", ""),
        ('{"name": "find", "arguments": "{\\"q\\": \\"a\\"}"}', ""),
    ],
)
def test_a_call_is_found_in_every_common_form(text, rest):
    assert found(text) == (rest, [("find", {"q": "a"})])


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{FIND}</tool_call>\n<tool_call>{ADD}</tool_call>",
        f"<tool_call>{FIND}\n{ADD}</tool_call>",
        f"[TOOL_CALLS] [{FIND}, {ADD}]",
        f"{FIND}; {ADD}",
    ],
)
def test_several_calls_keep_their_order(text):
    assert found(text) == ("", [("find", {"q": "a"}), ("add", {"x": 1})])


@pytest.mark.parametrize(
    "text",
    [
        "no call at all",
        "<tool_call>broken</tool_call>",
        '<tool_call>{"name": "find", "arguments": [1]}</tool_call>',
        '{"name": "unknown", "arguments": {}}',
        '{"name": "a person", "age": 3}',
        '{"answer": 42}',
        '{"name": "find", "arguments": {"q": NaN}}',
        "[1, 2, 3]",
        "[TOOL_CALLS] nothing",
        "{" * 5000,
    ],
)
def test_what_is_no_call_stays_text(text):
    assert found(text) == (text, [])


def test_every_call_has_an_id_of_its_own():
    _, calls = split_calls(f"[{FIND}, {FIND}]", TOOLS)
    assert len({call.id for call in calls}) == 2
    _, [call] = split_calls('{"name": "find", "arguments": {}, "id": "abc"}', TOOLS)
    assert call.id == "abc"


def test_a_tokenizers_own_response_template_has_the_word():
    function = {"name": "find", "arguments": {"q": "a"}}
    said = {"content": "hm", "tool_calls": [{"type": "function", "function": function}]}
    asked = []

    def parse(text, prefix, tools):
        asked.append((text, tools))
        return said

    tokenizer = SimpleNamespace(response_template={}, parse_response=parse)
    assert found("raw", tokenizer=tokenizer) == ("hm", [("find", {"q": "a"})])
    assert asked == [("raw", TOOLS)]


def test_a_response_template_that_fails_leaves_the_text():
    def parse(text, prefix, tools):
        raise ValueError("cannot")

    tokenizer = SimpleNamespace(response_template={}, parse_response=parse)
    assert found(FIND, tokenizer=tokenizer) == (FIND, [])


class Letters:
    """A tokenizer whose tokens are characters, but for one special token."""

    all_special_ids, all_special_tokens = (0, 1), ("<end>", "<tool_call>")
    eos_token_id = pad_token_id = 0
    added_tokens_decoder = {2: AddedToken("<over>", special=True)}  # noqa: RUF012

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        special = dict(zip(self.all_special_ids, self.all_special_tokens, strict=True))
        return "".join(special.get(i) or chr(i) for i in ids)


def streamed(text: str, size: int = 1) -> tuple[str, str]:
    """What is let through at once, and what is held to the end."""
    reader = CallReader(Letters(), TOOLS)
    out = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    return out, reader.rest()


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("plain text, < and [ in it", "plain text, < and [ in it"),
        (f"One. <tool_call>{FIND}</tool_call> Two.", "One."),
        (f"  {FIND}", ""),
        ("Well. [TOOL", "Well."),
        ("Well.  ", "Well."),
        ("", ""),
    ],
)
def test_text_is_let_through_until_a_call_may_begin(text, out, size):
    shown, held = streamed(text, size)
    assert shown + held == text
    assert shown == out


def test_marks_that_are_special_tokens_are_read_and_others_are_not():
    reader = CallReader(Letters(), TOOLS)
    assert reader.decode([ord("a"), 1, ord("b"), 2, 0]) == "a<tool_call>b"


# ---- through a guard


@pytest.fixture
def own_llava(llava):
    model, processor = tiny_model("llava")
    return llava._replace(model=model, processor=processor)


def test_calls_come_beside_the_text_and_never_in_a_stream(own_llava, guard_on):
    guard = guard_on(own_llava)
    with scripted(own_llava.model, own_llava.processor, lambda _: f"Hm. <tool_call>{FIND}"):
        result = guard.generate("hi", tools=TOOLS, max_new_tokens=200)
        stream = guard.stream("hi", tools=TOOLS, max_new_tokens=200)
        chunks = list(stream)
    assert [(c.name, c.arguments) for c in result.tool_calls] == [("find", {"q": "a"})]
    assert result.text == "".join(chunks) == stream.result.text
    assert result.text == "Hm."
    assert [c.name for c in stream.result.tool_calls] == ["find"]


def test_text_between_calls_keeps_its_spaces(own_llava, guard_on):
    said = f"Hello <tool_call>{FIND}</tool_call> bye <tool_call>{ADD}</tool_call> end"
    with scripted(own_llava.model, own_llava.processor, lambda _: said):
        stream = guard_on(own_llava).stream("hi", tools=TOOLS, max_new_tokens=300)
        assert "".join(stream) == stream.result.text == "Hello  bye  end"


def test_what_only_looks_like_a_call_is_streamed_in_the_end(own_llava, guard_on):
    said = '{"answer": 42}'
    with scripted(own_llava.model, own_llava.processor, lambda _: said):
        stream = guard_on(own_llava).stream("hi", tools=TOOLS, max_new_tokens=200)
        assert "".join(stream) == said == stream.result.text
    assert stream.result.tool_calls == ()


def test_without_tools_nothing_is_taken_for_a_call(own_llava, guard_on):
    with scripted(own_llava.model, own_llava.processor, lambda _: FIND):
        result = guard_on(own_llava).generate("hi", max_new_tokens=200)
    assert (result.text, result.tool_calls) == (FIND, ())


def test_a_flagged_request_calls_nothing(own_llava, guard_on):
    guard = guard_on(own_llava, Action.FLAG)
    with scripted(own_llava.model, own_llava.processor, lambda _: FIND):
        result = guard.generate("hi", tools=TOOLS)
    assert result.refused_by_guard
    assert result.tool_calls == ()
    assert result.text == guard.policy.refusal_message


def test_tools_are_part_of_what_is_judged_and_batched_apart(own_llava, guard_on):
    guard = guard_on(own_llava)
    plain, with_tools = guard.check("hi"), guard.check("hi", tools=TOOLS)
    assert abs(plain.score - with_tools.score) > 1e-3
    assert guard.generate("hi", tools=TOOLS, max_new_tokens=1).verdict.score == pytest.approx(
        with_tools.score, abs=1e-5
    )
    both = guard.batch(["hi", "tell me about the cat"], tools=TOOLS, max_new_tokens=2)
    assert both[0].verdict.score == pytest.approx(with_tools.score, abs=1e-4)
