"""What the parts of one request have used so far of the policy's limits.

Whether somebody still waits for what is being read, and threads to read in.

Videos are read frame by frame, which may take minutes, and pictures wait for those who decode them:
whoever asked says here how a reader finds out that it may stop.
"""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from guardrail.errors import (
    InputError,
    LimitExceededError,
    RequestCancelledError,
    UnsupportedContentError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from guardrail.policy import Limits

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


@dataclass(slots=True)
class Budget:
    """Counts, checked one by one, so that nothing is decoded that could not be accepted."""

    limits: Limits
    text_chars: int = 0
    images: int = 0
    videos: int = 0
    pixels: int = 0

    def text(self, value: object, what: str) -> str:
        """The checked text: a str without lone surrogates; other control characters are kept."""
        if not isinstance(value, str):
            raise UnsupportedContentError(f"{what} must be a str, not {type(value).__name__}")
        self.text_chars += len(value)
        self._check("text_chars", self.text_chars, self.limits.text_chars)
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            raise UnsupportedContentError(
                f"{what} holds a lone surrogate at character {exc.start}, which no tokenizer can "
                "read; decode the text with errors='replace'"
            ) from exc
        return str(value)

    def image(self) -> None:
        """Count one picture."""
        self.images += 1
        self._check("images", self.images, self.limits.images)

    def video(self) -> int:
        """Count one video; its number in the request, from 0."""
        self.videos += 1
        self._check("videos", self.videos, self.limits.videos)
        return self.videos - 1

    def pixel_count(self, size: tuple[int, int]) -> None:
        """Count the pixels of one picture, or of one frame of a clip."""
        self.pixels += size[0] * size[1]
        self._check("total_pixels", self.pixels, self.limits.total_pixels)

    def json(self, value: object, what: str) -> str:
        """Uncounted JSON of plain values, bounded as it is written: shared or cyclic ones too."""
        left, pieces = self.limits.text_chars - self.text_chars, list[str]()
        try:
            for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
                left -= len(piece)
                self._check("text_chars", self.limits.text_chars - left, self.limits.text_chars)
                pieces.append(piece)
        except InputError:
            raise
        except (TypeError, ValueError, RecursionError) as exc:
            raise UnsupportedContentError(f"{what} cannot be written as JSON: {exc}") from exc
        return "".join(pieces)

    def _check(self, limit: str, found: int, allowed: int) -> None:
        if found > allowed:
            raise LimitExceededError(
                limit=limit, allowed=allowed, found=found, what="the request, read this far,"
            )
