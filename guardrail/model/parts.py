"""Which tokens of a prompt belong to which message, and where its earlier answers begin.

The chat template is rendered once more, with a private-use character in each text. Where such a
mark stands, its text stands; without the marks, the rendering must tokenise to the very ids that
the model is given. Nothing is searched for that a user could have written: a text that says
"ASSISTANT:" is text. What cannot be told for certain is left out, and said.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field
from json import dumps
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from guardrail.types import Header, Modality, RowParts, Stretch, TurnSpan, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    Chat = list[dict[str, Any]]

_FIRST_MARK, _LAST_MARK = 0xF0000, 0xFFFFD  # the first plane that is for private use as a whole
_MARKS = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_ADDED = 4  # tokens that a processor may add of itself: beginning, end, a last line break


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as chat templates read it, its content a list.

    `owners` has part and kind of each element of the content, as in Stretch.
    """

    shown: dict[str, Any]
    owners: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a processor wrote in a placeholder's place: of the next picture, or the next video."""

    kind: str
    placeholder: str
    text: str


def find_parts(
    turns: Sequence[Turn],
    ids: Sequence[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    render: Callable[[Chat], str | None],
    opening: str,
    expansions: Sequence[Expansion] = (),
) -> RowParts:
    """The parts of a row.

    Args:
        turns: the chat; text in it is text only.
        ids: the row's tokens, without padding.
        tokenizer: the row's.
        render: the chat template as it was applied, as text; None where it refuses the chat.
        opening: what the template writes before an answer; "" if that cannot be told.
        expansions: those of the row, in order.
    """
    tried = None
    for late in (True, False) if tokenizer.is_fast else ():
        marks = _Marks(turns, late=late)
        rendered = render(marks.chat)
        if rendered is None:
            continue
        text, places = marks.taken_out_of(rendered)
        if text == tried:  # another place for the marks changes nothing
            break
        tried = text
        expanded = _Expanded(text, expansions)
        tokens = _tokens(tokenizer, expanded.text, ids)
        if tokens is not None:
            found = _Found(turns, marks, text, places, expanded)
            return found.row_parts(tokens, opening if text.endswith(opening) else "", len(ids))
    whole = TurnSpan(len(turns) - 1, "user", 0, len(ids))
    return RowParts(len(ids), (whole,), aligned=False)


@dataclass(frozen=True, slots=True)
class _Marked:
    """A text with a mark before its character `at`; `part` is None in calls of tools."""

    message: int
    part: int | None
    text: str
    at: int


class _Marks:
    """A chat with a mark in every text, one character each that no text has.

    The mark comes late in the text or early, outside of tags: templates look for these, mostly at
    the ends, and may show only what comes behind the thinking.
    """

    def __init__(self, turns: Sequence[Turn], *, late: bool) -> None:
        self._late = late
        self.texts: dict[str, _Marked] = {}
        self.unmarked: set[int] = set()
        texts = (c["text"] for t in turns for c in t.shown["content"] if c["type"] == "text")
        taken = {mark for text in texts for mark in _MARKS.findall(text)}
        codes = map(chr, range(_FIRST_MARK, _LAST_MARK + 1))
        self._free = (mark for mark in codes if mark not in taken)
        self.chat = [self._turn(number, turn) for number, turn in enumerate(turns)]

    def taken_out_of(self, rendered: str) -> tuple[str, dict[str, list[int]]]:
        """The rendering as it would be without marks, and where in it each of them was."""
        places: dict[str, list[int]] = {}
        kept, start, length = [], 0, 0
        for found in _MARKS.finditer(rendered):
            if found[0] in self.texts:
                kept.append(rendered[start : found.start()])
                length += len(kept[-1])
                start = found.end()
                places.setdefault(found[0], []).append(length)
        return "".join([*kept, rendered[start:]]), places

    def _turn(self, number: int, turn: Turn) -> dict[str, Any]:
        content = [
            {**c, "text": self._text(number, part, c["text"])} if c["type"] == "text" else c
            for c, (part, _) in zip(turn.shown["content"], turn.owners, strict=True)
        ]
        marked = {**turn.shown, "content": content}
        if self._late and "tool_calls" in marked:
            marked["tool_calls"] = [
                {**call, "function": {k: self._call(number, v) for k, v in function.items()}}
                for call in marked["tool_calls"]
                for function in [call["function"]]
            ]
        return marked

    def _call(self, number: int, value: Any) -> Any:
        match value:
            case str():
                return self._text(number, None, value)
            case dict():
                return {self._call(number, k): self._call(number, v) for k, v in value.items()}
            case list():
                return [self._call(number, item) for item in value]
        return value

    def _text(self, message: int, part: int | None, text: str) -> str:
        if not text or text.isspace():
            return text
        mark = next(self._free, None)
        if mark is None:
            self.unmarked.add(message)
            return text
        at = _last_word(text) if self._late else len(text) - 1 - _last_word(text[::-1], "><")
        self.texts[mark] = _Marked(message, part, text, at)
        return text[:at] + mark + text[at:]


def _last_word(text: str, tag: str = "<>") -> int:
    """The last character that is neither white space nor in a tag; else the last, blanks apart."""
    at = last = len(text.rstrip()) - 1
    while at >= 0:
        begin = text.rfind(tag[0], 0, at) if text[at] == tag[1] else -1
        if begin < 0 and not text[at].isspace():
            return at
        at = (begin if begin >= 0 else at) - 1
    return last


class _Expanded:
    """A rendering with placeholders expanded: its text, and places in the one as in the other."""

    def __init__(self, text: str, expansions: Sequence[Expansion]) -> None:
        self.media: dict[str, deque[tuple[int, int]]] = {"image": deque(), "video": deque()}
        self._ends, self._grown = [0], [0]
        written, end = [], 0
        for expansion in expansions:
            start = text.find(expansion.placeholder, end)
            if start < 0:  # not written by the template; if it matters, the tokens will not fit
                continue
            written += [text[end:start], expansion.text]
            end = start + len(expansion.placeholder)
            self.media[expansion.kind].append((start, end))
            self._ends.append(end)
            more = len(expansion.text) - len(expansion.placeholder)
            self._grown.append(self._grown[-1] + more)
        self.text = "".join([*written, text[end:]])

    def __call__(self, place: int) -> int:
        """Where the place is that was at `place` before."""
        return place + self._grown[bisect_right(self._ends, place) - 1]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens of a text: first and last character + 1 of each, and its position in the row."""

    characters: list[tuple[int, int]]
    positions: Sequence[int]

    def span(self, start: int, end: int) -> tuple[int, int] | None:
        """The positions of the tokens that hold characters from `start` to `end`."""
        first = self._ended(start)
        stop = bisect_left(self.characters, end, lo=first, key=lambda token: token[0])
        return (self.positions[first], self.positions[stop - 1] + 1) if first < stop else None

    def before(self, place: int) -> int | None:
        """The position of the last token that ends at or before a place."""
        count = self._ended(place)
        return self.positions[count - 1] if count else None

    def _ended(self, place: int) -> int:
        return bisect_right(self.characters, place, key=lambda token: token[1])


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> _Tokens | None:
    """The tokens of a row's text; None where the row has others."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    positions = _embedded(encoded["input_ids"], ids)
    return None if positions is None else _Tokens(encoded["offset_mapping"], positions)


def _embedded(inner: Sequence[int], outer: Sequence[int]) -> Sequence[int] | None:
    """Where the tokens `inner` are in `outer`, which may have a few more anywhere."""
    more = len(outer) - len(inner)
    if not 0 <= more <= _ADDED:
        return None
    if inner == outer[more:]:
        return range(more, len(outer))
    found: list[int] = []
    at = 0
    for token in inner:
        while at - len(found) <= more and outer[at] != token:
            at += 1
        if at - len(found) > more:
            return None
        found.append(at)
        at += 1
    return found


@dataclass(slots=True)
class _Own:
    """What is a message's own in a rendering: its pieces as (start, end, part, kind).

    Before `begin` there is nothing of it.
    """

    begin: int
    end: int
    pieces: list[tuple[int, int, int | None, str]] = field(default_factory=list)


class _Found:
    """The messages of a chat in its rendering."""

    def __init__(
        self,
        turns: Sequence[Turn],
        marks: _Marks,
        text: str,
        places: Mapping[str, list[int]],
        expanded: _Expanded,
    ) -> None:
        self._turns, self._text, self._expanded = turns, text, expanded
        self._own: dict[int, _Own] = {}
        self._unread = set(marks.unmarked)
        for mark, marked in marks.texts.items():
            self._find(marked, places.get(mark, []))
        for number, turn in enumerate(turns):
            self._find_media(number, turn)

    def row_parts(self, tokens: _Tokens, opening: str, length: int) -> RowParts:
        """The parts, in positions of the row."""
        spans = [self._span(message, tokens) for message in self._own]
        headers = [
            self._header(message, position)
            for message, place in self._headers(opening)
            if (position := tokens.before(self._expanded(place))) is not None
        ]
        return RowParts(
            length=length,
            turns=tuple(sorted((s for s in spans if s is not None), key=lambda s: s.start)),
            headers=tuple(sorted(headers, key=lambda header: header.position)),
            unread=tuple(sorted(self._unread)),
        )

    def _header(self, message: int, position: int) -> Header:
        before = self._turns[:message]
        shown = [kind for turn in before for _, kind in turn.owners]
        return Header(
            message, position, kind_of(shown), before[-1].shown["role"] if before else "user"
        )

    def _find(self, marked: _Marked, places: Sequence[int]) -> None:
        if len(places) != 1:  # left out, or shown twice
            self._unread.add(marked.message)
            return
        (place,) = places
        start, end, whole = _around(self._text, place, marked)
        # Of a text that is cut, the first characters may be the template's, which look the same.
        begin = start if whole else place
        self._add(marked.message, begin, (start, end, marked.part, "text"))
        if not whole:
            self._unread.add(marked.message)

    def _add(self, message: int, begin: int, piece: tuple[int, int, int | None, str]) -> None:
        own = self._own.setdefault(message, _Own(begin, piece[1]))
        own.begin, own.end = min(own.begin, begin), max(own.end, piece[1])
        own.pieces.append(piece)

    def _find_media(self, number: int, turn: Turn) -> None:
        """Placeholders are filled in their order; what a template has none for has no place."""
        for shown, (part, kind) in zip(turn.shown["content"], turn.owners, strict=True):
            if shown["type"] == "text":
                continue
            places = self._expanded.media[shown["type"]]
            if not places:
                self._unread.add(number)
                continue
            start, end = places.popleft()
            self._add(number, start, (start, end, part, kind))

    def _span(self, message: int, tokens: _Tokens) -> TurnSpan | None:
        by_part: dict[tuple[int | None, str], tuple[int, int]] = {}
        for start, end, part, kind in self._own[message].pieces:
            span = tokens.span(self._expanded(start), self._expanded(end))
            if span is None:
                self._unread.add(message)
                continue
            other = by_part.get((part, kind), span)  # the frames of a clip are of one part
            by_part[part, kind] = (min(span[0], other[0]), max(span[1], other[1]))
        if not by_part:
            return None
        stretches = (Stretch(p, Modality(k), *s) for (p, k), s in by_part.items() if p is not None)
        return TurnSpan(
            message=message,
            role=self._turns[message].shown["role"],
            start=min(start for start, _ in by_part.values()),
            stop=max(stop for _, stop in by_part.values()),
            stretches=tuple(sorted(stretches, key=lambda stretch: stretch.start)),
        )

    def _headers(self, opening: str) -> Iterator[tuple[int, int]]:
        """Answers, and where what is written before them ends: between their neighbours."""
        order = sorted(self._own, key=lambda message: self._own[message].begin)
        for last, message in zip([-1, *order], [*order, len(self._turns)], strict=True):
            begin = self._own[last].end if last in self._own else 0
            at_end = message not in self._own
            end = len(self._text) - len(opening) if at_end else self._own[message].begin
            skipped = [i for i in range(last + 1, message) if i not in self._own]
            answers = [i for i in [*skipped, message] if self._is_answer(i)]
            # What was not found may be there all the same, and say anything.
            ends = self._ends(opening, begin, end) if self._unread.isdisjoint(skipped) else []
            if len(ends) == len(answers):
                yield from zip(answers, ends, strict=True)
            elif message in answers and message not in self._unread:
                # An answer that goes on where another message ends has no header.
                if last not in self._own or self._text[begin:end].strip():
                    yield message, end

    def _ends(self, opening: str, begin: int, end: int) -> list[int]:
        """Where each opening of an answer ends in a piece of the rendering."""
        if not opening:
            return []
        found = re.compile(re.escape(opening)).finditer(self._text, begin, end)
        return [match.end() for match in found]

    def _is_answer(self, message: int) -> bool:
        return message < len(self._turns) and self._turns[message].shown["role"] == "assistant"


def _around(text: str, place: int, marked: _Marked) -> tuple[int, int, bool]:
    """Where a marked text stands, from its first to its last character, and whether all of it."""
    inner = marked.text.strip()
    at = marked.at - (len(marked.text) - len(marked.text.lstrip()))
    for form, before in ((inner, at), (_as_json(inner), len(_as_json(inner[:at])))):
        start = place - before
        if start >= 0 and text.startswith(form, start):
            return start, start + len(form), True
    left = commonprefix([inner[:at][::-1], text[:place][::-1]])  # noqa: RUF071
    right = commonprefix([inner[at:], text[place : place + len(inner)]])  # noqa: RUF071
    return place - len(left.rstrip()), place + len(right.rstrip()), False


def _as_json(text: str) -> str:
    """As templates write results of tools, and arguments of calls."""
    return dumps(text, ensure_ascii=False)[1:-1]
