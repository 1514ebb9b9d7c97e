"""Spans of requests, checks and answers for OpenTelemetry; no prompt, no answer, no key in them.

A request's span is made where it is served, and a check's where the model runs, on a thread of its
own. What ties them is the request's id, never a thread's context, so requests cannot mix.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from guardrail.observe import names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from guardrail.types import Verdict

_MOST = 10_000  # requests remembered; an answer may end a moment after its request's span
_EXTRACT = TraceContextTextMapPropagator().extract  # no baggage: nothing of it is wanted here


class Tracing:
    """Makes spans from a server's requests and a guard's records; safe between threads."""

    def __init__(self, tracer: Tracer, *, model: str) -> None:
        self._tracer, self._model = tracer, model
        self._lock = threading.Lock()
        self._parents: OrderedDict[str, Context | None] = OrderedDict()
        self._under_way: Counter[str] = Counter()

    def begin(self, method: str, scheme: str, headers: Mapping[str, str]) -> Span:
        """The span of an HTTP request, below the caller's own where it sent a `traceparent`."""
        return self._tracer.start_span(
            method,
            _EXTRACT(headers),
            SpanKind.SERVER,
            {names.HTTP_METHOD: method, names.URL_SCHEME: scheme},
        )

    def known_as(self, span: Span, request_id: str, client: str | None) -> None:
        """Tell which request a span is of; checks and answers with this id become its children.

        Clients may choose ids: of two requests at once with the same one neither gets children,
        whose spans then are traces of their own.
        """
        span.set_attribute(names.REQUEST_ID, request_id)
        if client is not None:
            span.set_attribute(names.CLIENT, client)
        with self._lock:
            self._under_way[request_id] += 1
            alone = self._under_way[request_id] == 1
            self._parents[request_id] = trace.set_span_in_context(span) if alone else None
            self._parents.move_to_end(request_id)
            if len(self._parents) > _MOST:
                self._parents.popitem(last=False)

    def over(self, request_id: str) -> None:
        """The request was served; its last record may be on its way still."""
        with self._lock:
            self._under_way[request_id] -= 1
            if self._under_way[request_id] <= 0:
                del self._under_way[request_id]

    def end(
        self, span: Span, name: str, route: str, status: int, *, failed: str | None = None
    ) -> None:
        """End a request's span; `failed` is the kind of error that cut an answer short."""
        span.update_name(name)
        span.set_attributes({names.HTTP_ROUTE: route, names.HTTP_STATUS: status})
        error = str(status) if status >= 500 else failed
        if error is not None:
            span.set_attribute(names.ERROR_TYPE, error)
            span.set_status(StatusCode.ERROR)
        span.end()

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Make a span of one record; the form of an `audit`. Other events are let go."""
        match facts.get("event"):
            case "verdict" | "outage":
                self._checked(verdict, facts)
            case "answer":
                self._answered(facts)

    def _checked(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        found: dict[str, AttributeValue] = {names.REQUEST_MODEL: self._model}
        if isinstance(queue_s := facts.get("queue_s"), float):
            found[names.QUEUE_S] = queue_s
        if verdict is not None:
            found |= _told(verdict)
        span, end = self._past(names.CHECK_SPAN, facts, facts.get("verdict_s"), found)
        span.add_event(names.EVALUATION_EVENT, _evaluation(verdict), end)
        if verdict is None or verdict.reason == "detector_failed":
            span.set_attribute(names.ERROR_TYPE, "detector_failed")
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def _answered(self, facts: Mapping[str, object]) -> None:
        found: dict[str, AttributeValue] = {
            names.OPERATION: names.CHAT,
            names.PROVIDER: names.PROVIDER_VALUE,
            names.REQUEST_MODEL: self._model,
        }
        for name, key in (("prompt_tokens", names.INPUT_TOKENS),
                          ("completion_tokens", names.OUTPUT_TOKENS)):  # fmt: skip
            if isinstance(count := facts.get(name), int):
                found[key] = count
        if isinstance(finish := facts.get("finish_reason"), str):
            found[names.FINISH_REASONS] = (finish,)
        span, end = self._past(f"{names.CHAT} {self._model}", facts, facts.get("total_s"), found)
        if finish == "error":
            span.set_attribute(names.ERROR_TYPE, "model_failed")
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def _past(
        self,
        name: str,
        facts: Mapping[str, object],
        seconds: object,
        attributes: dict[str, AttributeValue],
    ) -> tuple[Span, int]:
        """A span that began `seconds` ago, and the time in ns at which it is to end: now."""
        request_id, now = str(facts.get("request_id")), time.time_ns()
        parent = self._parent(request_id)
        took = int(seconds * 1e9) if isinstance(seconds, int | float) else 0
        attributes[names.REQUEST_ID] = request_id
        # Without a parent an empty context: that of this thread is another request's, if any.
        context = parent if parent is not None else trace.set_span_in_context(trace.INVALID_SPAN)
        span = self._tracer.start_span(
            name, context, SpanKind.INTERNAL, attributes, start_time=now - took
        )
        return span, now

    def _parent(self, request_id: str) -> Context | None:
        """The span of a request, or of the one that it is an item of (`id-0`, `id-1`, ...)."""
        whole, _, number = request_id.rpartition("-")
        with self._lock:
            if request_id in self._parents or not number.isdecimal():
                return self._parents.get(request_id)
            return self._parents.get(whole)


def _told(verdict: Verdict) -> dict[str, AttributeValue]:
    return {
        names.ACTION: str(verdict.action),
        names.WOULD_BE: str(verdict.would_be),
        names.MODALITY: str(verdict.modality),
        names.REASON: verdict.reason,
        names.MODE: verdict.mode,
        names.ARTEFACT: verdict.artefact_id,
    }


def _evaluation(verdict: Verdict | None) -> dict[str, AttributeValue]:
    """The evaluation's attributes; its explanation is of scores and thresholds."""
    found: dict[str, AttributeValue] = {names.EVALUATION_NAME: names.EVALUATION}
    if verdict is None:
        return {**found, names.EVALUATION_LABEL: "outage"}
    if verdict.score is not None:
        found[names.EVALUATION_SCORE] = verdict.score
    found[names.EVALUATION_LABEL] = str(verdict.would_be)
    found[names.EVALUATION_EXPLANATION] = verdict.summary()
    return found
