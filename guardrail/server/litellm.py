"""`POST /beta/litellm_basic_guardrail_api`: a guardrail for LiteLLM's proxy.

Calls are judged before the model: the chat, with what other providers' chats have beside text, and
whatever of the call is not in it. Answers are where the policy has them watched, each as an answer
to a prompt that says nothing, since LiteLLM does not send the chat along; otherwise what is said of
them is `NONE`.

A model's earlier reasoning goes back to it, so it is judged as text. What its provider has
encrypted says nothing to anybody else, and is left out, as long as it looks like a cipher.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from guardrail.asgi.chats import Content
from guardrail.asgi.wire import FIELD
from guardrail.errors import DetectorError
from guardrail.front.consequences import settled
from guardrail.inputs.canonical import require_one_reading
from guardrail.inputs.labels import CIPHERS, is_label, is_unspoken, worded
from guardrail.inputs.parts import strings_in
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import is_refused_outage, passes_unchecked
from guardrail.server.answers import AsciiJSONResponse, headers_of, told
from guardrail.server.bodies import StrictRoute
from guardrail.server.schemas import ERRORS, Object, Objects, Texts
from guardrail.server.service import checked
from guardrail.server.watching import settled_answers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from guardrail.front.consequences import Settled
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import Caller
    from guardrail.server.service import Service


router = APIRouter(prefix="/beta", route_class=StrictRoute, responses=ERRORS)

Row = Mapping[str, Any]

_REASONING = {"reasoning_content": str, "thinking_blocks": list, "reasoning_items": list}

# What stands there is read as a label, if at all, so it vouches for no text beside the chat.
_LABELLED = frozenset({"role", "type", "name", "tool_call_id", "id", "index", "detail"})
_ABOUT = frozenset({"id", "index", "cache_control"})  # of a thought
_CIPHERS = CIPHERS | {"data"}  # of a redacted one

_SEVERITY = {"pass": 0, "caution": 1, "flag": 2}
_OUTAGE = "This request could not be checked; try again later."


class LiteLLMBody(BaseModel):
    """One call that passes through a LiteLLM proxy, before (`request`) or after the model.

    `texts` and `images` are what LiteLLM found in the call; `structured_messages` is the chat that
    they are from, where it is one. What else LiteLLM says about a call (keys, headers, parameters
    for a guardrail) is not read, so nobody can weaken the policy by it.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    input_type: Literal["request", "response"]
    texts: Texts | None = None
    images: Texts | None = Field(default=None, description="data URLs or base64")
    structured_messages: Objects | None = None
    tools: Objects | None = None
    tool_calls: Objects | None = None


class LiteLLMAnswer(BaseModel):
    """What LiteLLM is to do; `guardrail` is the verdict, for people who read its logs."""

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    texts: Texts | None = Field(default=None, description="in the place of those that came")
    images: Texts | None = None
    guardrail: Object | None = None


@router.post("/litellm_basic_guardrail_api", response_model=LiteLLMAnswer)
async def litellm_guardrail(body: LiteLLMBody, request: Request) -> Response:
    """Say whether a call of LiteLLM's may go to its model, and how.

    `BLOCKED`: it is flagged, or cannot be judged while the policy fails closed.
    `GUARDRAIL_INTERVENED`: a caution stands before the first text. `NONE`: it goes as it is, so
    pictures that the model's decoder may read otherwise are refused.
    """
    service = request.app.state.service
    guard = service.guard
    if body.input_type == "response" and guard.policy.watch == "answer":
        return await _answered(guard, body, request.state.caller, service)
    judged = contents(body) if body.input_type == "request" else []
    if not judged:
        return AsciiJSONResponse({"action": "NONE", FIELD: None})
    caller = request.state.caller
    asked = service.ask_options(caller)
    for content in judged:
        service.count_asked(caller, content.value)
        await read_apart(partial(require_one_reading, content.value, guard.policy))
    try:
        after = await _strictest(guard, judged, asked, body.texts)
    except DetectorError as error:
        if passes_unchecked(error, guard.policy):
            return AsciiJSONResponse({"action": "NONE", FIELD: None})
        return AsciiJSONResponse({"action": "BLOCKED", "blocked_reason": _OUTAGE, FIELD: None})
    answer = _answer(after, body, guard.policy, caller)
    return AsciiJSONResponse(answer, headers=headers_of(after.verdict, caller))


