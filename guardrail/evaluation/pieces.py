"""A prompt's tokens as text, and which of them somebody wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guardrail.types import Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.model.inputs import Encoder

    Span = tuple[int, int, str]  # first character, end, role

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes, hence tokens, of one UTF-8 character


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the decoded text; joined they are the text.

    A character split over several tokens stands at the last of them, the others are "". Each token
    is decoded behind the one before it, since many tokenizers drop a blank at the start.
    """
    texts: list[str] = []
    start = read = 0  # what is decoded again, and what of it is out already
    for end in range(1, len(ids) + 1):
        before = _decoded(tokenizer, ids[start:read])
        now = _decoded(tokenizer, ids[start:end])
        waits = now.endswith(_UNFINISHED) and end - read < _LONGEST and end < len(ids)
        texts.append("" if waits else now[len(before) :])
        if not waits:
            start, read = read, end
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options)) if ids else ""


def written_spans(
    request: Request, prompt: str, encoder: Encoder, decode: Callable[[Sequence[int]], str]
) -> list[Span] | None:
    """Where in the decoded prompt each text part of the request stands, in order.

    The request is encoded once more with a mark in each text's place, which shows what the chat
    template writes around them. None where the template writes something else around the marks:
    then nobody can tell its words from a user's.

    Args:
        request: what was encoded.
        prompt: its decoded prompt, with control tokens.
        encoder: what encoded it.
        decode: token ids to text, with control tokens.
    """
    texts = [
        (part.text, message.role)
        for message in request.messages
        for part in message.parts
        if isinstance(part, TextPart)
    ]
    marks = [f"qzx{number}xzq" for number in range(len(texts))]
    if any(mark in prompt for mark in marks):
        return None
    ids = encoder.encode([_marked(request, iter(marks))]).inputs["input_ids"][0].tolist()
    around = _split(decode(ids), marks)
    return None if around is None else _located(prompt, texts, around)


def _marked(request: Request, marks: Iterator[str]) -> Request:
    """The request with its texts replaced, pictures and all else as they are."""
    messages = tuple(
        replace(
            message,
            parts=tuple(
                TextPart(next(marks)) if isinstance(part, TextPart) else part
                for part in message.parts
            ),
        )
        for message in request.messages
    )
    return replace(request, messages=messages)


def _split(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands before, between and after the marks; None unless each is there once."""
    around = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return None
        around.append(before)
    return None if any(mark in text for mark in marks) else [*around, text]


def _located(
    prompt: str, texts: Sequence[tuple[str, str]], around: Sequence[str]
) -> list[Span] | None:
    """Spans of the texts, found between what stands around them; None unless all of it fits."""
    spans: list[Span] = []
    at = 0
    for (text, role), before, after in zip(texts, around, around[1:], strict=False):
        if not prompt.startswith(before, at):
            return None
        at += len(before)
        end = _end(prompt, at, text, after)
        if end is None:
            return None
        spans.append((at, end, role))
        at = end
    return spans if prompt[at:] == around[-1] else None


def _end(prompt: str, at: int, text: str, after: str) -> int | None:
    """Where a text that begins at `at` ends: templates may trim it, the guard may mark it."""
    for form in (text, text.strip(), text.rstrip(), text.lstrip()):
        if prompt.startswith(form + after, at):
            return at + len(form)
    found = prompt.find(after, at) if after else -1
    return None if found < 0 else found
