from __future__ import annotations

import pytest

from guardrail.caution import with_caution
from guardrail.types import Message, Request, TextPart

TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}
SYSTEM = Message(role="system", parts=(TextPart("Be brief."),))
USER = Message(role="user", parts=(TextPart("hello"),))


@pytest.mark.parametrize(
    ("messages", "words"),
    [((USER,), "Careful."), ((SYSTEM, USER), "Careful.\n\nBe brief.")],
    ids=["no system", "system"],
)
def test_a_cautioned_request_keeps_its_other_messages_and_its_tools(messages, words):
    cautioned = with_caution(Request(messages, (TOOL,)), "Careful.")
    system = Message(role="system", parts=(TextPart(words),))
    assert cautioned == Request((system, USER), (TOOL,))


@pytest.mark.parametrize("value", [None, [], b"bytes", 3, {"role": "user"}, ["text"]])
def test_other_forms_have_no_place_for_words(value):
    assert with_caution(value, "Careful.") is None
