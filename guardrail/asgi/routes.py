"""Which requests are guarded, and how their bodies are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from starlette.routing import Match, Route

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import Scope

Select = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class GuardedRoute:
    """A path of the app whose requests are checked.

    Args:
        path: a pattern as in Starlette's routes: "/chat", "/users/{name}/chat", "/v1/{rest:path}".
            It is matched below the `root_path` of the app that the middleware is added to, with
            and without repeated and trailing slashes.
        methods: the methods that are checked.
        select: `select(scope, body)` makes what is checked of other bodies than the usual ones; may
            be asynchronous. `body` is the parsed JSON, or the form as Starlette's `FormData`; what
            it gives is a str, a picture or messages.
        fields: the form fields that are checked, in this order, as one user message; others reach
            the app unread. Without it all are: name them where the app reads only some, or a
            sender can fill the others with harmless words.
        unchecked: keys of JSON bodies that the app does not show to its model. The settings of the
            OpenAI API are known; any other key with text in it is refused.
    """

    path: str
    _: KW_ONLY
    methods: Collection[str] = ("POST", "PUT", "PATCH")
    select: Select | None = None
    fields: Sequence[str] | None = None
    unchecked: Collection[str] = ()

    def __post_init__(self) -> None:
        """Refuse what would check nothing, or something else than was meant."""
        for names in (self.methods, self.fields, self.unchecked):
            if isinstance(names, str):
                raise ConfigurationError(f"{names!r} must be in a list: [{names!r}]")
        if self.select is not None and (self.fields is not None or self.unchecked):
            raise ConfigurationError("select reads the whole body; leave out fields and unchecked")
        if not self.methods or (self.fields is not None and not self.fields):
            raise ConfigurationError(f"{self.path!r} checks nothing: it has no methods or fields")


class RouteTable:
    """Finds the guarded route that a request is for."""

    def __init__(self, routes: Collection[GuardedRoute | str]) -> None:
        if isinstance(routes, str) or not routes:
            raise ConfigurationError("routes= lists the paths that are guarded; give at least one")
        made = [GuardedRoute(route) if isinstance(route, str) else route for route in routes]
        self._entries = [(route, _compiled(route)) for route in made]

    def find(self, scope: Scope) -> GuardedRoute | None:
        """The first guarded route that fits; None for requests that are not checked.

        Some frameworks ignore repeated and trailing slashes, so a path fits with and without them.
        """
        seen = {"type": "http", "root_path": scope.get("root_path", "")}
        seen |= {"path": scope["path"], "method": scope["method"].upper()}
        plain = {**seen, "path": _plain(scope["path"]), "root_path": _plain(seen["root_path"], "")}
        for route, patterns in self._entries:
            for pattern in patterns:
                if Match.FULL in (pattern.matches(seen)[0], pattern.matches(plain)[0]):
                    return route
        return None


def _compiled(route: GuardedRoute) -> list[Route]:
    if not route.path.startswith("/"):
        raise ConfigurationError(f"the path {route.path!r} must start with '/'")
    try:
        return [
            Route(path, _no_endpoint, methods=list(route.methods))
            for path in sorted({route.path, _plain(route.path)})
        ]
    except (AssertionError, ValueError) as error:  # how Starlette refuses a pattern
        raise ConfigurationError(f"the path {route.path!r} cannot be used: {error}") from error


def _plain(path: str, root: str = "/") -> str:
    return re.sub("/{2,}", "/", path).rstrip("/") or root


def _no_endpoint(_: object) -> None:
    """Routes need one; these are only asked whether they match."""
