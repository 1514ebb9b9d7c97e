"""How likely each token of an answer was, and what else the model might have said there.

Of the model's own distribution, as OpenAI and vLLM have it: before temperature, `top_p` and `top_k`
and before a grammar's mask, so that a token which was the only one allowed may still have been
unlikely. A repetition penalty is in it, since transformers applies one before anybody else sees
the scores.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from guardrail.types import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

# A token's logprob, and the likeliest tokens in its place with theirs.
Likely = tuple[float, "Sequence[tuple[int, float]]"]

_LEAST = -9999.0  # what JSON has no word for: a token that a processor had ruled out
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_INCOMPLETE = "\ufffd"


class Logprobs:
    """The tokens of one answer with their logprobs, in order; `count` alternatives to each."""

    def __init__(self, tokenizer: Any, count: int) -> None:
        self._pieces, self._count = Pieces(tokenizer), count
        self._scores: Tensor | None = None
        self._taken: list[TokenLogprob] = []

    @property
    def taken(self) -> tuple[TokenLogprob, ...]:
        """All so far."""
        return tuple(self._taken)

    def see(self, scores: Tensor) -> None:
        """The scores that the next token is chosen from: (vocab,)."""
        self._scores = scores

    def take(self, token: int, likely: Likely | None = None) -> None:
        """A token was chosen; `likely` is what an engine tells of it that shows no scores."""
        found = self._found(token) if likely is None else likely
        if found is not None:
            logprob, others = found
            top = tuple(self._told(each, value) for each, value in others)
            self._taken.append(self._told(token, logprob, top))

    def _found(self, token: int) -> Likely | None:
        if self._scores is None:
            return None
        scores = self._scores.float().log_softmax(dim=-1)
        self._scores = None
        likeliest = scores.topk(min(self._count, scores.shape[-1]))
        others = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        return float(scores[token]), [*others]

    def _told(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, raw = self._pieces[token]
        return TokenLogprob(token, text, raw, max(logprob, _LEAST), top)


class Pieces(dict[int, tuple[str, bytes]]):
    """Text and bytes of single tokens, each read when first asked for.

    A token's text is what it adds to a letter before it: decoders drop the first word's blank. Part
    of a character has no text of its own, and its bytes are found in the name that it goes by.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> tuple[str, bytes]:
        """Read a token."""
        ids, letter = self._letter
        text = self._decoded([*ids, token]).removeprefix(letter)
        raw = self._bytes(token) if _INCOMPLETE in text else text.encode()
        self[token] = (text, raw)
        return text, raw

    @cached_property
    def _letter(self) -> tuple[list[int], str]:
        ids = list(self._tokenizer.encode("a", add_special_tokens=False))
        return ids, self._decoded(ids)

    def _decoded(self, ids: list[int]) -> str:
        text: Any = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _bytes(self, token: int) -> bytes:
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if found := _BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        if all(letter in _BYTES for letter in name):
            return bytes(_BYTES[letter] for letter in name)
        return name.encode()


_LETTERS: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}
