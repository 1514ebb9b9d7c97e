"""Workflows whose steps end in a violation: their event streams end, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.workflow import Context, StopEvent
from llama_index_instrumentation import get_dispatcher

from guardrail.errors import GuardrailViolation

if TYPE_CHECKING:
    import inspect

_STEPS = "workflows.workflow"  # the dispatcher of a workflow's steps, and of nothing else


class _EndStreams(BaseSpanHandler[Any]):
    """Ends the event stream of a workflow that a violation ends.

    A violation is no `Exception`, so no retry of a step and no fallback in it answers what was
    refused. It ends the run, and whoever awaits the run gets it; but the run's event stream would
    never end, since LlamaIndex writes its last event for an `Exception` alone.
    """

    @classmethod
    def class_name(cls) -> str:
        return "GuardrailEndStreams"

    def span_enter(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of spans."""

    def span_exit(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of spans."""

    def span_drop(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        err: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """A step has ended in an error."""
        if not isinstance(err, GuardrailViolation):
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a step that is no coroutine runs in a thread, which has no stream
            return
        Context.get_step_context().write_event_to_stream(StopEvent())

    def new_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of spans."""

    def prepare_to_exit_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of spans."""

    def prepare_to_drop_span(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is kept of spans."""


def end_streams() -> None:
    """See to it, once for all workflows of this process."""
    steps = get_dispatcher(_STEPS)
    if not any(isinstance(handler, _EndStreams) for handler in steps.span_handlers):
        steps.add_span_handler(_EndStreams())
