"""How many requests of one batch may be under way at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from langchain_core.runnables.config import get_config_list

if TYPE_CHECKING:
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
    limits = guard.policy.limits
    room = min(2 * limits.batch, limits.queue)
    configs = get_config_list(config, count)
    return [
        cast("RunnableConfig", {**each, "max_concurrency": each.get("max_concurrency") or room})
        for each in configs
    ]
