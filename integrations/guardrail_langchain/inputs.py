"""Inputs of a chain's step, whole and by key, and the refusal that stands in for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable
from typing_extensions import override

from guardrail.errors import ConfigurationError
from guardrail_langchain import replies

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict


class Refusal(Runnable[Any, Any]):
    """Answers anything with a policy's refusal, as a str where the step it stands for gives one."""

    def __init__(self, text: str, verdict: Verdict, plain: bool) -> None:
        self._answer = text if plain else replies.refusal(text, verdict)

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._answer


def writes_str(step: Runnable[Any, Any]) -> bool:
    """Whether a step's answers are text, as far as it tells."""
    try:
        return step.OutputType is str
    except TypeError:  # a step that does not tell
        return False


def item_at(value: Any, key: str) -> Any:
    """What an input holds under a key."""
    if not isinstance(value, Mapping) or key not in value:
        raise ConfigurationError(f"this input has no {key!r}, which is to be checked")
    return value[key]


def whole(chunks: list[Any]) -> Any:
    """The chunks of a streamed input as one value, joined as LangChain's own steps join them."""
    joined = chunks[0]
    for chunk in chunks[1:]:
        try:
            joined = joined + chunk
        except TypeError:  # whole values one after the other: the last one counts
            joined = chunk
    return joined
