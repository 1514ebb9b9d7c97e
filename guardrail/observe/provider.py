"""A provider of spans whose end takes a bounded time, whatever has become of the collector."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

LAST_S = 5.0  # for the spans that wait at the end
_GIVE_UP_S = 1.0

_log = logging.getLogger(__name__)


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
