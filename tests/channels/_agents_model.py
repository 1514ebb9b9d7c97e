"""The SDK's own model of the Responses API, before a provider that keeps what it is sent."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
from agents import OpenAIResponsesModel, set_tracing_disabled
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wire(OpenAIResponsesModel):
    """Answers from a script: a text, or the name of a tool and its arguments; then it says "fine".

    `sent` is all that the provider gets: addresses, headers and bodies.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps, self.sent = list(steps), list[Any]()
        web = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        super().__init__("gpt-4.1", AsyncOpenAI(api_key="k", http_client=web, max_retries=0))

    @property
    def asked(self) -> int:
        """How often it was asked."""
        return len(self.sent)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.sent.append((str(request.url.params), dict(request.headers), body))
        step = self.steps.pop(0) if self.steps else "fine"
        answer: dict[str, Any]
        if isinstance(step, tuple):
            label = f"c{len(self.sent)}"
            about = {"type": "function_call", "id": f"f{label}", "call_id": label}
            answer = {**about, "name": step[0], "arguments": step[1], "status": "completed"}
        else:
            part = {"type": "output_text", "text": step, "annotations": []}
            about = {"id": "m1", "type": "message", "role": "assistant", "status": "completed"}
            answer = {**about, "content": [part]}
        response = {
            "id": "r1",
            "created_at": 0,
            "model": "gpt-4.1",
            "object": "response",
            "output": [answer],
            "tool_choice": "auto",
            "tools": [],
            "parallel_tool_calls": False,
        }
        if not body.get("stream"):
            return httpx.Response(200, json=response)
        done = {"type": "response.completed", "sequence_number": 0, "response": response}
        head = {"content-type": "text/event-stream"}
        return httpx.Response(
            200, headers=head, text=f"event: response.completed\ndata: {json.dumps(done)}\n\n"
        )


@contextmanager
def untraced() -> Iterator[None]:
    """The SDK, sending nothing anywhere."""
    set_tracing_disabled(True)
    try:
        yield
    finally:
        set_tracing_disabled(False)
