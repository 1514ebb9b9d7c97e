"""Many clients at once on the server with vLLM: `crowd.py FOLDER FAMILY CASE` tells each answer.

CASE is JSON: the `policy`, how `many` requests, and `options` of vLLM. Requests are the same ones
in an order of their own: whole answers, streams, streams that are left, and checks.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

if os.environ.get("SECOND_RUNNER"):
    import second_runner  # noqa: F401

import httpx
import openai
import uvicorn

from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.vllm import VllmGuard
from tests.vllm.said import crowd

CLIENTS, TOKENS = 32, 6
KINDS = ("whole", "stream", "left", "check")


async def ask(client: openai.AsyncOpenAI, chat: list[Any], kind: str) -> dict[str, Any]:
    """One request, and what a client hears of it."""
    given: Any = {"model": "guarded", "messages": chat, "max_tokens": TOKENS}
    if kind == "check":
        found = await client.post("/checks", body={"messages": chat}, cast_to=httpx.Response)
        return {"verdict": found.json()["verdict"]}
    if kind == "whole":
        answer = await client.chat.completions.create(**given)
        choice, extra = answer.choices[0], answer.model_extra or {}
        return {
            "verdict": extra["guardrail"],
            "text": choice.message.content,
            "finish": choice.finish_reason,
            "tokens": answer.usage.completion_tokens if answer.usage else None,
        }
    text, finish, verdict = "", None, None
    async with await client.chat.completions.create(stream=True, **given) as stream:
        async for chunk in stream:
            verdict = verdict or (chunk.model_extra or {}).get("guardrail")
            assert verdict is not None, "a chunk before the verdict"
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
            if kind == "left" and text:
                return {"verdict": verdict, "begun": text}
    return {"verdict": verdict, "text": text, "finish": finish}


async def all_of(port: int, pictures: bool, many: int) -> list[dict[str, Any]]:
    """Every request's answer, with which chat it was and how it was asked."""
    chats, draw = crowd(pictures), random.Random(0)
    asked = [(draw.randrange(len(chats)), draw.choice(KINDS)) for _ in range(many)]
    room = asyncio.Semaphore(CLIENTS)
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=600
    )

    async def one(number: int, kind: str) -> dict[str, Any]:
        async with room:
            return {"chat": number, "kind": kind, **await ask(client, chats[number], kind)}

    return await asyncio.gather(*(one(*each) for each in asked))


async def serve(guard: VllmGuard, pictures: bool, many: int) -> list[dict[str, Any]]:
    """Start the server, ask, and end it."""
    settings = ServerSettings(max_concurrent=2 * CLIENTS, expose_scores=True)
    app = create_app(guard, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    found = await all_of(port, pictures, many)
    server.should_exit = True
    await running
    return found


def main() -> None:
    """Run the crowd, and tell."""
    folder, family, case = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    fixed: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8}
    fixed |= {"block_size": 32, "max_num_batched_tokens": 512, "enforce_eager": True}
    with VllmGuard(
        folder / family,
        folder / f"{family}.guard.safetensors",
        policy=Policy.model_validate(case["policy"]),
        **{**fixed, **case.get("options", {})},
    ) as guard:
        found = asyncio.run(serve(guard, family != "llama", case["many"]))
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
