"""One guarded forward pass: what was read at the last prompt position, and what follows from it.

A `PromptCall` belongs to one call of the model and dies with it; hooks find it through a context
variable. Rows are the model's rows: a beam search has several, grouped, for one request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.errors import DetectorError, UnsupportedModelError
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.detectors import AnyDetector, DecisionLike
    from guardrail.policy import Policy

log = logging.getLogger("guardrail")


class PrefillDoneError(Exception):
    """Leaves a forward pass whose remaining layers nobody needs; never reaches a caller."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What happened to one request. `row` is its first row in `decision`."""

    action: Action
    stops: bool
    failed: bool
    strength: float
    decision: DecisionLike | None
    row: int


@dataclass(slots=True, kw_only=True)
class PromptCall:
    """State of one call. `layers` are read; without a detector they are only recorded.

    `policy` None applies the detector's edits and stops nothing, for fitting.
    """

    prompt_len: int
    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    detector: AnyDetector | None = None
    policy: Policy | None = None
    leave_after_readout: bool = False
    residuals: dict[int, Tensor] = field(default_factory=dict)
    _index: int | None = None
    _edited: slice | None = None
    _decision: DecisionLike | None = None
    _failed: list[bool] = field(default_factory=list)
    _beyond: list[bool] = field(default_factory=list)  # steering cannot reach these rows
    _row_kinds: list[str] = field(default_factory=list)
    _delta: Tensor | None = None
    _edit_known: bool = False

    @property
    def decided(self) -> bool:
        """Whether the readout layers have been seen (or the detector failed on them)."""
        return len(self._row_kinds) > 0

    def enter(self, past: int, length: int) -> None:
        """A forward pass over the absolute positions [past, past + length) begins."""
        last = self.prompt_len - 1
        self._index = last - past if 0 <= last - past < length else None
        tokens = self.detector.steer_tokens if self.detector is not None else 0
        first, end = max(last - past, 0), min(last + 1 + tokens - past, length)
        self._edited = slice(first, end) if first < end else None

    @property
    def finished(self) -> bool:
        """Whether no later forward pass can concern this call."""
        return self.decided and self._edit_known and self._delta is None

    def see(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Layer `layer` gave `hidden` (rows, length, d_model); returns its replacement, if any."""
        if self._index is not None and not self.decided and layer in self.layers:
            # A copy: a view would keep the residuals of every position of the prompt.
            self.residuals[layer] = hidden[:, self._index].detach().clone()
            if layer == self.layers[-1]:
                self._decide(hidden.shape[0])
        if self.detector is None or layer != self.detector.steering_layer or not self.decided:
            return None
        if self._index is not None and not self._edit_known:
            self._find_edit(hidden[:, self._index].detach())
            if self.leave_after_readout or self._everyone_stops:
                raise PrefillDoneError
        if self._delta is None or self._edited is None:
            return None
        edited = hidden.clone()
        exact = torch.promote_types(hidden.dtype, torch.float32)  # adding zero changes no bit
        delta = self._delta.to(hidden.device, exact)[:, None]
        edited[:, self._edited] = (hidden[:, self._edited].to(exact) + delta).to(hidden.dtype)
        return edited

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

    def require_decision(self) -> None:
        """Nothing may leave the model before its prompt was read."""
        if not self.decided:
            raise DetectorError(
                "the model went on, but the guard never saw its last prompt position; is it "
                "compiled or wrapped so that hooks do not run? Guard the plain model"
            )

    def settle(self) -> None:
        """The prefill is over, no token is out: a row that still waits for its edit has failed."""
        self.require_decision()
        if not self._edit_known and self._decision is not None:
            self._edit_known = True
            self._fail_steered([True] * len(self._failed), "the steering layer never ran")

    def ruling(self, request: int) -> Ruling:
        """What happened to request number `request`; its beams agree, so the first one speaks."""
        row = request * (len(self._row_kinds) // len(self.kinds))
        delta = None if self.leave_after_readout else self._delta
        return Ruling(
            action=self._applied(row),
            stops=self._stops(row),
            failed=self._failed[row],
            strength=0.0 if delta is None else float(delta[row].norm()),
            decision=self._decision,
            row=row,
        )

    def _decide(self, rows: int) -> None:
        """Ask the detector once, then leave if nobody needs the rest of the forward pass."""
        if rows % len(self.kinds):
            raise DetectorError(f"the model ran {rows} rows for {len(self.kinds)} requests")
        self._row_kinds = [kind for kind in self.kinds for _ in range(rows // len(self.kinds))]
        self._failed, self._beyond = [False] * rows, [False] * rows
        if self.detector is not None:
            try:
                self._decision = self.detector.decide(self.recorded(), self._row_kinds)
                self._failed = list(self._decision.failed)
            except Exception:  # the fail-mode border: the policy says what an outage means
                log.exception("the detector failed on %d rows", rows)
                self._decision, self._failed = None, [True] * rows
        steers = any(self._applied(row) is Action.STEER for row in range(rows))
        if self._everyone_stops or (self.leave_after_readout and not steers):
            raise PrefillDoneError
        shadow = self.policy is not None and self.policy.mode == "shadow"
        no_edit = self.detector is None or self.detector.steering_layer is None
        self._edit_known = no_edit or shadow or self._decision is None

    def _find_edit(self, residual: Tensor) -> None:
        """Keep each row's edit; it is the same vector at every position it is added to."""
        self._edit_known = True
        if self.detector is None or self._decision is None:
            return
        residual = residual.float().cpu()
        broken = ~residual.isfinite().all(dim=1)
        self._fail_steered(broken.tolist(), "no finite residual at the steering layer")
        try:  # a broken row must not spoil the others
            whole = residual.masked_fill(broken[:, None], 0.0)
            delta = self.detector.edit(self._decision, whole, self._row_kinds)
            if delta.shape != residual.shape or not bool(delta.isfinite().all()):
                raise DetectorError(f"an edit of shape {tuple(delta.shape)} cannot be added")
        except Exception:  # the fail-mode border again: a row that cannot be steered has failed
            log.exception("the detector could not say how to steer")
            self._fail_steered([True] * len(self._failed), "no edit")
            return
        untouched = torch.tensor(self._failed)
        delta = delta.masked_fill(untouched[:, None], 0.0)
        self._beyond = (~delta.any(dim=1)).tolist()
        self._delta = delta if bool(delta.any()) else None

    def _fail_steered(self, bad: Sequence[bool], why: str) -> None:
        """Mark those of the bad rows that were to be steered as failed."""
        new = [row for row, b in enumerate(bad) if b and self._applied(row) is Action.STEER]
        if new:
            log.error("%d of %d rows cannot be steered: %s", len(new), len(bad), why)
        for row in new:
            self._failed[row] = True

    def _applied(self, row: int) -> Action:
        """What is done to a row: the decision, under the policy's mode and fail mode."""
        if self.policy is not None and self.policy.mode == "shadow":
            return Action.PASS
        if self._failed[row] or self._decision is None:
            closed = self.policy is None or self.policy.fail == "closed"
            return Action.FLAG if closed else Action.PASS
        action = self._decision.actions[row]
        if action is not Action.STEER:
            return action
        if self.detector is None or self.detector.steering_layer is None:
            return Action.PASS
        if self._beyond[row]:  # already more unsafe than what an edit may reach
            may_flag = self.policy is not None and Action.FLAG in self.policy.actions
            return Action.FLAG if may_flag else Action.PASS
        return action

    def _stops(self, row: int) -> bool:
        """Whether a row gets no answer from the model; an outage is nothing to annotate."""
        if self.policy is None or self._applied(row) is not Action.FLAG:
            return False
        return self._failed[row] or self.policy.on_flag != "annotate"

    @property
    def _everyone_stops(self) -> bool:
        return self.detector is not None and all(map(self._stops, range(len(self._failed))))
