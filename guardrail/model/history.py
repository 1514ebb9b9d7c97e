"""Answers behind their prompts, and what a model is not shown of them in later turns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from guardrail.errors import GuardrailError
from guardrail.types import (
    ImagePart,
    Message,
    Request,
    RowParts,
    TextPart,
    ToolCall,
    TurnSpan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.model.encode import Encoded, Encoder

_ANSWER = "It is four."
_THOUGHT = f"<think>\nTwo, and two more.\n</think>\n\n{_ANSWER}"
_CALL = ToolCall(name="add", arguments={"a": "two", "b": "two"}, id="call00001")
_NAMES = {"a": {"type": "string"}, "b": {"type": "string"}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": _NAMES, "required": [*_NAMES]},
    },
}


def answered(encoder: Encoder, requests: Sequence[Request]) -> Encoded:
    """Chats that end with an answer, as the model had them when it had just given it.

    The answer stands behind the prompt as its tokens alone, whatever the chat template makes of an
    earlier answer; of its parts nothing but the answer is told.
    """
    asked = encoder.encode([Request(r.messages[:-1], r.tools) for r in requests])
    said = [
        encoder.controls.ids(
            "".join(p.text for p in r.messages[-1].parts if isinstance(p, TextPart))
        )
        for r in requests
    ]
    lengths = [n + len(ids) for n, ids in zip(asked.lengths, said, strict=True)]
    width = max(lengths)

    def longer(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:2] != (len(said), asked.prompt_len):
            return value
        made = value.new_zeros(len(said), width, *value.shape[2:])
        for row, ids in enumerate(said):
            own = value[row, asked.prompt_len - asked.lengths[row] :]
            begins = width - len(ids)
            made[row, width - lengths[row] : begins] = own
            if name == "input_ids":
                made[row, begins:] = torch.tensor(ids, dtype=made.dtype)
            elif name == "attention_mask":
                made[row, begins:] = 1
            elif (
                value.dim() > 2
            ):  # which pictures a position sees: the answer all that its prompt did
                made[row, begins:] = own[-1]
        return made

    parts = (
        RowParts(length, (TurnSpan(len(r.messages) - 1, "assistant", n, length),))
        for r, n, length in zip(requests, asked.lengths, lengths, strict=True)
    )
    return replace(
        asked,
        inputs={name: longer(name, value) for name, value in asked.inputs.items()},
        prompt_len=width,
        lengths=tuple(lengths),
        parts=tuple(parts),
    )


def history_gaps(encoder: Encoder) -> list[str]:
    """Sentences for people; none where the model is shown all of a chat, as it was.

    They are found with chats of several turns, pictures and tools in them where the model takes
    any. A model that reads two turns otherwise than one after the other, though it is shown both,
    is not found out.
    """
    pictures = [ImagePart(Image.new("RGB", (64, 64)))] if encoder.reads_pictures else []
    ask = _said("user", "What is two and two?", *pictures)
    then = _said("user", "And three and three?")
    chats = {
        "an earlier answer": Request((ask, _said("assistant", _ANSWER), then)),
        "an earlier answer with its thinking": Request((ask, _said("assistant", _THOUGHT), then)),
    }
    if encoder.supports_tools:
        call = Message(role="assistant", parts=(), tool_calls=(_CALL,))
        result = Message(
            role="tool", parts=(TextPart("four"),), name=_CALL.name, tool_call_id=_CALL.id
        )
        messages = (ask, call, result, _said("assistant", _ANSWER), then)
        chats["an earlier call of a tool"] = Request(messages, (_TOOL,))
    gaps = (f"{what}: {gap}" for what, chat in chats.items() for gap in _gaps(encoder, chat))
    return list(dict.fromkeys(gaps))


def _said(role: str, text: str, *pictures: ImagePart) -> Message:
    return Message(role=role, parts=(*pictures, TextPart(text)))


def _gaps(encoder: Encoder, chat: Request) -> Iterator[str]:
    try:
        whole = encoder.encode([chat])
        (parts,) = whole.parts
        if not parts.aligned:
            yield "which tokens are whose cannot be told, so the prompt counts as one piece"
            return
        for unread in parts.unread:
            yield f"the template does not show the whole {chat.messages[unread].role} message"
        ids = whole.inputs["input_ids"][0].tolist()
        headers = {header.message: header.position for header in parts.headers}
        for number, message in enumerate(chat.messages):
            if message.role != "assistant":
                continue
            if number not in headers:
                yield "where the answer begins cannot be told, so what led to it is not read again"
                continue
            before = encoder.encode([Request(chat.messages[:number], chat.tools)])
            if before.inputs["input_ids"][0].tolist() != ids[: headers[number] + 1]:
                yield "what comes before the answer is not the prompt that it was the answer to"
    except GuardrailError as error:
        yield f"the model cannot be shown such a chat ({error})"
