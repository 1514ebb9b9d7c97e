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
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableParallel,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import (
    RunnableConfigurableAlternatives,
    RunnableConfigurableFields,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from guardrail.front.chats import result_chat
from guardrail_langchain.judging import outcome
from guardrail_langchain.messages import legible_beside, to_judged_chat

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langchain.agents.middleware import ModelRequest

    from guardrail import Verdict
    from guardrail.front.consequences import Reaction
    from guardrail_langchain.judging import Judging, Outcome, Put
    from guardrail_langchain.messages import Chat

_TOOLS = ("tools", "functions")
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
    """What is bound to a model (`model.bind_tools(...)`), or given with one call of it."""
    yield from _of_settings(kwargs)
    if isinstance(step, RunnableBindingBase):
        yield from bound_beside(step.bound, **step.kwargs)
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
    return ()


def _of_settings(settings: Mapping[str, Any]) -> Iterator[Chat]:
    for key in _TOOLS:
        for tool in settings.get(key) or ():
            yield result_chat(_written(_shown_tool(tool)))
    rest = {key: item for key, item in settings.items() if key not in _TOOLS}
    for schema in _schemas(list(rest.values())):
        yield result_chat(_written(schema))
    if words := legible_beside(rest):
        yield result_chat("\n".join(words))


def _schemas(value: Any) -> Iterator[Any]:
    """The schemas in a setting: a model reads their keys and single words, too."""
    if isinstance(value, type):
        yield _shown_tool(value)
    elif isinstance(value, Mapping) and "properties" in value:
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
    return json.dumps(value, ensure_ascii=False, default=str)
