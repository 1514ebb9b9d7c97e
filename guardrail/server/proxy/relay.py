"""An upstream's stream on its way to the client: the verdict goes in, and a cut shows as a cut."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from guardrail.asgi.wire import DONE, FIELD, Event, EventTooLargeError, Splitter
from guardrail.asgi.wire import event as written
from guardrail.errors import GuardrailError
from guardrail.server.errors import told_as
from guardrail.server.proxy.failures import UpstreamProblem, broken, late
from guardrail.server.proxy.upstream import media_type
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    import httpx

    from guardrail.server.proxy.forms import Form
    from guardrail.server.proxy.upstream import Upstream
    from guardrail.server.watching import WatchedStream
    from guardrail.types import Verdict

_log = logging.getLogger(__name__)


class Relay:
    """One stream. It is closed where it cannot begin; later that is for whoever sends it.

    `verdict` is told as it is in the first event, and in the one that closes the answer. With a
    `watch` events are held until what they say was judged; `cut` gives what ends a stream then, and
    `tell` what may be told of a verdict.
    """

    def __init__(
        self,
        upstream: Upstream,
        response: httpx.Response,
        form: Form,
        verdict: dict[str, object] | None,
        *,
        usage: bool,
        deadline: float,
        request_id: str,
        watch: WatchedStream[Event] | None = None,
        tell: Callable[[Verdict | None], dict[str, object] | None] | None = None,
        cut: Callable[[Verdict, Mapping[str, Any]], list[bytes]] | None = None,
    ) -> None:
        self._upstream, self._response, self._form = upstream, response, form
        self._verdict, self._usage, self._deadline = verdict, usage, deadline
        self._request_id, self._watch, self._cut, self._tell = request_id, watch, cut, tell
        self._data: Mapping[str, Any] = {}  # of the latest event that has any
        self._over = False
        self._told = self._whole = self._failed = False
        self._events = self._whole_events()
        self._first: Event | None = None

    async def begin(self) -> None:
        """Wait for the first event, so that what fails before it has a status of its own.

        Raises:
            UpstreamProblem: it does not come, or it is none.
        """
        try:
            if media_type(self._response) != "text/event-stream":
                raise broken("it is no stream of events")
            self._first = await self._next()
            if self._first is None:
                raise broken("it ended before it began")
        except BaseException:  # a cancelled task among them
            await self.aclose()
            raise

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events for the client. What fails from here on is an event, and then nothing."""
        event, problem = self._first, None
        try:
            while event is not None:
                for passed in await self._passed(event):
                    yield passed
                if self._over:
                    return
                event = await self._next()
            for passed in await self._passed(None):
                yield passed
            if self._over:
                return
        except UpstreamProblem as error:
            problem = error
        if problem is None and not self._whole and not self._failed:
            problem = broken("it was cut")
        if problem is not None:
            about = {"request_id": self._request_id, "reason": problem.reason}
            _log.warning("a stream of the upstream's was not passed on whole", extra=about)
            yield written(problem.to_dict())

    async def aclose(self) -> None:
        """Close the connection that the answer comes by, if it is not read to its end."""
        await self._events.aclose()
        await self._response.aclose()

    async def _passed(self, event: Event | None) -> list[bytes]:
        """What of a stream may be told after this event; after None all that is left."""
        if self._watch is None:
            return [] if event is None else [self._written(event)]
        try:
            if event is None:
                passed = await self._watch.end()
            else:
                passed = await self._watch.take(event, self._form.spoken(event.data or {}))
        except GuardrailError as error:
            self._over = True
            return [written(told_as(error, "").to_dict())]
        if passed is not None:
            return [self._written(each) for each in passed]
        self._over = True
        verdict = self._watch.verdict
        return [] if self._cut is None or verdict is None else self._cut(verdict, self._data)

    async def _next(self) -> Event | None:
        """The next event; None after the last one."""
        if self._whole:
            return None
        try:
            async with asyncio.timeout_at(self._deadline):
                raw = await anext(self._events, None)
        except TimeoutError:
            raise late() from None
        if raw is None:
            return None
        try:
            event = Event(raw, self._upstream.clean_value)
        except ValueError:
            raise broken("an event of it cannot be read") from None
        self._whole = self._form.ends(event)
        if event.data is not None:
            self._data = event.data
            self._failed = self._failed or bool(event.data.get("error"))
        return event

    def _written(self, event: Event) -> bytes:
        """An event with the verdict where it belongs; in the last one with that of the answer."""
        if event.data is None:
            return event.raw
        closes = self._form.closes(event.data, self._usage)
        if self._told and not closes and FIELD not in event.data:  # an upstream may have its own
            return event.raw
        self._told = True
        found = None if self._watch is None else self._watch.verdict
        tells = closes and found is not None and found.action is Action.FLAG
        verdict = self._tell(found) if tells and self._tell is not None else self._verdict
        return event.with_field(FIELD, verdict)

    async def _whole_events(self) -> AsyncGenerator[bytes, None]:
        splitter = Splitter(self._upstream.settings.max_event_bytes)
        async with aclosing(self._upstream.chunks(self._response)) as chunks:
            try:
                async for chunk in chunks:
                    for raw in splitter.feed(chunk):
                        yield self._upstream.clean_bytes(raw)
            except EventTooLargeError:
                raise broken("an event of it is too large") from None
        last = splitter.rest()
        if last.strip() == DONE.strip():  # some end without the blank line
            yield DONE
