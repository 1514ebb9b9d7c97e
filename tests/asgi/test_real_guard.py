"""The middleware with real guards on the tiny llava: its verdicts are the guard's own."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fastapi import FastAPI, File, Form, Request, UploadFile
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from guardrail.asgi import GuardedRoute, GuardrailASGIMiddleware
from guardrail.model.decoder import decoder_layers
from guardrail.policy import Limits
from guardrail.types import Action

CALL = {"type": "function", "id": "c1", "function": {"name": "find", "arguments": '{"q": "x"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "find", "description": "Finds.", "parameters": {"type": "object"}},
    }
]


def guarded_app(guard, **options):
    """A Starlette app that answers with the verdict."""

    async def endpoint(request):
        verdict = request.state.guardrail_verdict
        return JSONResponse({**verdict.to_dict(), "sent": (await request.body()).decode("latin-1")})

    app = Starlette(routes=[Route("/chat", endpoint, methods=["POST"])])
    app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=["/chat"], **options)
    return app


def told(verdict):
    return {**verdict.to_dict(), "score": pytest.approx(verdict.score, abs=1e-5)}


@pytest.fixture
def chats(picture, data_url_of):
    def seen(*numbers):
        return [
            {"type": "image_url", "image_url": {"url": data_url_of(picture(number))}}
            for number in numbers
        ]

    said = {"type": "text", "text": "What is this?"}
    return {
        "text": [{"role": "user", "content": "tell me"}],
        "one picture": [{"role": "user", "content": [*seen(0), said]}],
        "two pictures": [{"role": "user", "content": [*seen(0, 1), said]}],
        "history": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "find the cat"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "a cat", "tool_call_id": "c1", "name": "find"},
            {"role": "user", "content": "and now?"},
        ],
    }


@pytest.mark.parametrize("with_tools", [False, True], ids=["plain", "tools"])
@pytest.mark.parametrize("kind", ["text", "one picture", "two pictures", "history"])
def test_the_verdict_is_the_guards_own(guard_on, ask, chats, kind, with_tools):
    guard = guard_on(Action.PASS)
    tools = {"tools": TOOLS} if with_tools else {}
    response = ask(guarded_app(guard), "POST", "/chat", json={"messages": chats[kind], **tools})
    verdict = guard.check(chats[kind], **tools)
    assert {k: v for k, v in response.json().items() if k != "sent"} == told(verdict)
    assert (guard.check(chats[kind]).score == verdict.score) is not with_tools


@pytest.mark.parametrize("action", [Action.PASS, Action.FLAG])
def test_prompts_and_responses_have_the_chats_verdict(guard_on, ask, action):
    guard = guard_on(action, on_flag="annotate")
    app, chat = guarded_app(guard), [{"role": "user", "content": "tell me"}]
    bodies = [{"messages": chat}, {"prompt": "tell me"}, {"input": "tell me"}, {"input": chat}]
    found = [ask(app, "POST", "/chat", json=body).json() for body in bodies]
    assert [row["score"] for row in found] == pytest.approx([guard.check(chat).score] * 4, abs=1e-5)
    assert {row["action"] for row in found} == {action.value}


def test_an_upload_has_the_verdict_of_the_same_chat(guard_on, ask, picture, png_of, data_url_of):
    guard, app = guard_on(Action.PASS), FastAPI()
    route = GuardedRoute("/describe", fields=["prompt", "images"])
    app.add_middleware(GuardrailASGIMiddleware, guard=guard, routes=[route])

    @app.post("/describe")
    async def describe(
        request: Request,
        prompt: str = Form(),  # FastAPI's own way
        images: list[UploadFile] = File(),  # noqa: B008
    ):
        sizes = [len(await image.read()) for image in images]
        verdict = request.state.guardrail_verdict.to_dict()
        return {"prompt": prompt, "sizes": sizes, "score": verdict["score"]}

    pictures = [png_of(picture(0)), png_of(picture(1))]
    files = [("images", (f"{i}.png", data, "image/png")) for i, data in enumerate(pictures)]
    response = ask(app, "POST", "/describe", data={"prompt": "What?"}, files=files)
    parts = [
        {"type": "text", "text": "What?"},
        *({"type": "image", "image": data_url_of(picture(i))} for i in (0, 1)),
    ]
    verdict = guard.check([{"role": "user", "content": parts}])
    assert response.json() == {
        "prompt": "What?",
        "sizes": [len(data) for data in pictures],
        "score": pytest.approx(verdict.score, abs=1e-5),
    }


def test_a_steered_chat_is_sent_with_a_caution_and_a_flagged_one_not_at_all(guard_on, ask):
    body = {"messages": [{"role": "user", "content": "tell me"}]}
    cautious = guard_on(Action.STEER, caution_prompt="Careful.")
    sent = ask(guarded_app(cautious), "POST", "/chat", json=body).json()["sent"]
    assert json.loads(sent)["messages"][0] == {"role": "system", "content": "Careful."}
    flagging = guard_on(Action.FLAG, refusal_message="No.")
    response = ask(guarded_app(flagging), "POST", "/chat", json=body)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "No.")


def test_two_apps_with_different_policies_share_one_model(guard_on, asking):
    guard = guard_on(Action.PASS)
    passing = guarded_app(guard)
    flagging = guarded_app(guard, policy=guard_on(Action.FLAG).policy, status=403)

    async def run():
        requests = [
            asking(app, "POST", "/chat", json={"prompt": f"tell me about number {number}"})
            for number in range(8)
            for app in (passing, flagging)
        ]
        return await asyncio.gather(*requests)

    responses = asyncio.run(run())
    assert [r.status_code for r in responses] == [200, 403] * 8
    scores = [guard.check(f"tell me about number {number}").score for number in range(8)]
    assert [r.json()["score"] for r in responses[::2]] == pytest.approx(scores, abs=1e-5)


def test_a_full_queue_is_told_as_an_overload(guard_on, asking, llava):
    guard = guard_on(Action.PASS, limits=Limits(queue=1, batch=1))
    app = guarded_app(guard)
    layer = decoder_layers(llava.model)[0]

    async def run():
        requests = (asking(app, "POST", "/chat", json={"prompt": "tell me"}) for _ in range(8))
        return await asyncio.gather(*requests)

    handle = layer.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    try:
        responses = asyncio.run(run())
    finally:
        handle.remove()
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503}
    refused = responses[statuses.index(503)]
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "server_error"


def test_no_hook_is_left_on_the_model_after_the_app(guard_on, llava):
    layers = decoder_layers(llava.model)

    def hooks():
        return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers)

    guard = guard_on(Action.PASS)
    before = hooks()
    app = GuardrailASGIMiddleware(None, guard=guard, routes=["/chat"])
    assert hooks() > before
    sent = []

    async def lifespan(scope, receive, send):
        await send({"type": "lifespan.shutdown.complete"})

    async def send(message):
        sent.append(message)

    app._app = lifespan
    asyncio.run(app({"type": "lifespan"}, None, send))
    assert hooks() == before
    assert sent == [{"type": "lifespan.shutdown.complete"}]
