"""A prompt's tokens: what each of them says, and whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.explain.explanation import Position
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.explain.explanation import Kind
    from guardrail.types import RowParts

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


def positions_of(
    tokenizer: Any,
    ids: Sequence[int],
    parts: RowParts,
    slots: Mapping[int, Kind],
    scores: Sequence[float | None],
) -> tuple[Position, ...]:
    """Every token of a row with its text, origin and score; `slots` are those of media."""
    special = set(tokenizer.all_special_ids)
    roles = {at: turn.role for turn in parts.turns for at in range(turn.start, turn.stop)}
    texts = {
        at
        for turn in parts.turns
        for stretch in turn.stretches
        if stretch.kind is Modality.TEXT
        for at in range(stretch.start, stretch.stop)
    }
    made = []
    for at, (token, text, score) in enumerate(
        zip(ids, token_texts(tokenizer, ids), scores, strict=True)
    ):
        written = (at in texts or not parts.aligned) and token not in special
        kind = slots.get(at, "text" if written else "template")
        role = roles.get(at) if parts.aligned else None
        made.append(Position(index=at, text=text, kind=kind, role=role, score=score))
    return tuple(made)
