"""Whether somebody still waits for what is being read.

Videos are read frame by frame, which may take minutes: whoever asked says here how a reader finds
out that it may stop.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ask: ContextVar[Callable[[], None] | None] = ContextVar("guardrail_patience", default=None)


@contextmanager
def patience(ask: Callable[[], None]) -> Iterator[None]:
    """What is read in the block calls `ask` between frames; it raises when nobody waits."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def still_wanted() -> None:
    """Stop here, by an exception, when nobody waits any more."""
    if (ask := _ask.get()) is not None:
        ask()
