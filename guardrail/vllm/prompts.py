"""Which tokens of a prompt belong to which message, where nothing but its tokens is known.

An engine is given token ids, not messages. A chat template parts messages by control tokens and
begins each with a header ("user", a line break) that is the same for every message of a role. Both
are found by rendering a chat, once, and read back from a prompt. Whoever writes control tokens into
a text that is tokenised with them can forge a role this way, so let every role be judged unless
texts are known to hold none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from guardrail.types import Header, Modality, RowParts, Stretch, TurnSpan, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

_PROBES = ("qvx", "zkw", "xjq", "wqz")  # words that stand in no template
_ROLES = ("system", "user", "assistant", "user")
_MARKED = (*zip(_ROLES, _PROBES, strict=True),)


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture's or video's positions [start, stop) in a prompt."""

    kind: Modality
    start: int
    stop: int


@dataclass(frozen=True)
class Template:
    """How prompts of a model are made up.

    `control` are the tokens that part messages, `special` all tokens that are no text, `headers`
    the tokens between a control token and a message of a role, longest first.
    """

    tokenizer: PreTrainedTokenizerBase
    control: frozenset[int]
    special: frozenset[int]
    headers: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> Template:
        """As a tokenizer's chat template has it (or the given one, of a processor).

        Without a template, or with one whose roles are words alone, a prompt is one message.
        """
        special = frozenset(
            [*tokenizer.all_special_ids]
            + [number for number, added in tokenizer.added_tokens_decoder.items() if added.special]
        )
        control: set[int] = set()
        headers: dict[tuple[int, ...], str] = {}
        for chat in ((*_MARKED[1:],), _MARKED):
            shown = _rendered(tokenizer, chat, chat_template)
            if shown is None:
                continue
            encoded = tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True)
            ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
            control |= special & set(ids)
            for role, word in chat:
                at = shown.find(word)
                first = next(i for i, end in enumerate(ends) if end > at)
                begin = max((i + 1 for i in range(first) if ids[i] in special), default=None)
                if begin is not None:
                    headers.setdefault(tuple(ids[begin:first]), role)
        plain = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        control |= {number for number in plain if number is not None} if headers else set()
        ordered = sorted(headers.items(), key=lambda pair: -len(pair[0]))
        roles = tuple((role, ids) for ids, role in ordered)
        return cls(tokenizer, frozenset(control), special, roles)

    def parts(self, ids: Sequence[int], media: Sequence[Medium] = ()) -> RowParts:
        """The messages of a prompt; `media` are its pictures and videos, in order."""
        if not self.headers:
            whole = TurnSpan(
                0, "user", 0, len(ids), tuple(self._stretches(0, len(ids), ids, media))
            )
            return RowParts(len(ids), (whole,), aligned=False)
        turns: list[TurnSpan] = []
        headers: list[Header] = []
        for role, start, stop in self._messages(ids, media):
            number = len(turns)
            if role == "assistant" and number:
                before = [one.kind for one in media if one.stop <= start]
                headers.append(Header(number, start - 1, kind_of(before), turns[-1].role))
            stretches = tuple(self._stretches(start, stop, ids, media))
            turns.append(TurnSpan(number, role, start, stop, stretches))
        return RowParts(len(ids), tuple(turns), tuple(headers))

    def _messages(
        self, ids: Sequence[int], media: Sequence[Medium]
    ) -> Iterator[tuple[str, int, int]]:
        """Role, first position and last + 1 of each message that says or shows anything."""
        shown = {at for one in media for at in range(one.start, one.stop)}
        borders = [i for i, token in enumerate(ids) if token in self.control and i not in shown]
        for before, stop in zip([-1, *borders], [*borders, len(ids)], strict=True):
            start = before + 1
            role, length = next(
                (role, len(header))
                for role, header in (*self.headers, ("user", ()))
                if tuple(ids[start : start + len(header)]) == header
            )
            first, last = start + length, stop - 1
            while first <= last and first not in shown and self._is_blank(ids[first]):
                first += 1
            while first <= last and last not in shown and self._is_blank(ids[last]):
                last -= 1
            if first <= last:
                yield role, first, last + 1

    def _stretches(
        self, start: int, stop: int, ids: Sequence[int], media: Sequence[Medium]
    ) -> Iterator[Stretch]:
        """The text and the media of a message, in order.

        Its parts are counted as they come; what only frames a medium is none.
        """
        at, number = start, 0
        for one in media:
            if start <= one.start and one.stop <= stop:
                if one.start > at:
                    yield Stretch(number, Modality.TEXT, at, one.start)
                    number += not all(map(self._is_blank, ids[at : one.start]))
                yield Stretch(number, one.kind, one.start, one.stop)
                at, number = one.stop, number + 1
        if at < stop:
            yield Stretch(number, Modality.TEXT, at, stop)

    def _is_blank(self, token: int) -> bool:
        return token in self.special or not str(self.tokenizer.decode([token])).strip()


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: Sequence[tuple[str, str]],
    chat_template: str | None,
) -> str | None:
    """The chat as text, with contents as lists where plain texts are refused, else None."""
    for shown in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        messages: list[dict[str, Any]] = [{"role": r, "content": shown(text)} for r, text in chat]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, TypeError, KeyError):
            continue
        if all(str(text).count(word) == 1 for _, word in chat):
            return str(text)
    return None
