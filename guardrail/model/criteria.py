"""Who gets the next token: flags, cancelled callers, deadlines, stop strings, lengths.

Generation calls its stopping criteria after each token and before anybody else sees it, so the
tokens are handed out from here and no streamer is needed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.model.calls import PromptCall
    from guardrail.model.rulings import Ruling


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """New tokens of one request. `finish`: stop | length | flag | cancelled | timeout."""

    token_ids: tuple[int, ...]
    finish: str
    ruling: Ruling | None
    prompt_tokens: int


@dataclass(slots=True, kw_only=True)
class RowControl:
    """How a caller follows and ends one row; the callbacks run on the model's thread.

    `on_ruling` comes before the first token, `on_token` says whether the answer is complete,
    `on_end` comes once, as soon as the row has ended, while others may go on.
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None  # time.monotonic()
    max_tokens: int | None = None
    on_ruling: Callable[[Ruling], None] | None = None
    on_token: Callable[[int], bool] | None = None
    on_end: Callable[[RowOutcome], None] | None = None


class Row:
    """One request while its answer grows."""

    def __init__(
        self, control: RowControl, *, eos: frozenset[int], max_tokens: int, prompt_tokens: int
    ) -> None:
        self._control, self._eos, self._prompt_tokens = control, eos, prompt_tokens
        self._max_tokens = min(max_tokens, control.max_tokens or max_tokens)
        self._tokens: list[int] = []
        self._ruling: Ruling | None = None
        self.outcome: RowOutcome | None = None

    def rule(self, ruling: Ruling) -> None:
        """Tell the caller what was decided; a stopped row gets no token."""
        self._ruling = ruling
        if self._control.on_ruling is not None:
            self._control.on_ruling(ruling)
        if ruling.stops:
            self.end("flag")

    def check_caller(self) -> None:
        """End the row when nobody waits for it any more."""
        deadline = self._control.deadline
        if self._control.cancelled.is_set():
            self.end("cancelled")
        elif deadline is not None and time.monotonic() >= deadline:
            self.end("timeout")

    def take(self, token: int) -> None:
        """One more token, unless the row has ended."""
        self.check_caller()
        if self.outcome is not None:
            return
        self._tokens.append(token)
        if token in self._eos or self._completes(token):
            self.end("stop")
        elif len(self._tokens) >= self._max_tokens:
            self.end("length")

    def replay(self, ids: Sequence[int]) -> None:
        """The best beam's tokens; one shorter than the longest is filled up with -1 or eos."""
        for token in ids:
            if token < 0 or self.outcome is not None:
                return
            self.take(token)

    def end(self, finish: str) -> RowOutcome:
        """Close the row; the first reason stands."""
        if self.outcome is None:
            self.outcome = RowOutcome(
                token_ids=tuple(self._tokens),
                finish=finish,
                ruling=self._ruling,
                prompt_tokens=self._prompt_tokens,
            )
            if self._control.on_end is not None:
                self._control.on_end(self.outcome)
        return self.outcome

    def _completes(self, token: int) -> bool:
        return self._control.on_token is not None and self._control.on_token(token)


class RowsCriterion(StoppingCriteria):
    """Ends rows; refuses to let a first token out before every row was judged."""

    def __init__(self, rows: Sequence[Row], call: PromptCall | None, *, beams: bool) -> None:
        self._rows, self._call, self._beams = rows, call, beams
        self._ruled = False

    def rule(self) -> None:
        """Hand out the rulings, once."""
        if self._call is None or self._ruled:
            return
        self._call.settle()
        self._ruled = True
        for number, row in enumerate(self._rows):
            row.rule(self._call.ruling(number))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done: (rows,) bool. A beam search asks for several per request."""
        self.rule()
        if self._beams:
            for row in self._rows:
                row.check_caller()
        else:
            for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                row.take(token)
        done = torch.tensor([row.outcome is not None for row in self._rows])
        return done.to(input_ids.device).repeat_interleave(input_ids.shape[0] // len(done))
