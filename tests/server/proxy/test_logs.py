"""Neither keys nor prompts are in any log, whatever the level and whoever writes it."""

from __future__ import annotations

import logging

import pytest

KEY, PROMPT, SAID = "sk-very-secret", "xylophone", "marimba"
PATH = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("number", [200, 400, 401, 500, 503])
async def test_logs_hold_no_secret_and_no_word(proxy_of, upstream, wire, caplog, stream, number):
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "asyncio", "guardrail"):
        caplog.set_level(logging.DEBUG, name)
    upstream.says({"error": {"message": f"{SAID} {PROMPT} {KEY}"}}, number, retry_after="0")
    proxy = proxy_of(key=KEY, retries=1)
    for text in (PROMPT, f"odd {PROMPT}", f"bad {PROMPT}", f"crash {PROMPT}"):
        body = wire.saying(text, stream=stream, user=PROMPT)
        await proxy.post(PATH, json=body, headers={"authorization": f"Bearer {KEY}-client"})
    upstream.bytes(b"{" + KEY.encode() + PROMPT.encode())
    await proxy.post(PATH, json=wire.saying(PROMPT))
    told = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "httpcore" in told  # they were listened to
    assert KEY not in told
    assert PROMPT not in told
    assert SAID not in told
