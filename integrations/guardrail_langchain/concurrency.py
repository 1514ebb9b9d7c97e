"""How many requests of one batch may be under way at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables.config import get_config_list

from guardrail_langchain.violations import InPlace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import RunnableConfig

    from guardrail.front.consequences import Checker


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


class BoundedBatches:
    """Batches that fit the queue of `self.guard`; goes before the class whose batches they are.

    With `return_exceptions` a violation stands in its input's place where the batch was asked for
    directly. Inside another run (a step of a chain) it is raised for the batch as a whole: chains
    hand on as a value whatever is no `Exception`, and fallbacks answer whatever is one.
    """

    def batch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """Answers in order; requests wait in the guard's queue, where like ones share a batch."""
        base = self._base(config, return_exceptions)
        bounds = self._bounded(inputs, config)
        return base.batch(inputs, bounds, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """`batch` for event loops."""
        base = self._base(config, return_exceptions)
        bounds = self._bounded(inputs, config)
        return await base.abatch(inputs, bounds, return_exceptions=return_exceptions, **kwargs)

    def batch_as_completed(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """`batch` in the order of completion."""
        base = self._base(config, return_exceptions)
        bounds = self._bounded(inputs, config)
        return base.batch_as_completed(
            inputs, bounds, return_exceptions=return_exceptions, **kwargs
        )

    def abatch_as_completed(
        self, inputs: Any, config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        """`abatch` in the order of completion."""
        base = self._base(config, return_exceptions)
        bounds = self._bounded(inputs, config)
        return base.abatch_as_completed(
            inputs, bounds, return_exceptions=return_exceptions, **kwargs
        )

    def _base(self, config: Any, return_exceptions: bool) -> Any:
        """What asks one by one: LangChain's class that comes next, or one that keeps violations."""
        if return_exceptions and not _inside_a_run(config):
            owner: Any = self
            return InPlace(owner)
        return super()

    def _bounded(self, inputs: Sequence[Any], config: Any) -> Any:
        owner: Any = self
        return bounded(config, len(inputs), owner.guard)


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
