"""The metrics of all replicas in one answer: whichever replica is asked, it tells of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from guardrail.observe.metrics import PRIVATE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

LABEL = "replica"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_router(texts: Callable[[], Awaitable[Mapping[str, str]]]) -> APIRouter:
    """`GET /metrics` over what `texts` has by replica; it stands before the app's own route."""
    router = APIRouter()

    @router.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        private = request.state.caller.sees_scores
        told = merged(await texts(), hidden=frozenset() if private else PRIVATE)
        return Response(told, headers={"Content-Type": _MEDIA_TYPE, "Cache-Control": "no-store"})

    return router


def merged(texts: Mapping[str, str], *, hidden: Collection[str] = ()) -> bytes:
    """Several expositions in Prometheus' text form as one, with the replica as a label."""
    families: dict[str, Metric] = {}
    for replica, text in sorted(texts.items()):
        for found in text_string_to_metric_families(text):
            if found.name in hidden:
                continue
            family = families.setdefault(
                found.name, Metric(found.name, found.documentation, found.type)
            )
            family.samples += [
                sample._replace(labels={**sample.labels, LABEL: replica})
                for sample in found.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Fixed(families.values()))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
