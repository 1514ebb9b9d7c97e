"""A tiny model that says what a script tells it to, through its real forward passes."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


@contextmanager
def scripted(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    script: Callable[[str], str],
) -> Iterator[None]:
    """Within this block `model` answers `script(prompt)`, then ends its turn.

    `prompt` is the rendered chat with its control tokens; a picture shows as its placeholder
    tokens. Prefill, hooks, cache and verdict are the model's own: only the likeliest token is
    replaced, so tool calls and agents can be tested without a model that has learned to call tools.
    """
    owner: Any = model
    outer = vars(owner).get("generate")  # of a script around this one
    # not the outer one itself: of two scripts the inner one speaks
    original = functools.partial(type(owner).generate, owner)

    def generate(*args: Any, **options: Any) -> Any:
        forced = _Forced(getattr(processor, "tokenizer", processor), script)
        return original(*args, logits_processor=LogitsProcessorList([forced]), **options)

    owner.generate = generate
    try:
        yield
    finally:
        if outer is None:
            del owner.generate
        else:
            owner.generate = outer


class _Forced(LogitsProcessor):
    """Of one generation: every row's script, drawn up when its prompt is first seen."""

    def __init__(self, tokenizer: Any, script: Callable[[str], str]) -> None:
        self._tokenizer, self._script = tokenizer, script
        self._lines: list[list[int]] = []
        self._start = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores that leave one token per row: (rows, vocab)."""
        if not self._lines:
            self._start = input_ids.shape[1]
            self._lines = [self._line(row) for row in input_ids.tolist()]
        said = input_ids.shape[1] - self._start
        forced = torch.full_like(scores, -torch.inf)
        for row, line in enumerate(self._lines):
            token = line[said] if said < len(line) else self._tokenizer.eos_token_id
            forced[row, token] = 0.0
        return forced

    def _line(self, prompt: list[int]) -> list[int]:
        read = [token for token in prompt if token != self._tokenizer.pad_token_id]
        text = self._script(self._tokenizer.decode(read, skip_special_tokens=False))
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
