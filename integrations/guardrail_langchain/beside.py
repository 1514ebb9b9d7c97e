"""What comes along with a model's messages: its system prompt, tools, answer format and settings.

Each is judged by itself, as something a user says: inside the conversation a long one would thin
out the user's words in the score, and be thinned out by them. They seldom change, so each is judged
once, however many turns it comes along with.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.prompts.image import ImagePromptTemplate
from langchain_core.prompts.message import BaseMessagePromptTemplate
from langchain_core.runnables import (
    RouterRunnable,
    Runnable,
    RunnableAssign,
    RunnableBranch,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase, RunnableEachBase
from langchain_core.runnables.configurable import (
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from guardrail.front.chats import result_chat
from guardrail.inputs.canonical import require_one_reading
from guardrail_langchain.judging import outcome
from guardrail_langchain.messages import to_judged_chat
from guardrail_langchain.words import IN_SETTINGS, held_by, legible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langchain.agents.middleware import ModelRequest

    from guardrail import Verdict
    from guardrail.front.consequences import Reaction
    from guardrail_langchain.judging import Judging, Outcome, Put
    from guardrail_langchain.messages import Chat

_TOOLS = ("tools", "functions")

# Fields of models' classes that go with every call; others are read from what is bound.
_OWN_SETTINGS = (
    "additional_model_request_fields",
    "extra_body",
    "format",
    "guided_decoding",
    "instructions",
    "mcp_servers",
    "model_kwargs",
    "reasoning",
    "response_format",
    "system",
    "system_instruction",
)

# For a client, or for whoever traces: no provider is sent them as words.
_OF_CLIENTS = frozenset(
    "callbacks config extra_headers headers http_async_client http_client rate_limiter"
    " run_manager timeout".split()
)
# Where templates of prompts have words.
_OF_TEMPLATES = (
    *("messages", "prompt", "template", "prefix", "suffix", "examples", "example_prompt"),
    "partial_variables",
)
# Choices of a tool that name none.
_CHOICES = frozenset({"any", "auto", "function", "none", "required", "tool"})
_MOST_KNOWN = 4096


def noted(value: Any, words: str) -> bool:
    """A caution has a place: the system prompt of the model call that follows."""
    return True


class Beside:
    """Judges such texts, and remembers the verdicts on those that need not be stopped."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Verdict] = OrderedDict()

    def judge(
        self, chats: Iterable[Chat], reaction: Reaction, *, put: Put = noted
    ) -> Judging[Outcome | None]:
        """The first outcome that stops, else one that asks for a caution, else None."""
        doubtful = None
        for chat in chats:
            name = digest(chat)
            known = self._known.get(name)
            if known is None:
                require_one_reading(chat, reaction.guard.policy)  # what is sent stays as it is
                after = yield chat, partial(self._settled, name, reaction, put)
            else:
                after = outcome(reaction, False, put, known)
            if after.stops:
                return after
            doubtful = after if after.value else doubtful
        return doubtful

    def _settled(self, name: str, reaction: Reaction, put: Put, verdict: Verdict) -> Outcome:
        after = outcome(reaction, False, put, verdict)
        if not after.stops and verdict.reason == "score":
            self._known[name] = verdict
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return after


def digest(chat: Any) -> str:
    """A short name of what a guard reads."""
    return hashlib.sha256(repr(chat).encode()).hexdigest()


def beside_messages(request: ModelRequest[Any]) -> Iterator[Chat]:
    """What reaches the model of an agent beside its messages."""
    if request.system_message is not None:
        for turn in to_judged_chat([request.system_message]):
            if turn["content"]:
                yield result_chat(turn["content"])
    settings = {**request.model_settings, "tool_choice": request.tool_choice}
    yield from _of_settings({**settings, "tools": request.tools})
    for schema in _formats(request.response_format):
        yield result_chat(_written(schema))
    yield from bound_beside(request.model)


def bound_beside(step: Runnable[Any, Any], **kwargs: Any) -> Iterator[Chat]:
    """What is bound to a model (`model.bind_tools(...)`), or given with one call of it.

    Templates of prompts between a guard and a model are among it, and what a model's class has of
    its own to say.
    """
    yield from _of_settings(kwargs)
    if isinstance(step, RunnableBindingBase):
        yield from bound_beside(step.bound, **step.kwargs)
    elif isinstance(step, BaseLanguageModel):
        own = {name: _without_objects(getattr(step, name, None)) for name in _OWN_SETTINGS}
        yield from _of_settings({name: item for name, item in own.items() if item})
    elif isinstance(step, BasePromptTemplate):
        yield from map(result_chat, _templates(step))
    else:
        for part in _parts(step):
            yield from bound_beside(part)


