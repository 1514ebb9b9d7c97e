"""From a value to a queued job; the long videos in it are judged on the way."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from guardrail.errors import QueueFullError, RequestCancelledError, RequestTimeoutError
from guardrail.model.jobs import Job
from guardrail.online.floors import Floor
from guardrail.online.scanning import LATE, Scan
from guardrail.online.video_places import VideoPlaces
from guardrail.requests.messages import Tools, to_request
from guardrail.requests.patience import patience

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from guardrail.online.engine import Engine
    from guardrail.types import Request

J = TypeVar("J", bound=Job[Any])

Begun: TypeAlias = J | Callable[[], J]
"""A queued job, or what takes long to become one: the caller says in which thread."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for a request: until when, and, in a list of requests, for a place too."""

    deadline: float | None
    cancelled: threading.Event
    wait: bool
    client: str | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def of_job(self) -> dict[str, Any]:
        """What the job is told of its caller."""
        names = ("deadline", "cancelled", "client", "request_id", "asked_at")
        return {name: getattr(self, name) for name in names}

    def still_waits(self) -> None:
        """Do nothing while the caller waits.

        Raises:
            RequestCancelledError: the caller gave up.
            RequestTimeoutError: the time is over.
        """
        if self.cancelled.is_set():
            raise RequestCancelledError("the request was given up while its video was read")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise RequestTimeoutError(LATE)


class Reading:
    """Reads values for one engine; as many long videos at once as may wait for the model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._places = VideoPlaces(engine.policy.limits.queue)

    def begin(
        self,
        value: Any,
        tools: Tools | None,
        caller: Caller,
        job: Callable[[Request, Floor], J],
    ) -> Begun[J]:
        """Queue the job for a value; with a long video, what is left to do until then.

        Raises:
            InputError: the value cannot be read, or the model cannot be shown it.
        """
        with patience(caller.still_waits):
            request = to_request(value, policy=self._engine.policy, tools=tools)
        self._engine.require_readable(request)
        if request.in_windows:
            return partial(self._through_videos, request, caller, job)
        return self._queued(job(request, Floor()), wait=caller.wait)

    def _through_videos(
        self, request: Request, caller: Caller, job: Callable[[Request, Floor], J]
    ) -> J:
        worker = self._engine.worker
        scan = Scan(
            self._engine,
            partial(worker.submit, wait=True),
            worker.cancel,
            deadline=caller.deadline,
            cancelled=caller.cancelled,
            client=caller.client,
            request_id=caller.request_id,
        )
        try:
            with self._place(caller), patience(caller.still_waits):
                shown, floor = scan.run(request)
        except RequestTimeoutError as late:
            raise RequestTimeoutError(
                f"{late}: its videos were still being judged; sample fewer frames (`video.fps` in "
                "the policy), or allow more time (`timeout`, `limits.timeout_s`)"
            ) from late
        return self._queued(job(shown, floor), wait=True)

    def _queued(self, job: J, *, wait: bool) -> J:
        self._engine.worker.submit(job, wait=wait)
        return job

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[None]:
        """One of the long videos that are judged at once; each takes memory of its own."""
        left = None if caller.deadline is None else max(caller.deadline - time.monotonic(), 0)
        if not self._places.take(caller.client, timeout=left if caller.wait else 0.0):
            if caller.wait:
                raise RequestTimeoutError(LATE)
            raise QueueFullError(
                f"too many long videos are judged: the policy allows {self._places.places} at "
                "once, and one client its share of them; try again later or raise `limits.queue`",
                retry_after_s=self._engine.worker.drain_s(),
            )
        try:
            yield
        finally:
            self._places.give_back(caller.client)


def finished(begun: Begun[J]) -> J:
    """The queued job, after all that was left to do, in this thread."""
    return begun if isinstance(begun, Job) else begun()


def in_own_thread(work: Callable[[], J]) -> Awaitable[J]:
    """Run what takes long beside the few threads that an event loop's users share."""
    future: Future[J] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # the border of the thread; the waiting task gets it
            future.set_exception(error)

    thread = threading.Thread(target=copy_context().run, args=(run,), name="guardrail-video")
    thread.daemon = True  # the interpreter's end does not wait for a video
    thread.start()
    return asyncio.wrap_future(future)
