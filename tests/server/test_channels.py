"""Nothing that OpenAI's types can hold reaches a model or an app unjudged, whatever it holds."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from guardrail.errors import GuardrailViolation
from guardrail.testing import FakeGuard
from tests.channels import asgi, server
from tests.channels._bodies import RESPONSES, messages, words
from tests.channels._openai import ITEMS, PLACED, READ_ITEMS, REFUSED_ITEMS, Placed
from tests.channels.contract import OTHER, WORD, Refused, fields_of

TARGETS = {"own model": server.own, "proxy": server.proxied, "ASGI": asgi.sent}
SAID = words(WORD)
HOLDING: dict[str, Any] = {
    "a text": SAID,
    "an object": {"a": {"b": SAID}},
    "a key": {SAID: 1},
    "a list": [SAID],
    "a list of objects": [{"type": SAID, SAID: SAID}],
}


async def got(target: str, path: str, body: dict[str, Any], flagged: str = WORD) -> str:
    """What a model, an upstream or an app gets; nothing of what is flagged or refused."""
    sent: Any = TARGETS[target]
    request = {"json": body} if target == "ASGI" else {"body": body}
    try:
        found: str = await sent(FakeGuard([flagged]), path, **request)
    except (GuardrailViolation, Refused):
        return ""
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("placed", PLACED, ids=lambda placed: str(placed.known))
async def test_no_field_carries_words_past_the_guard(placed: Placed, target: str):
    for field in sorted(fields_of(placed.known.kind)):
        for what, held in HOLDING.items():
            body = placed.place({**placed.base, field: held})
            assert WORD not in await got(target, placed.path, body), (field, what)
    for what, held in HOLDING.items():
        body = placed.place({**placed.base, SAID: held})
        assert WORD not in await got(target, placed.path, body), ("a key of words", what)
    for empty in (None, "", [], {}):
        body = placed.place({**placed.base, SAID: empty})
        assert WORD not in await got(target, placed.path, body), ("an empty key", empty)


@pytest.mark.parametrize("placed", PLACED, ids=lambda placed: str(placed.known))
async def test_what_is_called_judged_is_seen_and_goes_on(placed: Placed):
    """Texts go on where a text is possible; the rest of what is judged has other forms."""
    for field in placed.known.judged.split():
        if isinstance(placed.base.get(field), str) and field not in ("url", "image_url"):
            body = placed.place({**placed.base, field: WORD})
            assert WORD in await got("ASGI", placed.path, body, OTHER), field


def test_each_kind_of_item_is_one_that_was_looked_at():
    assert {kind.__name__ for kind in ITEMS} <= READ_ITEMS | REFUSED_ITEMS


REFUSED = [kind for kind in ITEMS if kind.__name__ in REFUSED_ITEMS]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
async def test_an_item_that_is_not_read_is_refused(kind: Any, target: str):
    hints = typing.get_type_hints(kind)
    named = typing.get_args(hints["type"]) or ("item_reference",)
    labels = [each for each in named if isinstance(each, str)] or ["item_reference"]
    item = {"type": labels[0], **dict.fromkeys(hints.keys() - {"type", "role"}, "a")}
    sent: Any = TARGETS[target]
    body = messages(item, path=RESPONSES)
    with pytest.raises(Refused, match="has the type"):
        await sent(
            FakeGuard([OTHER]),
            RESPONSES,
            **({"json": body} if target == "ASGI" else {"body": body}),
        )
