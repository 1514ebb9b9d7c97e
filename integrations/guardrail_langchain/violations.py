"""A violation on its way through LangChain, which in places knows no error but an `Exception`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable
from typing_extensions import override

from guardrail.errors import GuardrailViolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from langchain_core.runnables import RunnableConfig


class _Carried(GuardrailViolation, Exception):
    """A violation where LangChain tells callbacks of an error only if it is an `Exception`."""

    def __init__(self, violation: GuardrailViolation) -> None:
        super().__init__(violation.verdict)
        self.violation = violation


@contextmanager
def as_exception() -> Iterator[None]:
    """Let a violation be an `Exception` from here to the next `as_itself`, which must be ours."""
    try:
        yield
    except GuardrailViolation as violation:
        raise _Carried(violation) from violation


@contextmanager
def as_itself() -> Iterator[None]:
    """Let no violation leave as an `Exception`, which a fallback would take for a failure."""
    try:
        yield
    except _Carried as carried:
        raise carried.violation from None


class InPlace(Runnable[Any, Any]):
    """A step whose violations are results among others, as `return_exceptions` asks for."""

    def __init__(self, step: Runnable[Any, Any]) -> None:
        self._step = step

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return self._step.invoke(input, config, **kwargs)
        except GuardrailViolation as violation:
            return violation

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return await self._step.ainvoke(input, config, **kwargs)
        except GuardrailViolation as violation:
            return violation