def _parts(step: Runnable[Any, Any]) -> Iterable[Runnable[Any, Any]]:
    """The steps that a step hands its input to, as far as it tells."""
    match step:
        case RunnableSequence():
            return step.steps
        case RunnableParallel():
            return step.steps__.values()
        case RunnableWithFallbacks():
            return step.runnables
        case RunnableBranch():
            return [*(part for _, part in step.branches), step.default]
        case RunnableConfigurableAlternatives():
            made = [each for each in step.alternatives.values() if isinstance(each, Runnable)]
            return [step.default, *made]
        case RunnableConfigurableFields():
            return [step.default]
        case RouterRunnable():
            return step.runnables.values()
        case RunnableAssign():
            return [step.mapper]
        case RunnableEachBase():
            return [step.bound]
    return ()


def _templates(value: Any) -> Iterator[Any]:
    """What a template of prompts says by itself, in examples and in values that are filled in."""
    match value:
        case str() if value.strip():
            yield value
        case BaseMessage():
            yield from (turn["content"] for turn in to_judged_chat([value]) if turn["content"])
        case ImagePromptTemplate() if _is_data(url := value.template.get("url")):
            yield [{"type": "image_url", "image_url": {"url": url}}]
        case Mapping():
            yield from (text for item in value.values() for text in _templates(item))
        case list() | tuple():
            yield from (text for item in value for text in _templates(item))
        case BasePromptTemplate() | BaseMessagePromptTemplate():
            held = [getattr(value, name, None) for name in _OF_TEMPLATES]
            yield from (text for item in held for text in _templates(item))


def _is_data(url: object) -> bool:
    return isinstance(url, str) and url[:5].lower() == "data:"


def _of_settings(settings: Mapping[str, Any]) -> Iterator[Chat]:
    tools = [_shown_tool(tool) for key in _TOOLS for tool in settings.get(key) or ()]
    for tool in tools:
        yield result_chat(_written(tool))
    rest = {k: item for k, item in settings.items() if k not in _OF_CLIENTS and k not in _TOOLS}
    for schema in _schemas(list(rest.values())):
        yield result_chat(_written(schema))
    chosen = legible(rest.pop("tool_choice", None), IN_SETTINGS)
    known = _CHOICES | {_name(tool) for tool in tools}
    words = [text for text in chosen if text not in known]
    if words := [*words, *legible(_without_schemas(rest), IN_SETTINGS)]:
        yield result_chat("\n".join(words))


def _name(tool: Mapping[str, Any]) -> Any:
    """A tool's name in any form; what it says elsewhere is judged there."""
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else tool.get("name")


def _without_schemas(value: Any) -> Any:
    """A setting without what `_schemas` finds in it, and without functions."""
    if isinstance(value, Mapping):
        spoken = {} if _is_schema(value) else value
        return {key: _without_schemas(item) for key, item in spoken.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_schemas(item) for item in value]
    return None if isinstance(value, type) or callable(value) else value


def _without_objects(value: Any) -> Any:
    """A setting of a model's own without what a local one is loaded with: no request holds it."""
    if isinstance(value, Mapping):
        return {key: _without_objects(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_objects(item) for item in value]
    plain = isinstance(value, str | int | float | type) or held_by(value) is not None
    return value if plain else None


def _is_schema(value: Mapping[str, Any]) -> bool:
    return "properties" in value


def _schemas(value: Any) -> Iterator[Any]:
    """The schemas in a setting: a model reads their keys and single words, too."""
    if isinstance(value, type):
        yield _shown_tool(value)
    elif isinstance(value, Mapping) and _is_schema(value):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _schemas(item)


def _shown_tool(tool: Any) -> Mapping[str, Any]:
    if isinstance(tool, Mapping):  # a provider's own form
        return tool
    extras = tool.extras if isinstance(tool, BaseTool) else None
    return convert_to_openai_tool(tool) | ({"extras": extras} if extras else {})


def _formats(response_format: Any) -> Iterator[Any]:
    """The schemas of an agent's answers, in which the model reads names and descriptions."""
    if isinstance(response_format, ProviderStrategy):
        specs = [response_format.schema_spec]
    elif isinstance(response_format, ToolStrategy):
        specs = response_format.schema_specs
    elif response_format is None:
        specs = []
    else:
        schema = response_format.schema if isinstance(response_format, AutoStrategy) else None
        specs = ToolStrategy(schema or response_format).schema_specs
    for spec in specs:
        yield {"name": spec.name, "description": spec.description, "parameters": spec.json_schema}


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What a provider's form holds beside JSON values, in words."""
    held = held_by(value)
    return str(value) if held is None else held
