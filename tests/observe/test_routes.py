from __future__ import annotations

from types import SimpleNamespace as Simple

import pytest

from guardrail.observe.routes import route_of

APP = Simple(
    routes=[
        Simple(path="/plain"),
        Simple(path="/items/{name}"),
        Simple(original_router=Simple(routes=[Simple(path="/v1/inner")])),
        object(),
    ]
)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/plain", "/plain"),
        ("/v1/inner", "/v1/inner"),
        ("/items/zxqv", "other"),
        ("/items/{name}", "/items/{name}"),  # a client may write that; it is one value still
        ("/zxqv", "other"),
    ],
)
def test_what_no_route_answered_is_named_by_a_template_or_other(path, template):
    assert route_of({"path": path, "app": APP}) == template


def test_the_route_that_answered_names_the_request():
    scope = {"path": "/items/zxqv", "app": APP, "route": Simple(path="/items/{name}")}
    assert route_of(scope) == "/items/{name}"


def test_without_an_app_there_is_no_template():
    assert route_of({"path": "/plain"}) == "other"
