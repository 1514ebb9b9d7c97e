"""Which requests are guarded, and how their bodies are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import Match, Route

from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import Scope

Select = Callable[[Any, Any], Any]

# Routes need an endpoint, and these are only asked whether they match. With a function in its place
# they would know no other method than GET by default.
_NO_ENDPOINT = Response()
_MAX_DEPTH = 32  # of apps inside apps; an object that has every attribute has no end


@dataclass(frozen=True, slots=True)
class GuardedRoute:
    """A path of the app whose requests are checked.

    Args:
        path: a pattern as in Starlette's routes: "/chat", "/users/{name}/chat", "/v1/{rest:path}".
            It is matched below the `root_path` of the app that the middleware is added to, with
            and without repeated and trailing slashes.
        methods: the methods that are checked. Default: all; where a body is not needed (GET, HEAD,
            OPTIONS, DELETE) a request without one, and without words in its address, passes.
        select: `select(scope, body)` makes what is checked of other bodies than the usual ones; may
            be asynchronous. `body` is the parsed JSON, or the form as Starlette's `FormData`; what
            it gives is a str, a picture or messages.
        fields: the form fields that are checked, in this order, as one user message; others reach
            the app unread. Without it all are: name them where the app reads only some, or a
            sender can fill the others with harmless words. The names of fields and files are
            checked where they are more than labels.
        unchecked: keys of JSON bodies that the app does not show to its model, whatever they hold.
            The settings of the OpenAI API are known, with their types; any other key is refused.
    """

    path: str
    _: KW_ONLY
    methods: Collection[str] | None = None
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
        if (self.methods is not None and not self.methods) or (
            self.fields is not None and not self.fields
        ):
            raise ConfigurationError(f"{self.path!r} checks nothing: it has no methods or fields")


class RouteTable:
    """Finds the guarded route that a request is for."""

    def __init__(self, routes: Collection[GuardedRoute | str]) -> None:
        if isinstance(routes, str) or not routes:
            raise ConfigurationError("routes= lists the paths that are guarded; give at least one")
        made = [GuardedRoute(route) if isinstance(route, str) else route for route in routes]
        self._entries = [(route, _compiled(route)) for route in made]

    def find(self, scope: Scope, app: object) -> GuardedRoute | None:
        """The first guarded route that fits; None for requests that are not checked.

        Some frameworks ignore repeated and trailing slashes, so a path fits with and without them.
        FastAPI's own `root_path` is set by the app itself, after a middleware that wraps it.
        """
        for root in (*_own_root(app), scope.get("root_path", "")):
            seen = {"type": "http", "method": scope["method"].upper()}
            for path, above in ((scope["path"], root), (_plain(scope["path"]), _plain(root, ""))):
                route = self._fitting({**seen, "path": path, "root_path": above})
                if route is not None:
                    return route
        return None

    def _fitting(self, scope: Scope) -> GuardedRoute | None:
        for route, patterns in self._entries:
            if any(pattern.matches(scope)[0] is Match.FULL for pattern in patterns):
                return route
        return None


def _compiled(route: GuardedRoute) -> list[Route]:
    if not route.path.startswith("/"):
        raise ConfigurationError(f"the path {route.path!r} must start with '/'")
    try:
        return [
            Route(path, _NO_ENDPOINT, methods=None if route.methods is None else [*route.methods])
            for path in sorted({route.path, _plain(route.path)})
        ]
    except (AssertionError, ValueError) as error:  # how Starlette refuses a pattern
        raise ConfigurationError(f"the path {route.path!r} cannot be used: {error}") from error


def _plain(path: str, root: str = "/") -> str:
    return re.sub("/{2,}", "/", path).rstrip("/") or root


def _own_root(app: object) -> list[str]:
    """The root path that the app, or one inside it, puts in place of the server's."""
    for _ in range(_MAX_DEPTH):
        if isinstance(root := getattr(app, "root_path", None), str) and root:
            return [root]
        app = getattr(app, "app", None)
    return []
