"""From a value to a queued job; its pictures are decoded and its long videos judged on the way."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from guardrail.errors import QueueFullError, RequestCancelledError, RequestTimeoutError
from guardrail.model.jobs import Job
from guardrail.online.floors import Floor
from guardrail.online.places import Places
from guardrail.online.scanning import LATE, Scan
from guardrail.requests.messages import Draft, Tools, drafted
from guardrail.requests.patience import patience

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from guardrail.online.engine import Engine
    from guardrail.types import Request

J = TypeVar("J", bound=Job[Any])

Begun: TypeAlias = J | Callable[[], "Begun[J]"]
"""A queued job, or what takes long on the way to one: the caller says in which thread.

First the request's media are read, then its long videos are judged.
"""


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
            raise RequestCancelledError("the request was given up while it was read")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise RequestTimeoutError(LATE)


class Reading:
    """Reads values for one engine.

    As many requests as may wait for the model may have their media read at once, and as many more
    their long videos judged. Text waits for neither.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reads = Places(engine.policy.limits.queue)
        self._scans = Places(engine.policy.limits.queue)

    def begin(
        self,
        value: Any,
        tools: Tools | None,
        caller: Caller,
        job: Callable[[Request, Floor], J],
    ) -> Begun[J]:
        """Queue the job for a value; with pictures or videos, what is left to do until then.

        Raises:
            InputError: the value cannot be read, or the model cannot be shown it.
        """
        draft = drafted(value, policy=self._engine.policy, tools=tools)
        if draft.has_media:
            return partial(self._with_media, draft, caller, job)
        return self._queued(job(draft.request(), Floor()), wait=caller.wait)

    def _with_media(
        self, draft: Draft, caller: Caller, job: Callable[[Request, Floor], J]
    ) -> Begun[J]:
        with (
            self._place(self._reads, caller, "requests with pictures or videos are read"),
            patience(caller.still_waits),
        ):
            request = draft.request()
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
            with (
                self._place(self._scans, caller, "long videos are judged"),
                patience(caller.still_waits),
            ):
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
    def _place(self, places: Places, caller: Caller, doing: str) -> Iterator[None]:
        """One of a bounded number of places; what is read takes memory of its own."""
        left = None if caller.deadline is None else max(caller.deadline - time.monotonic(), 0)
        if not places.take(caller.client, timeout=left if caller.wait else 0.0):
            if caller.wait:
                raise RequestTimeoutError(LATE)
            raise QueueFullError(
                f"too many {doing}: the policy allows {places.places} at once, and one client its "
                "share of them; try again later or raise `limits.queue`",
                retry_after_s=self._engine.worker.drain_s(),
            )
        try:
            yield
        finally:
            places.give_back(caller.client)


def finished(begun: Begun[J]) -> J:
    """The queued job, after all that was left to do, in this thread."""
    while not isinstance(begun, Job):
        begun = begun()
    return begun
