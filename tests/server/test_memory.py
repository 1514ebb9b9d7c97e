"""Nothing of a request is kept once it is answered."""

from __future__ import annotations

import gc
import sys
import urllib.parse
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from guardrail.audit import AuditLog
from guardrail.server import create_app
from guardrail.server.observing import Observation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WARM, MEASURED = 100, 200  # requests
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def clear_names() -> None:
    """Empty the interpreter's cache of the last 4,096 attribute names looked up.

    It holds names made for one look-up, such as f"output_{kind}", and fills for the first hundreds
    of requests.
    """
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    clear()


async def ask(http: httpx.AsyncClient, number: int) -> None:
    """One of five kinds of request, with words and an id of its own."""
    said = [{"role": "user", "content": f"tell me about number {number}"}]
    body = {"model": "guarded", "messages": said, "max_tokens": 2}
    wrong = f'{{"number": {number}'.encode()
    named = {"x-request-id": f"ask-{number}"}
    kinds: list[tuple[str, dict[str, Any], int]] = [
        (CHAT, {"json": body}, 200),
        (CHAT, {"json": body | {"stream": True}}, 200),
        ("/v1/checks", {"json": {"messages": said}}, 200),
        (CHAT, {"content": wrong, "headers": JSON | named}, 400),
        (f"/nothing/{number}", {"json": {}}, 404),
    ]
    path, options, status = kinds[number % len(kinds)]
    response = await http.post(path, **({"headers": named} | options))
    assert response.status_code == status, response.text


@pytest.mark.parametrize("leaks", [False, True])
async def test_no_object_is_left_of_an_answered_request(
    guard_of: Callable[..., Any], tmp_path: Path, leaks: bool
) -> None:
    kept: list[str] = []
    with AuditLog(tmp_path / "audit.jsonl") as log:
        seen = Observation(audit_log=log)
        app = create_app(guard_of(audit=log), observation=seen)
        monitor = app.state.service.guard.monitor

        def blocks() -> int:
            monitor.restart()  # scores are counted in up to 2,000 cells
            urllib.parse.clear_cache()  # the client's addresses
            clear_names()
            gc.collect()
            return sys.getallocatedblocks()

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            for number in range(WARM + MEASURED):
                if number == WARM:
                    before = blocks()
                await ask(http, number)
                if leaks:
                    kept.append(f"kept of {number}")
            grown = (blocks() - before) / MEASURED
    assert (grown > 0.5) is leaks
