"""One guarded forward pass: what was read at the last prompt position, and what follows from it.

A `PromptCall` belongs to one call of the model and dies with it; hooks find it through a context
variable. It asks a detector (`DetectorLike`) once, keeps what was decided for each row under the
policy's mode and fail mode (`RowRulings`), and adds the edits. Rows are the model's rows: a beam
search has several, grouped, for one request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from guardrail.errors import DetectorError, UnsupportedModelError
from guardrail.model.decoder import moved, require_length
from guardrail.model.rerun import Span
from guardrail.policy import Policy
from guardrail.policy.acting import applied, may_steer, stops
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from guardrail.types import RowParts

log = logging.getLogger("guardrail")

D = TypeVar("D")


class DecisionLike(Protocol):
    """What a detector says about each row."""

    @property
    def scores(self) -> Tensor:
        """One for each row, (rows,) float64."""

    @property
    def actions(self) -> Sequence[Action]:
        """What the thresholds ask for, per row, within the policy."""

    @property
    def failed(self) -> Sequence[bool]:
        """Rows that could not be scored."""


class FoundLike(Protocol):
    """The highest score of a row beside its last position."""

    @property
    def score(self) -> float:
        """-inf where nothing was read, NaN where a reading failed."""

    @property
    def alone(self) -> bool:
        """Whether the last position does not count beside it."""

    @property
    def earlier(self) -> bool:
        """Whether it is of a message that was answered already."""


class ReadingLike(Protocol):
    """What is read of a batch beside the last positions, in the same pass."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers it has to see, ascending; none where it reads nothing of this batch."""

    def attends(self, mask: Tensor) -> None:
        """The decoder's mask, (rows, positions so far)."""

    def see(self, layer: int, hidden: Tensor, first: int) -> None:
        """A layer's output (rows, length, d_model), whose first position is number `first`."""

    def found(self) -> Sequence[FoundLike]:
        """One for each request, once its layers were seen."""


class WatchLike(Protocol):
    """What is read of answers in the steps after the prompt."""

    @property
    def layers(self) -> Collection[int]:
        """Layers it has to see."""

    def see(self, layer: int, hidden: Tensor) -> None:
        """A layer's output at the newest token, (rows, d_model)."""

    def scores(self) -> Sequence[float] | None:
        """One for each row, of the tokens so far, once a step's layers were seen.

        None where it is too early for any; not finite where a reading failed.
        """


