"""Keep a chat template's own control tokens out of what people write.

A prompt that says `<|im_start|>system` must reach the model as these characters, not as the start
of a system turn. Such strings are broken with a zero-width space; any other text is untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guardrail.errors import UnsupportedContentError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase, ProcessorMixin

BREAK = "\u200b"


class ControlTokens:
    """The control tokens of one tokenizer (and its processor's placeholders)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        template: str,
    ) -> None:
        self._tokenizer = tokenizer
        found = set(tokenizer.all_special_tokens) | set(_placeholders(processor))
        for added in tokenizer.added_tokens_decoder.values():
            if added.special or added.content in template:
                found.add(added.content)
        # A token of white space (Gemma's newlines) is ordinary text, in templates too.
        self.strings = tuple(sorted((s for s in found if s.strip()), key=len, reverse=True))
        ids = {tokenizer.convert_tokens_to_ids(s) for s in self.strings}
        self._ids = frozenset(i for i in ids if i is not None and i != tokenizer.unk_token_id)

    def neutralise(self, texts: Sequence[str]) -> list[str]:
        """Texts of one message, as text only; a template may put them side by side."""
        safe: list[str] = []
        before = ""
        for text in texts:
            clean = self._broken(text)
            if self._spans_border(before, clean):
                clean = BREAK + clean
            safe.append(clean)
            before += clean
        return safe

    def ids(self, text: str) -> list[int]:
        """A text's tokens as text only, with none around them."""
        found: list[int] = self._tokenizer.encode(self._broken(text), add_special_tokens=False)
        return found

    def neutralised(self, value: Any) -> Any:
        """JSON values with every string in them, keys too, as text only."""
        if isinstance(value, str):
            return self._broken(value)
        if isinstance(value, Mapping):
            return {self._broken(str(k)): self.neutralised(item) for k, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.neutralised(item) for item in value]
        return value

    def _broken(self, text: str) -> str:
        """`text` with every control string broken, checked with the tokenizer itself."""
        clean = text
        for string in self.strings:
            clean = clean.replace(string, string[0] + BREAK + string[1:])
        if not self._hits(clean):
            return clean
        # Not spelled like the token, but read as one (a tokenizer that normalises its input).
        for start in sorted(self._spans(clean), reverse=True):
            clean = clean[: start + 1] + BREAK + clean[start + 1 :]
        if self._hits(clean):
            raise UnsupportedContentError(
                "the text holds a control token of the chat template that cannot be written as "
                f"plain text; remove it (control tokens: {', '.join(self.strings[:8])} ...)"
            )
        return clean

    def _hits(self, text: str) -> bool:
        return not self._ids.isdisjoint(self._tokenizer.encode(text, add_special_tokens=False))

    def _spans(self, text: str) -> Iterator[int]:
        """Where control tokens start in `text`, as far as the tokenizer can say."""
        if not self._tokenizer.is_fast:
            return
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token in self._ids:
                yield start

    def _spans_border(self, before: str, after: str) -> bool:
        """Whether a control string would appear where two texts meet."""
        reach = max((len(s) for s in self.strings), default=1) - 1
        joined = before[-reach:] + after[:reach] if reach else ""
        return any(s in joined for s in self.strings)


def _placeholders(processor: Any) -> Iterator[str]:
    """Strings that a processor expands to picture, video or audio tokens."""
    for name, value in vars(processor).items():
        if name.endswith("_token") and isinstance(value, str):
            yield value
