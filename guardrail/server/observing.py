"""What one server knows of itself: counts, spans, drift; fed by its guard and its middlewares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from guardrail import __version__
from guardrail.audit import fan_out
from guardrail.errors import ConfigurationError
from guardrail.observe.http import MetricsMiddleware
from guardrail.observe.metrics import Metrics
from guardrail.observe.recent import Recent
from guardrail.observe.scraped import Scraped, State
from guardrail.server.drift_state import DriftState
from guardrail.server.near_duplicates import NearDuplicates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.sdk.trace import TracerProvider

    from guardrail.audit import AuditLog
    from guardrail.server.service import Service
    from guardrail.types import Verdict


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
    ) -> None:
        """Observe from now on.

        Args:
            model: as clients name it.
            audit_log: whose lost lines are counted; it is told of verdicts by its guard.
            traces: what makes spans, such as `guardrail.observe.exporting.tracer_provider()`.
        """
        self.metrics, self.recent, self.drift = Metrics(), Recent(), DriftState()
        self.near_duplicates = NearDuplicates()
        self._audit_log, self._traces = audit_log, traces
        self._service: Service | None = None
        self._outer = [Middleware(MetricsMiddleware, metrics=self.metrics)]
        self._inner: list[Middleware] = []
        self._sink: Any = fan_out(self.metrics, self.recent)
        if traces is not None:
            self._add_spans(traces, model)

    def _add_spans(self, traces: TracerProvider, model: str) -> None:
        from guardrail.observe.spans import NamedSpanMiddleware, SpanMiddleware
        from guardrail.observe.tracing import Tracing

        tracer = traces.get_tracer("guardrail", __version__)
        tracing = Tracing(tracer, model=model)
        self._sink = fan_out(self.metrics, self.recent, tracing)
        self._outer.append(Middleware(SpanMiddleware, tracing=tracing))
        self._inner.append(Middleware(NamedSpanMiddleware, tracing=tracing))

    def __call__(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """One record of the server's guard; the form of an `audit`."""
        self._sink(verdict, facts)

    def around(self, middlewares: list[Middleware], *, outside_of: object) -> list[Middleware]:
        """An app's middlewares with those of the observation; what they refuse is counted, too.

        Ids and clients must be known outside of the middleware `outside_of`.
        """
        place = next(i for i, one in enumerate(middlewares) if one.cls is outside_of)
        return [*self._outer, *middlewares[:place], *self._inner, *middlewares[place:]]

    def watch(self, service: Service) -> None:
        """Read the queue, the artefact in force and the drift of this service at each scrape.

        Of several apps made with one observation, the last one is read; counts are of all.
        """
        if self._service is None:
            Scraped(self._state, self.metrics.registry)
        self._service = service

    def close(self) -> None:
        """Send the spans that wait, for some seconds at most."""
        if self._traces is not None:
            self._traces.shutdown()

    @property
    def audit_dropped(self) -> int:
        """Audit lines that could not be written."""
        return 0 if self._audit_log is None else self._audit_log.dropped

    def _state(self) -> State:
        service = self._service
        if service is None:
            raise ConfigurationError("an observation is scraped once it watches a service")
        guard = service.guard  # one of them, even if another one takes its place meanwhile
        load, drift = guard.load, self.drift.of(guard)
        info = {
            "version": __version__,
            "artefact_id": guard.artefact.artefact_id,
            "model": service.settings.model_name,
            "mode": guard.policy.mode,
        }
        return State(
            info=info,
            waiting=load.waiting,
            running=load.running,
            places=load.places,
            thresholds={
                (str(modality), action): getattr(levels, action)
                for modality, levels in guard.thresholds.items()
                for action in ("steer", "flag")
            },
            drift={
                str(row.modality): (row.finding == "alarm", row.psi)
                for row in drift.modalities
                if row.psi is not None
            },
            audit_dropped=self.audit_dropped,
            sink_failures=getattr(self._sink, "failures", 0),
        )
