"""A custom event for every verdict, where a run is there to carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict

EVENT = "guardrail_verdict"


def tell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """Send the verdict; outside a run nobody listens, and LangChain says so with an error."""
    try:
        dispatch_custom_event(EVENT, verdict.to_dict(), config=config)
    except RuntimeError:
        return


async def atell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """`tell` for event loops."""
    try:
        await adispatch_custom_event(EVENT, verdict.to_dict(), config=config)
    except RuntimeError:
        return
