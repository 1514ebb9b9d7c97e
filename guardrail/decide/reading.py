"""What is read in a prefill beside the last position: earlier answer headers, and tokens of parts.

In a causal decoder the residual at a position depends on nothing behind it. So at an answer header
stands what that turn's own last prompt position was, and every turn of a chat is judged again, for
nothing; windows judge the words and pictures themselves (see `guardrail.decide.windows`). The
highest of all is what a request scores at least; where windows suffice, ends of turns do not count.
A reading belongs to one batch and dies with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.errors import DetectorError
from guardrail.types import Where

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from guardrail.decide.linear import Readout
    from guardrail.decide.windows import WindowReadout
    from guardrail.types import Header, RowParts, TurnSpan

LARGEST = 65_504.0  # float16's


@dataclass(kw_only=True)
class PartsReading:
    """Where things stand in a batch of prompts of `prompt_len` positions, padded on the left.

    `rows` say what each prompt consists of, `judged` the roles of messages whose tokens count,
    `turns` whether earlier answer headers do.
    """

    rows: Sequence[RowParts]
    judged: Collection[str]
    prompt_len: int
    turns: bool = True
    _mask: Tensor | None = None

    def attends(self, mask: Tensor) -> None:
        """The decoder was given this mask, (rows, positions so far); the last one counts."""
        self._mask = mask

    def headers(self) -> Iterator[tuple[int, int, Header]]:
        """Row and position of every earlier answer header, in order.

        Where a chat begins with an answer, nothing was asked that could be judged.
        """
        for row, parts in enumerate(self.rows if self.turns else ()):
            for header in parts.headers:
                if header.message > 0:
                    yield row, self.prompt_len - parts.length + header.position, header

    def spans(self) -> Iterator[tuple[int, TurnSpan]]:
        """Row and span of every judged message, in order."""
        for row, parts in enumerate(self.rows):
            for turn in parts.turns:
                if turn.role in self.judged:
                    yield row, turn

    def places(self, row: int, turn: TurnSpan) -> Tensor:
        """The positions of a message's tokens, (n,), without those that the model hides.

        Some models hide picture slots they have no use for, as all do with padding.
        """
        pad = self.prompt_len - self.rows[row].length
        places = torch.arange(pad + turn.start, pad + turn.stop)
        if self._mask is None or self._mask.shape[1] < pad + turn.stop:
            return places
        each = len(self._mask) // len(self.rows)  # beams of one request are alike
        return places[self._mask[row * each].cpu().bool()[places]]

    def tokens_of(self, row: int, message: int) -> int:
        """How many tokens are read of a message; 0 where it is not judged, or not shown."""
        turns = (t for t in self.rows[row].turns if t.message == message and t.role in self.judged)
        return sum(len(self.places(row, turn)) for turn in turns)

    def tokens_of_last(self, row: int) -> int:
        """The same of the prompt's last message."""
        parts = self.rows[row]
        shown = [turn.message for turn in parts.turns]
        return self.tokens_of(row, max([*shown, *parts.unread], default=0))

    def first_of_each(self, hidden: Tensor, first: int) -> Tensor:
        """One row a request, and no position behind the prompt: (rows, length, d_model)."""
        each = len(hidden) // len(self.rows)
        return hidden[::each, : self.prompt_len - first].detach()


@dataclass(kw_only=True)
class TokenReading(PartsReading):
    """Residuals for fitting: of earlier headers at all `layers`, of tokens at `token_layers`.

    `tokens` are (n, d_model) float16 by layer and judged message, `heads` (d_model,) float32 by
    layer and header, both in the order of `spans` and `headers`.
    """

    layers: tuple[int, ...]
    token_layers: tuple[int, ...]
    tokens: dict[int, list[Tensor]] = field(default_factory=dict)
    heads: dict[int, list[Tensor]] = field(default_factory=dict)

    def see(self, layer: int, hidden: Tensor, first: int) -> None:
        """Layer `layer` gave `hidden` (rows, length, d_model), from position `first` on."""
        hidden = self.first_of_each(hidden, first)
        if layer in self.token_layers:
            self.tokens[layer] = [
                hidden[row, self._within(self.places(row, turn) - first)]
                .float()
                .clamp(-LARGEST, LARGEST)
                .half()
                .cpu()
                for row, turn in self.spans()
            ]
        # some layers run for the last one only
        nothing = torch.full((hidden.shape[-1],), torch.nan)
        self.heads[layer] = [
            hidden[row, at - first].to("cpu", torch.float32, copy=True) if at >= first else nothing
            for row, at, _ in self.headers()
        ]

    def _within(self, places: Tensor) -> Tensor:
        if places.numel() and int(places.min()) < 0:
            raise DetectorError("a prompt was not read from its first own token on")
        return places

    def found(self) -> list[Found]:
        """Nothing is judged here."""
        return [NOTHING] * len(self.rows)


@dataclass(frozen=True, slots=True)
class Found:
    """The highest score beside the last position, and where; NaN where a reading failed.

    `alone` says that the last position does not count beside it.
    """

    score: float
    where: Where | None
    alone: bool = False

    @property
    def earlier(self) -> bool:
        """Whether it is of a message that was answered already."""
        return self.where is not None and self.where.earlier


NOTHING = Found(-math.inf, None)


