from __future__ import annotations

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware

from guardrail.asgi.routes import GuardedRoute, RouteTable
from guardrail.errors import ConfigurationError


def rooted(root):
    app = FastAPI()
    app.root_path = root  # as FastAPI(root_path=...) has it
    return app


def found(route, path, method="POST", root_path="", app=None):
    scope = {"type": "http", "path": path, "method": method, "root_path": root_path}
    return RouteTable([route]).find(scope, app) is not None


@pytest.mark.parametrize(
    ("pattern", "path", "wanted"),
    [
        ("/chat", "/chat", True),
        ("/chat", "/chats", False),
        ("/chat", "/v1/chat", False),
        ("/users/{name}/chat", "/users/ann/chat", True),
        ("/users/{name}/chat", "/users/ann/b/chat", False),
        ("/users/{number:int}", "/users/ann", False),
        ("/v1/{rest:path}", "/v1/chat/completions", True),
        ("/v1/{rest:path}", "/v1/", True),
        ("/", "/", True),
        ("/", "/chat", False),
    ],
)
def test_a_path_is_matched_as_starlette_does(pattern, path, wanted):
    assert found(pattern, path) is wanted


@pytest.mark.parametrize("path", ["/v1/chat/", "/v1//chat", "//v1/chat", "/v1/chat//", "/v1/chat"])
@pytest.mark.parametrize("pattern", ["/v1/chat", "/v1/chat/"])
def test_slashes_that_a_framework_may_ignore_do_not_lead_round_the_guard(pattern, path):
    assert found(pattern, path)


@pytest.mark.parametrize("method", ["POST", "post", "PUT", "GET", "HEAD", "DELETE", "QUERY", "FOO"])
def test_every_method_is_guarded_by_default(method):
    assert found("/chat", "/chat", method)


def test_methods_can_be_chosen():
    route = GuardedRoute("/chat", methods=["query", "GET"])
    assert [found(route, "/chat", m) for m in ("QUERY", "GET", "POST")] == [True, True, False]
    assert not found(GuardedRoute("/chat", methods=["POST"]), "/chat", "GET")


@pytest.mark.parametrize(
    ("path", "root_path", "wanted"),
    [
        ("/api/chat", "/api", True),
        ("/chat", "/api", True),  # a proxy took the prefix away
        ("/api/chat", "", False),
        ("/apichat", "/api", False),
        ("/api//chat/", "/api/", True),
    ],
)
def test_a_pattern_begins_below_the_root_path(path, root_path, wanted):
    assert found("/chat", path, root_path=root_path) is wanted


@pytest.mark.parametrize("root", ["/api", "/api/"])
@pytest.mark.parametrize(
    ("path", "wanted"),
    [("/api/chat", True), ("/chat", True), ("/api//chat/", True), ("/apichat", False)],
)
def test_an_apps_own_root_path_counts_though_only_the_app_sets_it(root, path, wanted):
    app = rooted(root)
    assert found("/chat", path, app=app) is wanted
    assert found("/chat", path, app=CORSMiddleware(app)) is wanted
    assert not found("/chat", "/api/chat", app=Starlette())
    assert found("/chat", "/x/chat", root_path="/x", app=app)  # the server's may hold all the same


def test_an_apps_own_root_path_decides_which_route_fits():
    every, chat = GuardedRoute("/api/{rest:path}"), GuardedRoute("/chat")
    scope = {"type": "http", "path": "/api/chat", "method": "POST"}
    assert RouteTable([every, chat]).find(scope, rooted("/api")) is chat
    assert RouteTable([every, chat]).find(scope, FastAPI()) is every


def test_an_app_that_has_every_attribute_has_no_root_path():
    class Anything:
        def __getattr__(self, name):
            return self

    assert found("/chat", "/chat", app=Anything())
    assert not found("/chat", "/api/chat", app=Anything())


def test_the_first_route_that_fits_is_used():
    first, second = GuardedRoute("/a/{x}"), GuardedRoute("/a/b")
    scope = {"type": "http", "path": "/a/b", "method": "POST"}
    assert RouteTable([first, second]).find(scope, None) is first


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RouteTable([]), "at least one"),
        (lambda: RouteTable("/chat"), "at least one"),
        (lambda: RouteTable(["chat"]), "must start with '/'"),
        (lambda: RouteTable(["/{x:nothing}"]), "nothing"),
        (lambda: RouteTable(["/{x}/{x}"]), "Duplicated"),
        (lambda: GuardedRoute("/chat", methods="POST"), r"\['POST'\]"),
        (lambda: GuardedRoute("/chat", fields="prompt"), r"\['prompt'\]"),
        (lambda: GuardedRoute("/chat", methods=[]), "checks nothing"),
        (lambda: GuardedRoute("/chat", fields=[]), "checks nothing"),
        (lambda: GuardedRoute("/chat", select=print, fields=["a"]), "leave out"),
        (lambda: GuardedRoute("/chat", select=print, unchecked=["a"]), "leave out"),
    ],
)
def test_routes_that_would_not_guard_are_refused(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
