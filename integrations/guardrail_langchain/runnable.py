"""A guard as a step of a chain, in front of any model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from pydantic import ConfigDict, Field, SkipValidation
from typing_extensions import override

from guardrail.errors import ConfigurationError
from guardrail.settling import Checker, OnFlag, stopped
from guardrail_langchain.concurrency import BoundedBatches
from guardrail_langchain.events import atell, tell
from guardrail_langchain.inputs import Refusal, item_at, whole, writes_str
from guardrail_langchain.messages import to_chat
from guardrail_langchain.rules import Outcome, no_place, outcome

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict


class GuardrailRunnable(BoundedBatches, RunnableSerializable[Any, Any]):
    """Checks what goes through; `guard_step | model` guards any model.

        chain = prompt | GuardrailRunnable(guard=guard) | model
        chain = prompt | (GuardrailRunnable(guard=guard, fallback=other_model) | model)

    Alone it passes its input on, or raises `GuardrailViolation`. That is no `Exception`, so
    `with_fallbacks` and `with_retry` answer nothing that is flagged. With a `fallback` here, or
    with `on_flag="refuse"`, `|` takes the next step inside: other inputs go to that step, flagged
    ones to the fallback, or they are answered with the policy's refusal. Mind the parentheses: the
    step that `|` meets first is the one that is stood in for.

    The input is a str, a prompt value, messages, or a dict with one of these under `key`. A model
    behind a step cannot be steered; the policy's `unsteerable` says what happens instead. Every
    verdict is sent as a custom event, `guardrail_verdict`.

    Args:
        guard: the guard that checks.
        key: the key of a dict input that holds the prompt or chat.
        select: makes the prompt or chat from any other input; such an input has no place for a
            word of caution, so it counts as flagged where another would be cautioned.
        on_flag: another `on_flag` than the policy's.
        fallback: answers flagged inputs in place of the next step.
        bound: the next step, as `|` sets it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    guard: SkipValidation[Checker] = Field(exclude=True, repr=False)
    key: str | None = None
    select: Callable[[Any], Any] | None = Field(default=None, exclude=True, repr=False)
    on_flag: OnFlag | None = None
    fallback: Runnable[Any, Any] | None = None
    bound: Runnable[Any, Any] | None = None

    @override
    def __or__(self, other: Any) -> Any:
        if self.bound is None and self._answers:
            return self.model_copy(update={"bound": coerce_to_runnable(other)})
        return super().__or__(other)

    @override
    def pipe(self, *others: Any, name: str | None = None) -> Any:
        chain: Any = self
        for other in others:
            chain = chain | other
        return chain if name is None else chain.with_config(run_name=name)

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        self._check_use()
        step: Any = self._invoke  # LangChain looks at the signature
        return self._call_with_config(step, input, config, **kwargs)

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        self._check_use()
        step: Any = self._ainvoke
        return await self._acall_with_config(step, input, config, **kwargs)

    @override
    def stream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        yield from self.transform(iter([input]), config, **kwargs)

    @override
    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async def one() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(one(), config, **kwargs):
            yield chunk

    @override
    def transform(
        self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        self._check_use()
        steps: Any = self._transform  # LangChain looks at the signature
        yield from self._transform_stream_with_config(input, steps, config, **kwargs)

    @override
    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        self._check_use()
        steps: Any = self._atransform
        async for chunk in self._atransform_stream_with_config(input, steps, config, **kwargs):
            yield chunk

    # ---- one input

    def _invoke(self, value: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        after = self._settle(value, self.guard.check(self._chat(value)))
        tell(after.verdict, config)
        step = self._next(after)
        return after.value if step is None else step.invoke(after.value, config, **kwargs)

    async def _ainvoke(self, value: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        after = self._settle(value, await self.guard.acheck(self._chat(value)))
        await atell(after.verdict, config)
        step = self._next(after)
        return after.value if step is None else await step.ainvoke(after.value, config, **kwargs)

    def _transform(
        self, chunks: Iterator[Any], config: RunnableConfig, **kwargs: Any
    ) -> Iterator[Any]:
        pieces = list(chunks)
        if not pieces:
            return
        value = whole(pieces)
        after = self._settle(value, self.guard.check(self._chat(value)))
        tell(after.verdict, config)
        step = self._next(after)
        if step is None:
            yield after.value
        else:
            yield from step.stream(after.value, config, **kwargs)

    async def _atransform(
        self, chunks: AsyncIterator[Any], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Any]:
        pieces = [chunk async for chunk in chunks]
        if not pieces:
            return
        value = whole(pieces)
        after = self._settle(value, await self.guard.acheck(self._chat(value)))
        await atell(after.verdict, config)
        step = self._next(after)
        if step is None:
            yield after.value
        else:
            async for chunk in step.astream(after.value, config, **kwargs):
                yield chunk

    # ---- what a verdict means

    @property
    def _answers(self) -> bool:
        """Whether flagged inputs get an answer from here, in place of the next step's."""
        return self.fallback is not None or self.on_flag == "refuse"

    def _check_use(self) -> None:
        if self._answers and self.bound is None:
            raise ConfigurationError(
                "a fallback or refusal stands in for the next step, and there is none inside; "
                "write prompt | (guard_step | model), with_config behind it"
            )

    def _chat(self, value: Any) -> Any:
        """What of an input the guard reads."""
        if self.select is not None:
            value = self.select(value)
        elif self.key is not None:
            value = item_at(value, self.key)
        return to_chat(value)

    def _settle(self, value: Any, verdict: Verdict) -> Outcome:
        """The verdict after all, and the input that goes on."""
        policy = self.guard.policy
        on_flag = self.on_flag or policy.on_flag
        if self.fallback is not None:
            on_flag = "refuse"
        if self.select is not None:
            return outcome(verdict, policy, on_flag, value, put=no_place)
        if self.key is None:
            return outcome(verdict, policy, on_flag, value)
        after = outcome(verdict, policy, on_flag, item_at(value, self.key))
        return Outcome(after.verdict, {**value, self.key: after.value}, after.stops)

    def _next(self, after: Outcome) -> Runnable[Any, Any] | None:
        """The step that answers; None passes the input on."""
        if not after.stops:
            return self.bound
        if self.bound is None or not self._answers:
            raise stopped(after.verdict, self.guard.policy)
        if self.fallback is not None:
            return self.fallback
        return Refusal(self.guard.policy.refusal_message, after.verdict, writes_str(self.bound))