async def _answered(guard: Guard, body: LiteLLMBody, caller: Caller, service: Service) -> Response:
    """What becomes of a model's answers: those that are flagged give way to the refusal.

    Under `on_flag="raise"` all of them are blocked then.
    """
    texts, policy, asked = body.texts or [], guard.policy, service.ask_options(caller)
    try:
        each = await settled_answers(guard, texts, asked)
    except DetectorError:
        return AsciiJSONResponse({"action": "BLOCKED", "blocked_reason": _OUTAGE, FIELD: None})
    after = [one for one in each if one is not None]
    if not after:
        return AsciiJSONResponse({"action": "NONE", FIELD: None})
    strictest = _worst(after)
    found: dict[str, Any] = {FIELD: told(strictest.verdict, caller)}
    if is_refused_outage(strictest.verdict, policy):
        found |= {"action": "BLOCKED", "blocked_reason": _OUTAGE}
    elif strictest.done != "flag":
        found |= {"action": "NONE"}
    elif policy.on_flag == "raise":
        found |= {"action": "BLOCKED", "blocked_reason": policy.refusal_message}
    else:
        given = [
            text if one is None or one.done != "flag" else policy.refusal_message
            for text, one in zip(texts, each, strict=True)
        ]
        found |= {"action": "GUARDRAIL_INTERVENED", "texts": given}
    return AsciiJSONResponse(found, headers=headers_of(strictest.verdict, caller))


async def _strictest(
    guard: Guard,
    judged: Sequence[Content],
    asked: Mapping[str, Any],
    texts: Sequence[str] | None,
) -> Settled:
    """What becomes of a call all of whose parts were judged."""
    verdicts = await asyncio.gather(*(checked(guard, content, asked) for content in judged))
    after = [
        settled(verdict, guard.policy, caution=partial(cautioned, texts)) for verdict in verdicts
    ]
    return _worst(after)


def _worst(after: Sequence[Settled]) -> Settled:
    return max(after, key=lambda each: (_SEVERITY[each.done], each.verdict.score or 0.0))


def _answer(after: Settled, body: LiteLLMBody, policy: Policy, caller: Caller) -> dict[str, Any]:
    verdict: dict[str, Any] = {FIELD: told(after.verdict, caller)}
    match after.done:
        case "flag":
            return {"action": "BLOCKED", "blocked_reason": policy.refusal_message, **verdict}
        case "caution":
            return {"action": "GUARDRAIL_INTERVENED", "texts": after.cautioned, **verdict}
        case _:
            return {"action": "NONE", **verdict}


def contents(body: LiteLLMBody) -> list[Content]:
    """What is judged, one by one; none for a call without content.

    Texts, pictures and tool calls that do not stand in the chat are judged like a prompt of their
    own: LiteLLM may send part of a chat only, and calls that are no chats have none.
    """
    sent, found = body.structured_messages or [], []
    functions, others = _sorted(body.tools or [])
    chat = [readable(row) for row in sent]
    seen = {text for text, _ in strings_in(chat, leave_out=_LABELLED)}
    called = [call for row in chat for call in _rows(row.get("tool_calls"))]
    parts = [*_texts(body, seen, called), *_pictures(body, seen)]
    if chat:
        found.append(Content(chat, tools=functions, beside=others))
    elif functions or others:
        parts[:0] = [_text(json.dumps(tool, ensure_ascii=False)) for tool in body.tools or []]
    if parts:
        found.append(Content([{"role": "user", "content": parts}]))
    return found


