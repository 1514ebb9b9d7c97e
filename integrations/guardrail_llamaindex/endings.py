"""Streams that would never end after a violation: those of workflows and of chat engines.

A violation is no `Exception`, so no retry and no fallback answers what was refused. LlamaIndex
passes nothing but an `Exception` on to whoever reads a stream that another task or thread writes.
Its instrumentation tells of both, and here the reader is told.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.workflow import Context, StopEvent
from llama_index_instrumentation import get_dispatcher

from guardrail.errors import GuardrailViolation


class _OnViolation(BaseSpanHandler[Any]):
    """Looks at spans that end in a violation, and keeps none."""

    def span_enter(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def span_exit(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def span_drop(self, *args: Any, err: BaseException | None = None, **kwargs: Any) -> None:
        """A span has ended in an error."""
        if isinstance(err, GuardrailViolation):
            self.violated(kwargs.get("instance"), err)

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        """Tell whoever reads."""

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept."""


class _OfSteps(_OnViolation):
    """Ends the events of a workflow whose step has raised; who awaits the run gets the error."""

    @classmethod
    def class_name(cls) -> str:
        return "GuardrailViolationsOfSteps"

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a step that is no coroutine runs in a thread, which has no events
            return
        Context.get_step_context().write_event_to_stream(StopEvent())


class _OfChats(_OnViolation):
    """Raises the violation where a chat engine's stream is read, as LlamaIndex does its errors."""

    @classmethod
    def class_name(cls) -> str:
        return "GuardrailViolationsOfChats"

    def violated(self, instance: Any, violation: GuardrailViolation) -> None:
        if not isinstance(instance, StreamingAgentChatResponse):
            return
        told: Any = violation
        instance.exception = told
        instance.put_in_queue("")
        if instance.aqueue is not None:
            instance.aput_in_queue("")


_SPANS = {"workflows.workflow": _OfSteps, "llama_index.core.chat_engine.types": _OfChats}


def end_streams() -> None:
    """See to it, once for all workflows and chat engines of this process."""
    for name, kind in _SPANS.items():
        spans = get_dispatcher(name)
        if not any(isinstance(handler, kind) for handler in spans.span_handlers):
            spans.add_span_handler(kind())
