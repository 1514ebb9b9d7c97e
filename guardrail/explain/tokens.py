"""A prompt's tokens as text, and which of them somebody wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from guardrail.model.control_tokens import BREAK
from guardrail.types import TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.model.encode import Encoder
    from guardrail.types import Part, Request

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
    window: list[str] = []  # what ids[start:] decode to up to each token that is not out yet
    while read < len(ids):
        end = read + len(window) + 1
        window.append(_decoded(tokenizer, ids[start:end]))
        whole = _whole(window, last=end == len(ids))
        if whole:
            before = _decoded(tokenizer, ids[start:read])
            texts += [*[""] * (whole - 1), window[whole - 1][len(before) :]]
            start, read, window = read, read + whole, []
    return texts


def _whole(window: Sequence[str], *, last: bool) -> int:
    """How many of the waiting tokens end with a whole character; 0 to wait for the next one.

    A replacement character is the sign of an unfinished one, unless the text goes on behind it:
    then somebody wrote it.
    """
    now, count = window[-1], len(window)
    grown = [i for i in range(1, count) if _goes_on(window[i - 1], window[i])]
    if grown[-1:] == [count - 1] and now[len(window[-2])] != _UNFINISHED:
        return count - 1
    if last or not now.endswith(_UNFINISHED):
        return count
    if count < _LONGEST:
        return 0
    return grown[-1] if grown else count


def _goes_on(before: str, now: str) -> bool:
    return now.startswith(before) and len(now) > len(before)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options)) if ids else ""


def written_spans(
    request: Request, prompt: str, encoder: Encoder, decode: Callable[[Sequence[int]], str]
) -> list[Span] | None:
    """Where in the decoded prompt each text part of the request stands, in order.

    The request is encoded once more with a mark in each text's place, which shows what the chat
    template writes around them. None where the template writes something else around the marks:
    then nobody can tell its words from a user's. `prompt` is what `decode` makes of the encoded
    request, control tokens and all.
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
    text, around = decode(ids), []
    if any(text.count(mark) != 1 for mark in marks):
        return None
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:  # the template turned their order round
            return None
        around.append(before)
    return _located(prompt, texts, [*around, text])


def _marked(request: Request, marks: Iterator[str]) -> Request:
    """The request with its texts replaced, pictures and all else as they are."""

    def marked(part: Part) -> Part:
        return TextPart(next(marks)) if isinstance(part, TextPart) else part

    told = (replace(m, parts=tuple(map(marked, m.parts))) for m in request.messages)
    return replace(request, messages=tuple(told))


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
    """Where a text that begins at `at` ends: templates may trim it, the guard may mark it.

    A text that was changed otherwise ends before what stands behind it, if that is there once: a
    user may have written the same.
    """
    for form in (text, text.strip(), text.rstrip(), text.lstrip()):
        end = _behind(prompt, at, form)
        if end is not None and prompt.startswith(after, end):
            return end
    return prompt.index(after, at) if after and prompt.count(after, at) == 1 else None


def _behind(prompt: str, at: int, text: str) -> int | None:
    """Where `text` ends that begins at `at`, with what the guard put into it; None if it is not."""
    for character in text:
        while prompt[at : at + 1] == BREAK != character:
            at += 1
        if prompt[at : at + 1] != character:
            return None
        at += 1
    return at
