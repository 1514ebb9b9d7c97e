"""The name of a request's route: the template, never what a client wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping

OTHER = "other"


def route_of(scope: MutableMapping[str, Any]) -> str:
    """The template of the route that answers a request, `other` where there is none.

    What is refused before it reaches a route is named by the route it was meant for, if that one's
    template has no parameters.
    """
    template = getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        return template
    path = scope["path"]
    known = path in _templates(getattr(scope.get("app"), "routes", ()))
    return str(path) if known else OTHER


def _templates(routes: Iterable[object]) -> Iterator[str]:
    for route in routes:
        path = getattr(route, "path", None)
        if isinstance(path, str):
            yield path
        # FastAPI keeps a router that was included as one route
        yield from _templates(getattr(getattr(route, "original_router", None), "routes", ()))
