"""The chat model in LangChain's own conformance suites.

Twice: a random tiny model, and the same one on a script that calls tools as the suite asks, since
random weights have not learned to. What does not apply is declared by its property; the README of
`integrations/guardrail_langchain` says why.
"""

from __future__ import annotations

import functools
import io
import json
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from guardrail_langchain import ChatGuardedVLM
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from PIL import Image

from guardrail import Guard, Policy, Thresholds
from guardrail.testing import scripted, tiny_artefact, tiny_model
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.language_models import BaseChatModel

FAR = dict.fromkeys((Modality.TEXT, Modality.IMAGE), Thresholds(steer=1e9, flag=1e9))


@functools.cache
def passing_guard() -> Guard:
    """A guard that passes everything, on a model of this file's own."""
    model, processor = tiny_model("llava")
    artefact = tiny_artefact(model, processor)
    return Guard((model, processor), artefact, policy=Policy(thresholds=FAR))


@pytest.fixture(autouse=True)
def suite_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture that the suite would fetch, from here."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "navy").save(buffer, "PNG")
    answer = SimpleNamespace(content=buffer.getvalue())
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)


class Declared:
    """What is said of the model, for both suites."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatGuardedVLM

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"guard": passing_guard()}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # a local model has neither a key nor a service to retry
        return {"temperature": 0, "max_tokens": 24, "timeout": 60, "stop": []}

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return False  # refused unless the policy allows the host

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # a guard is tied to its model


class TestUnit(Declared, ChatModelUnitTests):
    pass


class TestRandomModel(Declared, ChatModelIntegrationTests):
    """All that needs no learned behaviour."""

    @property
    def has_tool_calling(self) -> bool:
        return False  # random weights call nothing: see the next class

    @property
    def has_structured_output(self) -> bool:
        return False  # their texts are endless, and one that is cut off has no form


class TestScriptedModel(Declared, ChatModelIntegrationTests):
    """The same path, with answers that call tools and fill in forms."""

    @pytest.fixture(autouse=True)
    def calls(self) -> Iterator[None]:
        loaded = passing_guard().loaded
        with scripted(loaded.model, loaded.processor, answer):
            yield

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return super().standard_chat_model_params | {"max_tokens": 200}


ARGUMENTS: dict[str, dict[str, Any]] = {
    "magic_function": {"input": 3},
    "magic_function_no_args": {},
    "my_adder_tool": {"a": 3, "b": 4},
    "get_weather": {"location": "San Francisco"},
    "greeting_generator": {"answer_style": "pirate"},
    "Joke": {"setup": "why", "punchline": "because"},
    "joke": {"setup": "why", "punchline": "because"},
}


def answer(prompt: str) -> str:
    """A call of the first tool on offer, or a word once a tool has answered (or none is there)."""
    offered = re.findall(r'^\{"type": "function", "function": \{"name": "(\w+)"', prompt, re.M)
    if not offered and "joke about cats" in prompt:
        return json.dumps(ARGUMENTS["joke"])
    if not offered or prompt.rstrip().rsplit("<|im_start|>", 2)[-2].startswith("tool"):
        return "Hello, 1 2 3."
    arguments = ARGUMENTS.get(offered[0], {})
    if named := re.search(r"customer named '(.+?)'", prompt):
        arguments = {"customer_name": named[1], "description": "a company"}
    call = {"name": offered[0], "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
