"""How many requests of one batch may be under way at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables.config import get_config_list

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult
    from langchain_core.runnables import RunnableConfig

    from guardrail.settling import Checker


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
    """Batches that fit the queue of `self.guard`; goes before the class whose batches they are."""

    def batch(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """Answers in order; requests wait in the guard's queue, where like ones share a batch."""
        return self._base().batch(inputs, self._bounded(inputs, config), **kwargs)

    async def abatch(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`batch` for event loops."""
        return await self._base().abatch(inputs, self._bounded(inputs, config), **kwargs)

    def batch_as_completed(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`batch` in the order of completion."""
        return self._base().batch_as_completed(inputs, self._bounded(inputs, config), **kwargs)

    def abatch_as_completed(self, inputs: Any, config: Any = None, **kwargs: Any) -> Any:
        """`abatch` in the order of completion."""
        return self._base().abatch_as_completed(inputs, self._bounded(inputs, config), **kwargs)

    def _base(self) -> Any:
        """The class that comes next: LangChain's."""
        return super()

    def _bounded(self, inputs: Sequence[Any], config: Any) -> Any:
        owner: Any = self
        return bounded(config, len(inputs), owner.guard)


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
