"""Guard the routes of a FastAPI app that exists already, bodies and uploads alike.

make examples, or: python examples/05_fastapi_app.py
"""

from __future__ import annotations

import asyncio
import io
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, Form, Request, UploadFile
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, tiny_guard

from guardrail.asgi import GuardrailASGIMiddleware

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """Your model's endpoint; the verdict comes with the request."""
    verdict = request.state.guardrail_verdict
    return {"answer": f"({len(body['messages'])} message)", "guard": verdict.summary()}


@app.post("/describe")
async def describe(prompt: Annotated[str, Form()], image: UploadFile) -> dict[str, Any]:
    """An upload; what the guard read is what arrives here, byte for byte."""
    return {"answer": f"({prompt!r} about {len(await image.read())} bytes)"}


async def main() -> None:
    """Ask for something harmless and something harmful, in every form."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        for text in (HARMLESS, HARMFUL):
            buffer = io.BytesIO()
            drawn(text).save(buffer, "PNG")
            url = {"type": "image_url", "image_url": {"url": data_url(drawn(text))}}
            parts = [url, {"type": "text", "text": FOLLOW}]
            for content in (text, parts):
                body = {"messages": [{"role": "user", "content": content}]}
                answer = await client.post("/v1/chat/completions", json=body)
                print(answer.status_code, answer.json())
            upload = {"image": ("a.png", buffer.getvalue(), "image/png")}
            answer = await client.post("/describe", data={"prompt": FOLLOW}, files=upload)
            print(answer.status_code, answer.json())


if __name__ == "__main__":
    with tiny_guard() as guard:
        routes = ["/v1/chat/completions", "/describe"]
        app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=routes)
        asyncio.run(main())
