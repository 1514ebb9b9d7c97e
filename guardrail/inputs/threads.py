"""The threads in which requests are read, and how a reader finds out that it may stop.

Videos are read frame by frame, which may take minutes, and pictures wait for those who decode them;
whoever asks gives by `patience` a function that raises once nobody waits. Decoding one picture
cannot be interrupted, so no more are decoded at once than `DECODERS` has threads, whoever sends
them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.errors import RequestCancelledError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

_LARGE = 4_000_000  # pixels
_LARGE_AT_ONCE = min(4, os.cpu_count() or 1)
_LOOK_S = 0.05  # how often a caller that waits looks whether it still should
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


@dataclass(eq=False, repr=False, slots=True)  # a picture's bytes are long to show
class _Work:
    run: Callable[[], Any]
    large: bool
    context: Context = field(default_factory=copy_context)
    future: Future[Any] = field(default_factory=Future)


class Decoders:
    """The few threads of a process that decode pictures; the interpreter's end waits for none.

    There is one more than may decode large pictures, so that no small one waits behind those. A
    caller waits as long as its patience lasts; then its picture is not begun any more.
    """

    def __init__(self, large_at_once: int) -> None:
        self._most = large_at_once
        self.forget()

    def forget(self) -> None:
        """Begin with no work and no thread; those that a forked child sees are its parent's."""
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()
        self._threads = self._large = 0

    def result(self, run: Callable[[], T], *, pixels: int = 0) -> T:
        """What `run` returns or raises, called by one of the threads in the caller's context.

        It is not called at all when the caller's `patience` ends before, which is raised here.
        """
        still_wanted()
        work = _Work(run, large=pixels > _LARGE)
        with self._changed:
            if self._threads <= self._most:
                threading.Thread(target=self._serve, name="guardrail-decoder", daemon=True).start()
                self._threads += 1
            self._waiting.append(work)
            self._changed.notify_all()
        try:
            found: T = self._awaited(work.future)
        except BaseException:  # Ctrl-C among them
            with self._changed:
                if work in self._waiting:  # it has not begun
                    self._waiting.remove(work)
            raise
        finally:
            del work  # an error's traceback must not keep the picture
        return found

    def _awaited(self, future: Future[T]) -> T:
        while True:
            try:
                return future.result(_LOOK_S)
            except TimeoutError:
                if future.done():  # just now, or with such an error of its own
                    return future.result()
                still_wanted()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while (work := self._next()) is None:
                    self._changed.wait()
            try:
                work.future.set_result(work.context.run(_wanted, work.run))
            except BaseException as error:  # the border of the thread; the caller gets it
                work.future.set_exception(error)
            with self._changed:
                self._large -= work.large
                self._changed.notify_all()
            del work  # the picture must not stay while this waits

    def _next(self) -> _Work | None:
        for work in self._waiting:
            if not work.large or self._large < self._most:
                self._waiting.remove(work)
                self._large += work.large
                return work
        return None


def _wanted(run: Callable[[], T]) -> T:
    still_wanted()
    return run()


DECODERS = Decoders(_LARGE_AT_ONCE)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODERS.forget)