@dataclass(kw_only=True)
class PromptReading(PartsReading):
    """The scores of one batch. Of a token only two numbers a head and layer are kept."""

    readout: Readout
    windows: WindowReadout | None
    _heads: dict[int, dict[tuple[int, int], Tensor]] = field(default_factory=dict)
    _products: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have to be seen, ascending; none where there is nothing beside."""
        read: set[int] = set()
        if self.windows is not None and any(True for _ in self.spans()):
            read |= set(self.windows.layers)
        if any(True for _ in self.headers()):
            read |= set(self.readout.layers)
        return tuple(sorted(read))

    def see(self, layer: int, hidden: Tensor, first: int) -> None:
        """Layer `layer` gave `hidden` (rows, length, d_model), from position `first` on."""
        hidden = self.first_of_each(hidden, first)
        if self.windows is not None and layer in self.windows.layers:
            self._products.setdefault(layer, []).append(self.windows.products(layer, hidden))
        if layer in self.readout.layers:
            kept = self._heads.setdefault(layer, {})
            for row, at, _ in self.headers():
                if first <= at < first + hidden.shape[1]:
                    kept[row, at] = hidden[row, at - first].to(torch.float32, copy=True)

    def found(self) -> list[Found]:
        """The highest score of each row, once all layers were seen.

        Raises:
            DetectorError: a layer did not run at every position of the prompt.
        """
        best = [NOTHING] * len(self.rows)
        for row, candidate in [*self._found_in_turns(), *self._found_in_parts()]:
            # NaN outranks all: a reading that failed is no low score
            if not candidate.score <= best[row].score and not math.isnan(best[row].score):
                best[row] = candidate
        return [
            replace(found, alone=self._suffices(self.tokens_of_last(row)))
            for row, found in enumerate(best)
        ]

    def _suffices(self, tokens: int) -> bool:
        return self.windows is not None and self.windows.suffice(tokens)

    def _found_in_turns(self) -> Iterator[tuple[int, Found]]:
        for row, header, score in self._turns():
            where = Where(
                reading="turn", message=header.message - 1, role=header.asked_by, earlier=True
            )
            yield row, Found(score, where)

    def _found_in_parts(self) -> Iterator[tuple[int, Found]]:
        for row, turn, places, products in self._parts():
            highest = None if self.windows is None else self.windows.highest(products)
            if self.windows is not None and highest is not None:
                score, end = highest
                start = int(places[max(0, end - self.windows.width + 1)])
                answered = any(h.message > turn.message for h in self.rows[row].headers)
                yield row, Found(score, _window_at(turn, start, int(places[end]) + 1, answered))

    def scores(self, row: int) -> dict[int, float]:
        """Every score of a row that `found` is the highest of, by the position it ends at.

        Positions count from the row's first token. Not finite where a reading failed.

        Raises:
            DetectorError: as in `found`.
        """
        ends = [(header.position, score) for of, header, score in self._turns() if of == row]
        for of, _, places, products in self._parts():
            if of == row and self.windows is not None:
                scores = self.windows.scores(products).tolist()
                ends += zip(places[self.windows.first - 1 :].tolist(), scores, strict=True)
        found: dict[int, float] = {}
        for position, score in ends:
            found[position] = max(score, found.get(position, score))
        return found

    def _turns(self) -> Iterator[tuple[int, Header, float]]:
        """What the turns of before scored when they were the last, where their ends count."""
        places = [
            (row, at, header)
            for row, at, header in self.headers()
            if not self._suffices(self.tokens_of(row, header.message - 1))
        ]
        if not places:
            return
        read = [self._heads.get(layer, {}) for layer in self.readout.layers]
        if any((row, at) not in layer for layer in read for row, at, _ in places):
            raise DetectorError("an answer header of the prompt was not read")
        residuals = torch.stack(
            [torch.stack([layer[row, at] for row, at, _ in places]).cpu() for layer in read], dim=1
        )
        scores = self.readout.scores(residuals, [header.kind for _, _, header in places])
        for (row, _, header), score in zip(places, scores.tolist(), strict=True):
            yield row, header, score if math.isfinite(score) else math.nan

    def _parts(self) -> Iterator[tuple[int, TurnSpan, Tensor, Tensor]]:
        """Row and span of every judged message, its tokens' positions in the row and products."""
        windows, spans = self.windows, list(self.spans())
        if windows is None or not spans:
            return
        read = [self._products.get(layer, []) for layer in windows.layers]
        if any(sum(part.shape[1] for part in layer) != self.prompt_len for layer in read):
            raise DetectorError(
                "a layer whose windows are read did not run at every position of the prompt"
            )
        products = torch.stack([torch.cat(layer, 1).cpu() for layer in read], dim=2)
        for row, turn in spans:
            places = self.places(row, turn)
            pad = self.prompt_len - self.rows[row].length
            yield row, turn, places - pad, products[row, places]


def _window_at(turn: TurnSpan, start: int, stop: int, earlier: bool) -> Where:
    """A window over the positions [start, stop) of a prompt; it is of the part in which it ends."""
    part = next((s for s in reversed(turn.stretches) if s.start < stop and s.stop > start), None)
    slots = None
    if part is not None and part.kind != "text":
        slots = max(start, part.start) - part.start, stop - 1 - part.start, part.stop - part.start
    return Where(
        reading="window",
        message=turn.message,
        role=turn.role,
        part=None if part is None else part.part,
        kind=None if part is None else part.kind,
        start=start,
        stop=stop,
        slots=slots,
        earlier=earlier,
    )
