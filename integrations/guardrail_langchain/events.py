"""Every verdict as a custom event, and in a graph's custom stream; where a run carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langgraph.config import get_stream_writer

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from guardrail import Verdict

EVENT = "guardrail_verdict"


def tell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """Send the verdict; outside a run nobody listens, and LangChain says so with an error."""
    _stream(verdict)
    try:
        dispatch_custom_event(EVENT, verdict.to_dict(), config=config)
    except RuntimeError:
        return


async def atell(verdict: Verdict, config: RunnableConfig | None = None) -> None:
    """`tell` for event loops."""
    _stream(verdict)
    try:
        await adispatch_custom_event(EVENT, verdict.to_dict(), config=config)
    except RuntimeError:
        return


def _stream(verdict: Verdict) -> None:
    try:
        write = get_stream_writer()
    except (RuntimeError, KeyError):  # no run, or one of no graph
        return
    write({EVENT: verdict.to_dict()})