def readable(row: Row) -> dict[str, Any]:
    """A message in the OpenAI form; what is in no known form stays, for the guard to refuse."""
    thought = {key: row[key] for key, kind in _REASONING.items() if isinstance(row.get(key), kind)}
    read = {key: value for key, value in row.items() if key not in thought}
    if isinstance(read.get("is_error"), bool):
        del read["is_error"]  # how a tool fared; its words are in the content
    if read.get("role") == "function":
        read |= {"role": "tool", "content": row.get("content") or ""}
    content = read.get("content")
    if isinstance(content, list):
        content = [part for each in content for part in _part(each)]
        read["content"] = content or ""
    thoughts = [{"type": "text", "text": text} for text in _thoughts(thought)]
    if thoughts:
        said = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        read["content"] = [*thoughts, *said]
    return read


def cautioned(texts: Sequence[str] | None, words: str) -> list[str] | None:
    """The call's texts with the policy's words before the first; None: there is no place for them.

    LiteLLM puts each text back where it was, so there must be as many as came.
    """
    if not texts:
        return None
    return [f"{words}\n\n{texts[0]}", *texts[1:]]


def _texts(body: LiteLLMBody, seen: set[str], called: Sequence[Row]) -> list[dict[str, Any]]:
    lines = [text for text in body.texts or () if text not in seen]
    known = [call.get("function") for call in called]
    for call in body.tool_calls or ():
        about = {key: held for key, held in call.items() if key != "function"}
        if call.get("function") not in known or worded(about):
            lines.append(json.dumps(call, ensure_ascii=False))
    return [_text("\n".join(lines))] if lines else []


def _pictures(body: LiteLLMBody, seen: set[str]) -> list[dict[str, Any]]:
    unseen = (source for source in body.images or () if source not in seen)
    return [{"type": "image_url", "image_url": {"url": source}} for source in unseen]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _sorted(tools: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Functions in the OpenAI form, and as text what else there is: many templates show it all."""
    functions, others = [], []
    for tool in tools:
        usual = tool.keys() == {"type", "function"} and tool["type"] == "function"
        if usual and isinstance(tool["function"], dict):
            functions.append(tool)
        else:
            others.append(json.dumps(tool, ensure_ascii=False))
    return functions, others


def _thoughts(row: Row) -> list[str]:
    """The reasoning in these fields, each text once."""
    found: dict[str, None] = {}
    if row.get("reasoning_content"):
        found[row["reasoning_content"]] = None
    for block in row.get("thinking_blocks", ()):
        for part in _part(block):
            found[_as_text(part)] = None
    for item in row.get("reasoning_items", ()):
        found[_as_text(_legible(item))] = None
    return list(found)


def _part(part: object) -> list[Any]:
    """A part of a content as the guard reads it; none for what only the provider can read."""
    match _legible(part):
        case {"type": "thinking" | "redacted_thinking", **more}:
            said = more.pop("thinking", "")
            texts = [said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)]
            texts += [json.dumps(more, ensure_ascii=False)] if more else []
            return [_text(text) for text in texts if text]
        case _:
            return [part]


def _as_text(value: object) -> str:
    match value:
        case {"type": "text", "text": str(text), **more} if not more:
            return text
        case _:
            return json.dumps(value, ensure_ascii=False)


def _legible(value: object) -> object:
    """A block without its ciphers, and without what holds no words."""
    if not isinstance(value, Mapping):
        return value
    return {key: held for key, held in value.items() if not _is_mute(key, held)}


def _is_mute(key: str, value: object) -> bool:
    if not is_label(key):
        return False
    empty = value in (None, "", [], {}) or isinstance(value, bool | int | float)
    about = key in _ABOUT and not isinstance(value, list) and not worded(value)
    return empty or about or is_unspoken(key, value, (), _CIPHERS)


def _rows(value: object) -> list[Row]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
