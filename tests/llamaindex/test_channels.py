"""By whatever way words reach a model in this adapter, a guard reads them.

Here is what tests/channels does not cover: the guard's own model, and pictures.
"""

from __future__ import annotations

import base64
import typing
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_llamaindex import GuardedLLM, GuardedVLM
from guardrail_llamaindex.messages import to_messages
from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import ChatMessage, ImageBlock
from llama_index.core.schema import ImageDocument

from guardrail.errors import GuardrailViolation, ModelError
from guardrail.front.judging import Heard
from guardrail.testing import FakeGuard, scripted
from guardrail.types import Action
from tests.channels._llamaindex_classes import BLOCKS, CLASSES
from tests.channels._llamaindex_llm import WARNINGS
from tests.channels.contract import WORD, fields_of
from tests.channels.llamaindex import USER, WAYS, inner_llm, png

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.usefixtures("closed_loop"),
    pytest.mark.filterwarnings(*WARNINGS),
]


def calls_functions(name: str) -> bool:
    words = {*name.replace("'s", "").split()}
    return "ReAct" not in words and bool(words & {"agent", "tool", "workflow", "team"})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, way in WAYS.items()
        if way.outcome == "judged" and way.functions and not calls_functions(name)
    ],
)
def test_an_llm_that_calls_no_functions_gets_no_planted_word(name):
    way, guard = WAYS[name], FakeGuard([WORD])
    inner, behind = inner_llm(way, WORD, functions=False)
    llm = GuardedLLM(llm=behind, guard=guard, on_flag="raise", **way.more(WORD))
    with pytest.raises(GuardrailViolation):
        way.ask(WORD)(llm)
    assert WORD in repr(guard.seen)
    assert WORD not in inner.said()


# --- the guard's own model ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.own])
def test_the_guards_own_model_reads_the_word_in_the_prefill_that_is_scored(guard_on, llava, name):
    way, prompts = WAYS[name], []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        if way.script == "calls" and "<|im_start|>tool" not in prompt:
            return '<tool_call>\n{"name": "look", "arguments": {"where": "x"}}\n</tool_call>'
        return "fine"

    llm = GuardedVLM(guard=guard_on(), **way.more(WORD))
    with scripted(llava.model, llava.processor, script):
        try:
            way.ask(WORD)(llm)
        except (ValueError, ModelError):
            assert "object" in name or "structured" in name  # "fine" is none
    assert WORD in prompts[-1]


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.own is False])
def test_what_the_guards_own_model_would_not_be_shown_is_an_error(guard_on, name):
    llm = GuardedVLM(guard=guard_on(Action.PASS))
    with pytest.raises(ValueError, match=r"cannot score|is not read|no setting"):
        WAYS[name].ask(WORD)(llm)


# --- what the library's classes can hold ----------------------------------------------------------


def test_every_kind_of_block_is_known():
    union, *_ = typing.get_args(types.ContentBlock)
    assert {*typing.get_args(union)} == {each.kind for each in BLOCKS}


def test_every_private_attribute_is_known():
    found = {
        f"{each.kind.__name__}.{name}"
        for each in CLASSES
        for name in getattr(each.kind, "__private_attributes__", {})
    }
    assert found <= {"ToolOutput._exception"}  # whose words are in the output's blocks


PLANTED = f"see {WORD}"
WHOLE: dict[str, dict[str, Any]] = {
    "text": {"text": "hi"},
    "image": {"image": png()},
    "thinking": {"content": "hm"},
    "tool_call": {"tool_name": "look", "tool_call_id": "c1"},
    "cache": {"cache_control": types.CacheControl(type="ephemeral")},
    "citable": {"title": "t", "source": "s", "content": "c"},
    "citation": {
        "title": "t",
        "source": "s",
        "cited_content": "c",
        "additional_location_info": {},
    },
}
VALUES: dict[str, Any] = {
    "additional_information": {"note": PLANTED},
    "tool_kwargs": {"where": PLANTED},
    "cache_control": types.CacheControl(type="ephemeral", ttl=PLANTED),
}


@pytest.mark.parametrize(
    ("block", "field"),
    [
        (each.kind, field)
        for each in BLOCKS
        for field in sorted(fields_of(each.kind) & {*f"{each.judged} {each.labels}".split()})
        if field not in ("image", "video", "path", "url")  # pictures and videos, below
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_every_field_of_a_block_is_read_or_refused(block, field):
    kind = block.model_fields["block_type"].default
    made = block(**{**WHOLE.get(kind, {}), field: VALUES.get(field, PLANTED)})
    if kind == "video":
        made.video = b"GIF89a"
    chat = [USER, ChatMessage(role="assistant", blocks=[made])]
    assert PLANTED in repr(Heard.of(to_messages(chat, others=True)))


# --- pictures -------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[Any, bytes], Any]] = {
    "an image block": lambda llm, data: llm.chat([ChatMessage(blocks=[ImageBlock(image=data)])]),
    "an image block in a system message": lambda llm, data: llm.chat(
        [ChatMessage(role="system", blocks=[ImageBlock(image=data)]), USER]
    ),
    "an image document of a prompt": lambda llm, data: llm.complete(
        "hi", image_documents=[ImageDocument(image=base64.b64encode(data).decode())]
    ),
    "images in additional keywords": lambda llm, data: llm.chat(
        [
            ChatMessage(
                "hi",
                additional_kwargs={
                    "images": [ImageDocument(image=base64.b64encode(data).decode())]
                },
            )
        ]
    ),
}


@pytest.mark.parametrize("name", list(PICTURES))
def test_another_llm_gets_no_planted_picture(other_llm, word_guard, png, name):
    inner, shown = other_llm(), base64.b64encode(png()).decode()
    llm = GuardedLLM(llm=inner, guard=word_guard(flag=shown), on_flag="raise")
    with pytest.raises(GuardrailViolation):
        PICTURES[name](llm, png())
    assert inner.seen == []
