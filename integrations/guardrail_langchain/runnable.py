"""A guard as a step of a chain, in front of any model; its batches fit the guard's queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field, PrivateAttr, SkipValidation, field_validator
from typing_extensions import override

from guardrail.errors import ConfigurationError
from guardrail.front.consequences import Checker, OnFlag, Reaction
from guardrail.inputs.canonical import require_one_reading
from guardrail.policy.acting import stopped
from guardrail_langchain import replies
from guardrail_langchain.beside import Beside, bound_beside
from guardrail_langchain.judging import (
    InPlace,
    Outcome,
    ajudged,
    atell,
    cautioned_input,
    judged,
    no_place,
    outcome,
    tell,
)
from guardrail_langchain.messages import canonical_input, to_chat, to_judged_chat

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict
    from guardrail_langchain.judging import Judging


class BoundedBatches:
    """Batches that fit the queue of `self.guard`; goes before the class whose batches they are.

    With `return_exceptions` a violation stands in its input's place where the batch was asked for
    directly. Inside another run (a step of a chain) it is raised for the batch as a whole: chains
    hand on as a value whatever is no `Exception`, and fallbacks answer whatever is one.
    """

    def batch(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """Answers in order; requests wait in the guard's queue, where like ones share a batch."""
        return self._asked("batch", inputs, config, **kwargs)

    async def abatch(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`batch` for event loops."""
        return await self._asked("abatch", inputs, config, **kwargs)

    def batch_as_completed(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`batch` in the order of completion."""
        return self._asked("batch_as_completed", inputs, config, **kwargs)

    def abatch_as_completed(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`abatch` in the order of completion."""
        return self._asked("abatch_as_completed", inputs, config, **kwargs)

    def _asked(
        self, way: str, inputs: Any, config: Any, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """What LangChain's class that comes next gives, asked with bounds."""
        owner: Any = self
        in_place = return_exceptions and not _inside_a_run(config)
        base = InPlace(owner) if in_place else super()
        bounds = bounded(config, len(inputs), owner.guard)
        return getattr(base, way)(inputs, bounds, return_exceptions=return_exceptions, **kwargs)


def bounded(
    config: RunnableConfig | list[RunnableConfig] | None, count: int, guard: Checker
) -> list[RunnableConfig] | None:
    """The configs of a batch, each with a `max_concurrency`.

    Without one LangChain would ask everything at once and overflow the guard's queue. Two batches'
    worth keeps the model busy and leaves places to others.
    """
    if count == 0:
        return None
    most = room(guard)
    configs = get_config_list(config, count)
    return [
        cast("RunnableConfig", {**each, "max_concurrency": each.get("max_concurrency") or most})
        for each in configs
    ]


def _inside_a_run(config: Any) -> bool:
    """Whether another runnable hands its own run's callbacks on."""
    configs = config if isinstance(config, list | tuple) else [config or {}]
    return any(
        getattr(each.get("callbacks"), "parent_run_id", None) is not None for each in configs
    )


def room(guard: Checker) -> int:
    """How many requests one caller should have under way."""
    limits = guard.policy.limits
    return min(2 * limits.batch, limits.queue)


async def in_slices(
    ask: Callable[..., Awaitable[LLMResult]],
    chats: list[list[BaseMessage]],
    size: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> LLMResult:
    """`agenerate` for `size` chats after the others, as one result.

    A run's id belongs to the first slice.
    """
    found = [
        await ask(
            chats[at : at + size], *args, **(kwargs if at == 0 else kwargs | {"run_id": None})
        )
        for at in range(0, max(len(chats), 1), size)
    ]
    first, *rest = found
    for more in rest:
        first.generations += more.generations
        first.run = [*(first.run or []), *(more.run or [])]
    return first


class GuardrailRunnable(BoundedBatches, RunnableSerializable[Any, Any]):
    """Checks what goes through; `guard_step | model` guards any model.

        chain = prompt | GuardrailRunnable(guard=guard) | model
        chain = prompt | (GuardrailRunnable(guard=guard, fallback=other_model) | model)

    Alone it passes its input on, or raises `GuardrailViolation`. That is no `Exception`, so
    `with_fallbacks` and `with_retry` answer nothing that is flagged. With a `fallback` here, or
    with `on_flag="refuse"`, `|` takes the next step inside: other inputs go to that step, flagged
    ones to the fallback, or they are answered with the policy's refusal. Mind the parentheses: the
    step that `|` meets first is the one that is stood in for.

    The input is a str, a prompt value, messages, a graph's state with nothing but messages, or a
    dict with one of these under `key`. It goes on with its pictures as they were judged. What is
    bound to the next step inside (`model.bind_tools(...)`) is judged, too; behind a step that
    stands alone it is not seen. A model behind a step cannot be steered; the policy's `unsteerable`
    says what happens instead. Every verdict is sent as a custom event, `guardrail_verdict`.

    Args:
        guard: the guard that checks.
        key: the key of a dict input that holds the prompt or chat.
        select: makes the prompt or chat from any other input, which goes on as it is: where another
            would be cautioned it counts as flagged, and pictures must have one reading only.
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

    @field_validator("fallback", mode="before")
    @classmethod
    def _as_a_step(cls, value: Any) -> Any:
        """What LangChain takes for a step elsewhere is one here, too: functions, dicts of steps."""
        return None if value is None else coerce_to_runnable(value)

    _beside: Beside = PrivateAttr(default_factory=Beside)

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
        after = judged(self._judging(value, kwargs), self.guard.check, self._tell(config))
        step = self._next(after)
        return after.value if step is None else step.invoke(after.value, config, **kwargs)

    async def _ainvoke(self, value: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        after = await ajudged(self._judging(value, kwargs), self.guard.acheck, self._atell(config))
        step = self._next(after)
        return after.value if step is None else await step.ainvoke(after.value, config, **kwargs)

    def _transform(
        self, chunks: Iterator[Any], config: RunnableConfig, **kwargs: Any
    ) -> Iterator[Any]:
        pieces = list(chunks)
        if not pieces:
            return
        steps = self._judging(whole(pieces), kwargs)
        after = judged(steps, self.guard.check, self._tell(config))
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
        steps = self._judging(whole(pieces), kwargs)
        after = await ajudged(steps, self.guard.acheck, self._atell(config))
        step = self._next(after)
        if step is None:
            yield after.value
        else:
            async for chunk in step.astream(after.value, config, **kwargs):
                yield chunk

    def _tell(self, config: RunnableConfig) -> Callable[[Verdict], None]:
        return lambda verdict: tell(verdict, config)

    def _atell(self, config: RunnableConfig) -> Callable[[Verdict], Awaitable[None]]:
        return lambda verdict: atell(verdict, config)

    # ---- what a verdict means

    @property
    def _reaction(self) -> Reaction:
        return Reaction(self.guard, "refuse" if self.fallback is not None else self.on_flag)

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

    def _judging(self, value: Any, kwargs: dict[str, Any]) -> Judging[Outcome]:
        """The verdict after all, and the input that goes on."""
        sent = self._sent(value)
        put = cautioned_input if self.select is None else no_place
        after = yield to_judged_chat(sent), partial(outcome, self._reaction, sent, put)
        if self.bound is not None and not after.stops:
            chats = bound_beside(self.bound, **kwargs)
            found = yield from self._beside.judge(
                chats, self._reaction, put=lambda _, words: put(sent, words)
            )
            if found is not None and (found.stops or after.value is sent):
                after = found
        return after if after.stops else replace(after, value=self._whole(value, after.value))

    def _sent(self, value: Any) -> Any:
        """What of an input the guard reads, its pictures as they go on."""
        if self.select is not None:
            chosen = self.select(value)
            require_one_reading(to_chat(chosen), self.guard.policy)  # the input stays as it is
            return chosen
        key = self._key(value)
        return canonical_input(value if key is None else item_at(value, key), self.guard.policy)

    def _whole(self, value: Any, sent: Any) -> Any:
        """The input with what is sent in its place."""
        key = self._key(value)
        if self.select is not None:
            return value
        return sent if key is None else {**value, key: sent}

    def _key(self, value: Any) -> str | None:
        """The key of a dict input; a graph's state of messages and nothing else needs none."""
        if self.key is not None or not isinstance(value, Mapping) or list(value) != ["messages"]:
            return self.key
        messages = value["messages"]
        read = isinstance(messages, list) and all(isinstance(m, BaseMessage) for m in messages)
        return "messages" if read else None

    def _next(self, after: Outcome) -> Runnable[Any, Any] | None:
        """The step that answers; None passes the input on."""
        if not after.stops:
            return self.bound
        if self.bound is None or not self._answers:
            raise stopped(after.verdict)
        if self.fallback is not None:
            return self.fallback
        return Refusal(self.guard.policy.refusal_message, after.verdict, writes_str(self.bound))


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