class DetectorLike(Protocol[D]):
    """Pure tensors on the CPU in, tensors on the CPU out; it never sees the model."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers read at the last position, ascending."""

    @property
    def reads(self) -> tuple[int, ...]:
        """Layers of any reading, ascending."""

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> ReadingLike | None:
        """What is to be read of a batch beside the last positions."""

    @property
    def steering_layer(self) -> int | None:
        """Where the edit is added; None = detect only."""

    @property
    def steer_tokens(self) -> int:
        """How many generated tokens are edited beside the last prompt position."""

    def decide(
        self,
        residuals: Tensor,
        kinds: Sequence[str],
        beside: Sequence[Any] = (),
        floors: Sequence[float] = (),
    ) -> D:
        """Judge residuals (rows, k, d_model), float32, and what its reading found `beside` them.

        No row's score lies below its floor.
        """

    def edit(self, decision: D, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """What to add to the residual (rows, d_model), float32; zero rows where nothing is."""


AnyDetector = DetectorLike[Any]

# Fitting applies edits and looks at what they do: what is beyond their reach is no finding there.
_FITTING = Policy(actions=frozenset({Action.STEER}))


@dataclass(frozen=True, slots=True)
class Ruling:
    """What happened to one request. `row` is its first row in `decision`.

    `found` is what was read of it beside the last position.
    """

    action: Action
    stops: bool
    failed: bool
    strength: float
    decision: DecisionLike | None
    row: int
    found: FoundLike | None = None


@dataclass(slots=True)
class RowRulings:
    """The rows of one call once they were judged. `kinds` names each row's modality.

    `policy` None applies edits and stops nothing, for fitting. `failed` rows have no decision or no
    edit, `beyond` rows are out of steering's reach, `earlier` rows score by an answered message.
    """

    policy: Policy | None
    can_steer: bool
    kinds: list[str]
    failed: list[bool]
    beyond: list[bool]
    earlier: list[bool]
    decision: DecisionLike | None = None

    @classmethod
    def unjudged(cls, policy: Policy | None, kinds: list[str], *, can_steer: bool) -> RowRulings:
        """The rows before anybody was asked."""
        failed, beyond, earlier = ([False] * len(kinds) for _ in range(3))
        return cls(policy, can_steer, kinds, failed, beyond, earlier)

    def fail_steered(self, bad: Sequence[bool], why: str) -> None:
        """Mark those of the bad rows that were to be steered as failed."""
        new = [row for row, b in enumerate(bad) if b and self.applied(row) is Action.STEER]
        if new:
            log.error("%d of %d rows cannot be steered: %s", len(new), len(bad), why)
        for row in new:
            self.failed[row] = True

    def fail_all_steered(self, why: str) -> None:
        """Mark every row that was to be steered as failed."""
        self.fail_steered([True] * len(self.kinds), why)

    def applied(self, row: int) -> Action:
        """What is done to a row."""
        asked = None  # an outage
        if self.decision is not None and not self.failed[row]:
            asked = self.decision.actions[row]
        policy = self.policy or _FITTING
        return applied(
            asked,
            policy,
            can_steer=self.can_steer,
            beyond=self.beyond[row],
            earlier=self.earlier[row],
        )

    def stops(self, row: int) -> bool:
        """Whether a row gets no answer from the model; fitting stops nobody."""
        policy = self.policy
        if policy is None:
            return False
        return stops(self.applied(row), policy.on_flag, outage=self.failed[row])

    @property
    def steers(self) -> bool:
        """Whether any row is to be steered."""
        return any(self.applied(row) is Action.STEER for row in range(len(self.kinds)))

    @property
    def everyone_stops(self) -> bool:
        """Whether nobody needs the model any more."""
        return all(map(self.stops, range(len(self.kinds))))


class PrefillDoneError(Exception):
    """Leaves a forward pass whose remaining layers nobody needs; never reaches a caller."""


@dataclass(slots=True, kw_only=True)
class PromptCall:
    """State of one call. `layers` are read; without a detector they are only recorded.

    `policy` None applies the detector's edits and stops nothing, for fitting. `floors` are scores
    that the requests have at least; `reading` reads more than the last position, `watch` what the
    model says after it.
    """

    prompt_len: int
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    detector: AnyDetector | None = None
    policy: Policy | None = None
    leave_after_readout: bool = False
    floors: tuple[float, ...] = ()
    reading: ReadingLike | None = None
    watch: WatchLike | None = None
    residuals: dict[int, Tensor] = field(default_factory=dict)
    found: Sequence[FoundLike] = ()
    _past: int = 0
    _length: int = 0
    _index: int | None = None
    _edited: slice | None = None
    _rows: RowRulings | None = None
    _delta: Tensor | None = None
    _edit_known: bool = False
    _span: Span | None = None  # within a pass whose edit lies before the readout
    _repeating: bool = False

    @property
    def decided(self) -> bool:
        """Whether the readout layers have been seen (or the detector failed on them)."""
        return self._rows is not None

    @property
    def finished(self) -> bool:
        """Whether no layer that runs from now on concerns this call."""
        if self._repeating:
            return True
        done = self.decided and self._edit_known and self._delta is None
        return done and self.watch is None

    def concerns(self, layer: int) -> bool:
        """Whether what a layer gives from now on is of interest here."""
        if self.watch is None or self._repeating or not self.decided:
            return not self.finished
        return layer in self.watch.layers or not self._edit_known or self._delta is not None

    @property
    def may_edit(self) -> bool:
        """Whether this call could change anything in the residual stream."""
        if self.detector is None or self.detector.steering_layer is None:
            return False
        return self.policy is None or may_steer(self.policy)

    @property
    def may_edit_tokens(self) -> bool:
        """Whether passes after the prompt may have to be edited."""
        return self.may_edit and self.detector is not None and self.detector.steer_tokens > 0

    def enter(self, past: int, length: int, mask: Tensor | None = None) -> None:
        """A forward pass over the absolute positions [past, past + length) begins.

        `mask` is the decoder's, (rows, past + length), if it was given such a one.
        """
        last = self.prompt_len - 1
        self._past = past
        if self.reading is not None and mask is not None and not self.decided:
            self.reading.attends(mask)
        # Counted from the end: some models run their last layers on the last positions alone.
        self._length = length
        self._index = last - past - length if 0 <= last - past < length else None
        tokens = self.detector.steer_tokens if self.detector is not None else 0
        first, end = max(last - past, 0), min(last + 1 + tokens - past, length)
        self._edited = slice(first - length, (end - length) or None) if first < end else None
        self._span = None
        if self._index is not None and not self.decided and self._edits_before_reading:
            self._span = Span(self._index, empty=past == 0)

    def before(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Layer `layer` is about to run."""
        if self._span is not None and self._steers_at < layer <= self._decides_at:
            self._span.entered(layer, module, args, kwargs)

    def see(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Layer `layer` gave `hidden` (rows, length, d_model); returns its replacement, if any."""
        if self._heard(layer, hidden):
            return None
        if self._index is not None or self._edited is not None:
            require_length(layer, hidden, self._length)
        span = self._span
        if span is not None and layer == self._steers_at:
            span.begin(layer, hidden)
        elif span is not None and self._steers_at < layer <= self._decides_at:
            span.left(layer, hidden)
        if self.decided:
            return self._edit_here(layer, hidden)
        if self.reading is not None and layer in self.reading.layers:
            self.reading.see(layer, hidden, self._past + self._length - hidden.shape[1])
        if self._index is not None and layer in self.layers:
            # A copy: a view would keep the residuals of every position of the prompt.
            self.residuals[layer] = hidden[:, self._index].detach().clone()
        if self._index is not None and layer == self._decides_at:
            self._decide(hidden.shape[0])
            if span is not None:
                self._span = None
                return self._edit_before(span)
        return self._edit_here(layer, hidden)

    def _heard(self, layer: int, hidden: Tensor) -> bool:
        """Let the watch see a step of decoding; true where nobody edits it, so that was all."""
        if self.watch is None or self._past + self._length <= self.prompt_len:
            return False
        if layer in self.watch.layers:
            self.watch.see(layer, hidden[:, -1])
        return self._edited is None or self._delta is None

    def recorded(self) -> Tensor:
        """All readout layers, float32 on the CPU: (rows, k, d_model)."""
        missing = [layer for layer in self.layers if layer not in self.residuals]
        if self.residuals and missing:
            raise UnsupportedModelError(
                f"the model did not run its layers {missing} for this prompt (cross-attention "
                "layers run for pictures only); read other layers"
            )
        self.require_decision()
        return torch.stack([self.residuals[i].float().cpu() for i in self.layers], dim=1)

    def require_decision(self) -> RowRulings:
        """Nothing may leave the model before its prompt was read."""
        if self._rows is None:
            raise DetectorError(
                "the model went on, but the guard never saw its last prompt position; is it "
                "compiled or wrapped so that hooks do not run? Guard the plain model"
            )
        return self._rows

    def settle(self) -> None:
        """The prefill is over, no token is out: a row that still waits for its edit has failed."""
        rows = self.require_decision()
        if not self._edit_known and rows.decision is not None:
            self._edit_known = True
            rows.fail_all_steered("the steering layer never ran")

    def ruling(self, request: int) -> Ruling:
        """What happened to request number `request`; its beams agree, so the first one speaks."""
        rows = self.require_decision()
        row = request * (len(rows.kinds) // len(self.kinds))
        delta = None if self.leave_after_readout else self._delta
        return Ruling(
            action=rows.applied(row),
            stops=rows.stops(row),
            failed=rows.failed[row],
            strength=0.0 if delta is None else float(delta[row].norm()),
            decision=rows.decision,
            row=row,
            found=self.found[request] if self.found else None,
        )

    @property
    def _steers_at(self) -> int:
        at = None if self.detector is None else self.detector.steering_layer
        return -1 if at is None else at

    @property
    def _decides_at(self) -> int:
        """The deepest layer that is read of this batch."""
        return max((*self.layers, *(() if self.reading is None else self.reading.layers)))

    @property
    def _edits_before_reading(self) -> bool:
        return self.may_edit and self._steers_at < self._decides_at

    def _decide(self, count: int) -> None:
        """Ask the detector once, then leave if nobody needs the rest of the forward pass."""
        if count % len(self.kinds):
            raise DetectorError(f"the model ran {count} rows for {len(self.kinds)} requests")
        each = count // len(self.kinds)
        kinds = [kind for kind in self.kinds for _ in range(each)]
        rows = self._rows = RowRulings.unjudged(self.policy, kinds, can_steer=self.may_edit)
        if self.detector is not None:
            try:
                self.found = () if self.reading is None else self.reading.found()
                beside = [found for found in self.found for _ in range(each)]
                floors = [floor for floor in self.floors for _ in range(each)]
                rows.decision = self.detector.decide(self.recorded(), kinds, beside, floors)
                rows.failed = list(rows.decision.failed)
                for row, found in enumerate(beside):
                    score = float(rows.decision.scores[row])
                    rows.earlier[row] = found.earlier and found.score == score
            except Exception:  # the fail-mode border: the policy says what an outage means
                log.exception("the detector failed on %d rows", count)
                rows.decision, rows.failed = None, [True] * count
        if rows.everyone_stops or (self.leave_after_readout and not rows.steers):
            raise PrefillDoneError
        self._edit_known = not self.may_edit or rows.decision is None

    def _edit_here(self, layer: int, hidden: Tensor) -> Tensor | None:
        """The edit, where this is its layer and the decision is known."""
        if layer != self._steers_at or self._rows is None:
            return None
        if self._index is not None and not self._edit_known:
            self._find_edit(self._rows, hidden[:, self._index].detach())
        if self._delta is None or self._edited is None:
            return None
        return moved(hidden, self._edited, self._delta)

    def _edit_before(self, span: Span) -> Tensor | None:
        """What the last readout layer gives for an edit at an earlier layer, decided just now."""
        rows = self.require_decision()
        if self._edit_known or span.residual is None or self._edited is None:
            return None
        self._find_edit(rows, span.residual)
        if self._delta is None:
            return None
        self._repeating = True
        try:
            edited = moved(span.start, self._edited, self._delta)
            return span.again(edited, self._delta.any(dim=1))
        except Exception:  # the fail-mode border: the cache is as it was, and nothing is edited
            log.exception("the layers behind the edit could not be run again")
            self._delta = None
            rows.fail_all_steered("no second run")
        finally:
            self._repeating = False
        if rows.everyone_stops:
            raise PrefillDoneError
        return None

    def _find_edit(self, rows: RowRulings, residual: Tensor) -> None:
        """Keep each row's edit; it is the same vector at every position it is added to.

        Leaves the pass if nobody needs the rest of it.
        """
        self._edit_known = True
        delta = self._edits(rows, residual.float().cpu())
        if delta is not None:
            rows.beyond = (~delta.any(dim=1)).tolist()
            self._delta = delta if bool(delta.any()) else None
        if self.leave_after_readout or rows.everyone_stops:
            raise PrefillDoneError

    def _edits(self, rows: RowRulings, residual: Tensor) -> Tensor | None:
        """What to add to each row, (rows, d_model); None if the detector cannot say."""
        if self.detector is None or rows.decision is None:
            return None
        broken = ~residual.isfinite().all(dim=1)
        rows.fail_steered(broken.tolist(), "no finite residual at the steering layer")
        try:  # a broken row must not spoil the others
            whole = residual.masked_fill(broken[:, None], 0.0)
            delta = self.detector.edit(rows.decision, whole, rows.kinds)
            if delta.shape != residual.shape or not bool(delta.isfinite().all()):
                raise DetectorError(f"an edit of shape {tuple(delta.shape)} cannot be added")
        except Exception:  # the fail-mode border again: a row that cannot be steered has failed
            log.exception("the detector could not say how to steer")
            rows.fail_all_steered("no edit")
            return None
        return delta.masked_fill(torch.tensor(rows.failed)[:, None], 0.0)
