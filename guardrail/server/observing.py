"""What one server knows of itself: counts, spans, drift and near duplicates; fed by its guard."""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY

from guardrail import __version__
from guardrail.audit import fan_out
from guardrail.inputs.parts import strings_in
from guardrail.monitor import compare
from guardrail.observe.metrics import Metrics, Scraped
from guardrail.observe.recent import Recent

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import TracerProvider

    from guardrail.audit import AuditLog
    from guardrail.guard import Guard
    from guardrail.monitor import Comparison, Monitor
    from guardrail.observe.metrics import State
    from guardrail.observe.tracing import Tracing
    from guardrail.server.settings import Engine
    from guardrail.types import Verdict

_ASKING = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)

EVERY_S = 30.0  # seconds that a comparison of the drift is good for

# of requests that are nearly the same
_CLIENTS, _REQUESTS = 1024, 32  # remembered at most: clients, and of each the last requests
_CHARS = 2_000  # at either end of a text; between them nothing is compared
_PIECE = 5  # characters
_HASHES = 32  # the smallest of a text's; their share in common is about that of all pieces
_ALIKE = 0.5
_SAMPLES = 4_096  # characters of each end and of the rest of a picture's data
_NOT_SAID = frozenset({"role", "type", "id", "detail"})


class Observation:
    """Counts of one server, and its spans where they are asked for. A server's guard tells it all.

    Close it at the end: spans that wait are sent then.
    """

    def __init__(
        self,
        *,
        model: str = "guarded",
        audit_log: AuditLog | None = None,
        traces: TracerProvider | None = None,
        engine: Engine = "transformers",
    ) -> None:
        """Observe from now on.

        Args:
            model: as clients name it.
            audit_log: whose lost lines are counted; it is told of verdicts by its guard.
            traces: what makes spans, such as `guardrail.observe.tracing.tracer_provider()`.
            engine: who runs the model; vLLM has metrics, beside which these are told.
        """
        self.metrics, self.recent, self.drift = (
            Metrics(REGISTRY if engine == "vllm" else None),
            Recent(),
            DriftState(),
        )
        self.near_duplicates = NearDuplicates()
        self._audit_log, self._traces = audit_log, traces
        self._scraped: Scraped | None = None
        self.tracing = None if traces is None else _tracing(traces, model)
        self._sink: Any = fan_out(self.metrics, self.recent, self.tracing)

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """One record of the server's guard; the form of an `audit`."""
        self._sink(verdict, facts)

    def watch(self, state: Callable[[], State]) -> None:
        """Read a server's queue, artefact in force and drift at each scrape.

        Of several apps made with one observation, the last one is read; counts are of all.
        """
        if self._scraped is None:
            self._scraped = Scraped(state, self.metrics.own)
        self._scraped.state = state

    def close(self) -> None:
        """Send the spans that wait, for some seconds at most; counts are then told here alone."""
        self.metrics.close()
        if self._traces is not None:
            self._traces.shutdown()

    @property
    def audit_dropped(self) -> int:
        """Audit lines that could not be written."""
        return 0 if self._audit_log is None else self._audit_log.dropped

    @property
    def sink_failures(self) -> int:
        """Records that a sink failed on."""
        return int(getattr(self._sink, "failures", 0))


def spans_asked_for(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names a place for spans, and does not switch them off."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return environ.get("OTEL_TRACES_EXPORTER") != "none" and any(map(environ.get, _ASKING))


def _tracing(traces: TracerProvider, model: str) -> Tracing:
    from guardrail.observe.tracing import Tracing

    return Tracing(traces.get_tracer("guardrail", __version__), model=model)


class DriftState:
    """The comparison of a guard's counts, at most `every_s` old; safe between threads."""

    def __init__(
        self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s, self._clock, self._lock = every_s, clock, threading.Lock()
        self._known: tuple[Monitor, float, Comparison] | None = None

    def of(self, guard: Guard) -> Comparison:
        """The comparison for this guard; another one's is never given out for it."""
        monitor, now = guard.monitor, self._clock()
        with self._lock:
            if self._known is not None:
                whose, when, comparison = self._known
                if whose is monitor and now - when < self._every_s:
                    return comparison
            comparison = compare(monitor.snapshot(), guard.artefact)
            self._known = (monitor, now, comparison)
            return comparison


@dataclass(frozen=True, slots=True)
class _Signature:
    pieces: frozenset[int]
    media: frozenset[int]

    def is_near(self, other: _Signature) -> bool:
        if self.media != other.media:
            return False
        both, either = self.pieces & other.pieces, self.pieces | other.pieces
        wanted = _ALIKE * min(_HASHES, len(either))
        if len(both) < wanted:  # the usual case, and quick
            return False
        return sum(each in both for each in heapq.nsmallest(_HASHES, either)) >= wanted


class NearDuplicates:
    """Requests of one client that are nearly the same: so looks a search for one that passes.

    Kept of a client's last requests are hashes of pieces of their texts, never a text. The hashes
    are those of this process, so nobody can make texts for them. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str | None, deque[_Signature]] = OrderedDict()

    def seen(self, client: str | None, value: object) -> bool:
        """Whether this client lately asked nearly the same; it is remembered from now on.

        Compared are what the user said last, and its pictures and videos, which must be the same:
        a chat that goes on is no duplicate, nor is one question about many pictures.
        """
        signature = _signature(_newest(value))
        if not (signature.pieces or signature.media):
            return False
        last = self._last.setdefault(client, deque(maxlen=_REQUESTS))
        self._last.move_to_end(client)
        if len(self._last) > _CLIENTS:
            self._last.popitem(last=False)
        near = any(signature.is_near(other) for other in last)
        last.append(signature)
        return near


def _newest(value: object) -> object:
    """The last message of a user's in a chat; anything else as it is."""
    if not isinstance(value, list):
        return value
    users = [each for each in value if isinstance(each, Mapping) and each.get("role") == "user"]
    return users[-1] if users else value[-1:]


def _signature(value: object) -> _Signature:
    said = [*strings_in(value, leave_out=_NOT_SAID)]
    text = "\n".join(text for text, media in said if not media)
    if len(text) > 2 * _CHARS:
        text = text[:_CHARS] + text[-_CHARS:]
    text = " ".join(text.casefold().split())
    pieces = {hash(text[i : i + _PIECE]) for i in range(max(len(text) - _PIECE + 1, 1))}
    return _Signature(
        frozenset(heapq.nsmallest(_HASHES, pieces if text else ())),
        frozenset(_digest(data) for data, media in said if media),
    )


def _digest(data: str) -> int:
    """A hash of a picture's data, of which a part is enough: it is compressed."""
    step = max(len(data) // _SAMPLES, 1)
    return hash((len(data), data[:_SAMPLES], data[-_SAMPLES:], data[::step]))
