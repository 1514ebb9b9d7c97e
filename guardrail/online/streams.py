"""Answers that arrive in chunks, for threads and for event loops."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from guardrail.errors import RequestTimeoutError
from guardrail.types import Verdict
from guardrail.worker.jobs import LATE

if TYPE_CHECKING:
    from guardrail.online.jobs import AnswerJob, Item
    from guardrail.types import Result

Start = Callable[[Callable[["Item"], None]], "AnswerJob"]


class GuardStream(Iterator[str]):
    """Chunks of one answer. `verdict` is known before the first chunk, `result` after the last.

    Where what the model says is judged and cut, the verdict on that is the result's.

    Closing it, or letting it go, ends the request at the model's next token.
    """

    def __init__(self, start: Start, cancel: Callable[[AnswerJob], None]) -> None:
        self.verdict: Verdict | None = None
        self.result: Result | None = None
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._cancel = cancel
        self._over = True  # until there is a job to end
        items = self._items  # the job must not keep an abandoned stream alive
        self._job = start(items.put)
        self._over = False
        self._job.future.add_done_callback(lambda _: items.put(None))

    def __next__(self) -> str:
        """Wait for the next chunk; errors of the request are raised here."""
        while not self._over:
            item = self._next_item()
            if item is None:
                self._over = True
                self.result = self._job.future.result()
            elif isinstance(item, Verdict):
                self.verdict = item
            else:
                return item
        raise StopIteration

    def close(self) -> None:
        """Stop reading; safe to call twice, and after the end."""
        if not self._over:
            self._over = True
            self._cancel(self._job)

    def __enter__(self) -> GuardStream:
        """Return the stream itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the stream."""
        self.close()

    def __del__(self) -> None:
        """An abandoned stream ends its request."""
        if not self._over:
            self._job.cancelled.set()  # takes no lock: the garbage collector may run anywhere

    def _next_item(self) -> Item | None:
        try:
            return self._items.get(timeout=self._job.caller.left_s())
        except queue.Empty:
            self.close()
            raise RequestTimeoutError(LATE) from None
        except BaseException:  # an interrupted wait, for example Ctrl-C
            self.close()
            raise


class AsyncGuardStream(AsyncIterator[str]):
    """Chunks of one answer for `async for`; the request starts with the first one asked for."""

    def __init__(
        self,
        start: Callable[[Callable[[Item], None], threading.Event], Awaitable[AnswerJob]],
        cancel: Callable[[AnswerJob], None],
    ) -> None:
        self.verdict: Verdict | None = None
        self.result: Result | None = None
        self._start, self._cancel = start, cancel
        self._items: asyncio.Queue[Item | None] = asyncio.Queue()
        self._given_up = threading.Event()  # the job's own, from before there is a job
        self._job: AnswerJob | None = None
        self._over = False

    async def __anext__(self) -> str:
        """Wait for the next chunk; errors of the request are raised here."""
        while not self._over:
            job = self._job or await self._begin()
            item = await self._next_item(job)
            if item is None:
                self._over = True
                self.result = job.future.result()
            elif isinstance(item, Verdict):
                self.verdict = item
            else:
                return item
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading; safe to call twice, and after the end."""
        self._close()

    async def __aenter__(self) -> AsyncGuardStream:
        """Return the stream itself."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close the stream."""
        self._close()

    def __del__(self) -> None:
        """An abandoned stream ends its request."""
        if not self._over:
            self._given_up.set()

    def _close(self) -> None:
        over, self._over = self._over, True
        if not over:
            self._given_up.set()
            if self._job is not None:
                self._cancel(self._job)

    async def _begin(self) -> AnswerJob:
        put = _sender(asyncio.get_running_loop(), self._items)
        job = self._job = await self._start(put, self._given_up)
        job.future.add_done_callback(lambda _: put(None))
        return job

    async def _next_item(self, job: AnswerJob) -> Item | None:
        try:
            async with asyncio.timeout(job.caller.left_s()):
                return await self._items.get()
        except TimeoutError:
            self._close()
            raise RequestTimeoutError(LATE) from None
        except BaseException:  # cancelled tasks too: nobody reads the rest
            self._close()
            raise


def _sender(
    loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Item | None]
) -> Callable[[Item | None], None]:
    """Puts items from another thread; to a loop that is gone, nobody reads them any more."""

    def put(item: Item | None) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(items.put_nowait, item)

    return put
