"""Spans of requests, checks and answers for OpenTelemetry; no prompt, no answer, no key in them.

A request's span is made where it is served, and a check's where the model runs, on a thread of its
own. What ties them is the request's id, never a thread's context, so requests cannot mix.

Of the names, those that are stable in the semantic conventions (1.44) are `http.*`, `url.scheme`
and `error.type`. Provisional are all `gen_ai.*`: they left the general conventions for a repository
of their own and are in development there; as installed beside 1.44 they are marked as moved. They
may change with a release of this package. `guardrail.*` are our own and change with this package
alone: names for guardrails (`apply_guardrail`, later `run_guardrail` and `gen_ai.security.finding`)
were proposed there and have not been taken up. A verdict is told by what has been, the event
`gen_ai.evaluation.result`, and only a span that stands for a generation is a `gen_ai` operation.

Where spans go is said by OpenTelemetry's own environment variables.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError, MissingExtraError

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    # An installed package that misses one of its own dependencies is another problem.
    if not (error.name or "").startswith("opentelemetry"):
        raise
    raise MissingExtraError(error.name or "opentelemetry", extra="otel") from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from guardrail.types import Verdict


# stable
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_SCHEME = "url.scheme"
ERROR_TYPE = "error.type"

# provisional
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE = "gen_ai.evaluation.score.value"
EVALUATION_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"

# our own
CHECK_SPAN = "guardrail.check"
REQUEST_ID = "guardrail.request_id"
CLIENT = "guardrail.client"
ACTION = "guardrail.action"
WOULD_BE = "guardrail.would_be"
MODALITY = "guardrail.modality"
REASON = "guardrail.reason"
MODE = "guardrail.mode"
ARTEFACT = "guardrail.artefact_id"
WHERE = "guardrail.where."
QUEUE_S = "guardrail.queue_s"

# values
CHAT = "chat"
PROVIDER_VALUE = "guardrail-vlm"
EVALUATION = "guardrail.refusal_direction"

LAST_S = 5.0  # for the spans that wait at the end
_GIVE_UP_S = 1.0
_MOST = 10_000  # requests remembered; an answer may end a moment after its request's span
_EXPORTERS = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
_EXTRACT = TraceContextTextMapPropagator().extract  # no baggage: nothing of it is wanted here

_log = logging.getLogger(__name__)


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
            {HTTP_METHOD: method, URL_SCHEME: scheme},
        )

    def known_as(self, span: Span, request_id: str, client: str | None) -> None:
        """Tell which request a span is of; checks and answers with this id become its children.

        Clients may choose ids: of two requests at once with the same one neither gets children,
        whose spans then are traces of their own.
        """
        span.set_attribute(REQUEST_ID, request_id)
        if client is not None:
            span.set_attribute(CLIENT, client)
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
        span.set_attributes({HTTP_ROUTE: route, HTTP_STATUS: status})
        error = str(status) if status >= 500 else failed
        if error is not None:
            span.set_attribute(ERROR_TYPE, error)
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
        found: dict[str, AttributeValue] = {REQUEST_MODEL: self._model}
        if isinstance(queue_s := facts.get("queue_s"), float):
            found[QUEUE_S] = queue_s
        if verdict is not None:
            found |= _told(verdict)
        span, end = self._past(CHECK_SPAN, facts, facts.get("verdict_s"), found)
        span.add_event(EVALUATION_EVENT, _evaluation(verdict), end)
        if verdict is None or verdict.reason == "detector_failed":
            span.set_attribute(ERROR_TYPE, "detector_failed")
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def _answered(self, facts: Mapping[str, object]) -> None:
        found: dict[str, AttributeValue] = {
            OPERATION: CHAT,
            PROVIDER: PROVIDER_VALUE,
            REQUEST_MODEL: self._model,
        }
        for name, key in (("prompt_tokens", INPUT_TOKENS),
                          ("completion_tokens", OUTPUT_TOKENS)):  # fmt: skip
            if isinstance(count := facts.get(name), int):
                found[key] = count
        if isinstance(finish := facts.get("finish_reason"), str):
            found[FINISH_REASONS] = (finish,)
        span, end = self._past(f"{CHAT} {self._model}", facts, facts.get("total_s"), found)
        if finish == "error":
            span.set_attribute(ERROR_TYPE, "model_failed")
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
        attributes[REQUEST_ID] = request_id
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
    found: dict[str, AttributeValue] = {
        ACTION: str(verdict.action),
        WOULD_BE: str(verdict.would_be),
        MODALITY: str(verdict.modality),
        REASON: verdict.reason,
        MODE: verdict.mode,
        ARTEFACT: verdict.artefact_id,
    }
    if verdict.where is not None:
        where = verdict.where.to_dict(words=False).items()
        found |= {WHERE + name: value for name, value in where if isinstance(value, int | str)}
    return found


def _evaluation(verdict: Verdict | None) -> dict[str, AttributeValue]:
    """The evaluation's attributes; its explanation is of scores and thresholds."""
    found: dict[str, AttributeValue] = {EVALUATION_NAME: EVALUATION}
    if verdict is None:
        return {**found, EVALUATION_LABEL: "outage"}
    if verdict.score is not None:
        found[EVALUATION_SCORE] = verdict.score
    found[EVALUATION_LABEL] = str(verdict.would_be)
    found[EVALUATION_EXPLANATION] = verdict.summary()
    return found


def tracer_provider(version: str) -> TracerProvider:
    """What makes and sends spans (OTLP over HTTP, to localhost:4318 unless told otherwise).

    It is nobody else's: the process's global provider is left alone. Shut it down at the end.

    Raises:
        ConfigurationError: an exporter other than `otlp` and `console` is asked for.
    """
    told = {"service.version": version}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        told["service.name"] = "guardrail-vlm"
    name = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name not in _EXPORTERS:
        raise ConfigurationError(
            f"OTEL_TRACES_EXPORTER={name!r} is not known here; use otlp, console or none"
        )
    return BoundedProvider(_EXPORTERS[name](), Resource.create(told))


class BoundedProvider(TracerProvider):
    """Sends spans in batches from a thread of its own.

    The library's own shutdown tries for half a minute to reach a collector that is away, and a
    server that was told to end would be killed meanwhile.
    """

    def __init__(self, exporter: SpanExporter, resource: Resource, *, last_s: float = LAST_S):
        """Send spans to `exporter`; at the end for `last_s` seconds more."""
        super().__init__(resource=resource, shutdown_on_exit=False)
        self._exporter, self._last_s = exporter, last_s
        self.add_span_processor(BatchSpanProcessor(exporter))

    def shutdown(self) -> None:
        """Send what waits, for `last_s` seconds at most; the rest is lost, and the log says so."""
        ending = threading.Thread(target=super().shutdown, name="guardrail-spans", daemon=True)
        ending.start()
        ending.join(self._last_s)
        if ending.is_alive():
            _log.warning("the last spans could not be sent in %g s; they are lost", self._last_s)
            self._exporter.shutdown()  # ends its retries
            ending.join(_GIVE_UP_S)
