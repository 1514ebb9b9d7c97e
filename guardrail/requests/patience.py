"""Whether somebody still waits for what is being read, and threads to read in.

Videos are read frame by frame, which may take minutes, and pictures wait for those who decode them:
whoever asked says here how a reader finds out that it may stop.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, TypeVar

from guardrail.errors import RequestCancelledError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

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


def in_own_thread(work: Callable[[], T]) -> Awaitable[T]:
    """Run what takes long beside the few threads that an event loop's users share."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # the border of the thread; the waiting task gets it
            future.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="guardrail-reading")
    thread.daemon = True  # the interpreter's end does not wait for it
    thread.start()
    return asyncio.wrap_future(future)


async def read_apart(read: Callable[[], T]) -> T:
    """`read` what holds media, in a thread of its own; no further once the task is cancelled."""
    given_up = threading.Event()

    def still_waits() -> None:
        if given_up.is_set():
            raise RequestCancelledError("the request was given up while it was read")

    def patient() -> T:
        with patience(still_waits):
            return read()

    try:
        return await in_own_thread(patient)
    except asyncio.CancelledError:
        given_up.set()
        raise
