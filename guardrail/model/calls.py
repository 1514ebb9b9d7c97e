"""One guarded forward pass: what was read at the last prompt position, and what follows from it.

A `PromptCall` belongs to one call of the model and dies with it; hooks find it through a context
variable. Rows are the model's rows: a beam search has several, grouped, for one request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor

from guardrail.errors import ConfigurationError, DetectorError
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.policy import Policy

log = logging.getLogger("guardrail")


class DecisionLike(Protocol):
    """What a detector says about each row."""

    @property
    def actions(self) -> Sequence[Action]:
        """What the thresholds ask for, per row, within the policy."""

    @property
    def failed(self) -> Sequence[bool]:
        """Rows that could not be scored."""


D = TypeVar("D")


class DetectorLike(Protocol[D]):
    """Pure tensors on the CPU in, tensors on the CPU out; it never sees the model."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Readout layers, ascending."""

    @property
    def steering_layer(self) -> int | None:
        """Where the edit is added, at or after the last readout layer; None = detect only."""

    @property
    def steer_tokens(self) -> int:
        """How many generated tokens are edited beside the last prompt position."""

    def decide(self, residuals: Tensor, kinds: Sequence[str]) -> D:
        """Judge residuals (rows, k, d_model), float32."""

    def edit(self, decision: D, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """What to add to the residual (rows, d_model), float32; zero rows where nothing is."""


AnyDetector = DetectorLike[Any]


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
            self.residuals[layer] = hidden[:, self._index].detach()
            if layer == self.layers[-1]:
                self._decide(hidden.shape[0])
        if self.detector is None or layer != self.detector.steering_layer or not self.decided:
            return None
        if self._index is not None and not self._edit_known:
            self._find_edit(hidden[:, self._index].detach())
        if self._delta is None or self._edited is None:
            return None
        edited = hidden.clone()
        exact = torch.promote_types(hidden.dtype, torch.float32)  # adding zero changes no bit
        delta = self._delta.to(hidden.device, exact)[:, None]
        edited[:, self._edited] = (hidden[:, self._edited].to(exact) + delta).to(hidden.dtype)
        return edited

    def recorded(self) -> Tensor:
        """All readout layers, float32 on the CPU: (rows, k, d_model)."""
        self.require_decision()
        return torch.stack([self.residuals[i].float().cpu() for i in self.layers], dim=1)

    def require_decision(self) -> None:
        """Nothing may leave the model before its prompt was read."""
        if not self.decided:
            raise DetectorError(
                "the model went on, but the guard never saw its last prompt position; is it "
                "compiled or wrapped so that hooks do not run? Guard the plain model"
            )

    def ruling(self, request: int) -> Ruling:
        """What happened to request number `request`; its beams agree, so the first one speaks."""
        row = request * (len(self._row_kinds) // len(self.kinds))
        strength = 0.0 if self._delta is None else float(self._delta[row].norm())
        action = self._applied(row)
        return Ruling(
            action=action,
            stops=self._stops(action),
            failed=self._failed[row],
            strength=strength,
            decision=self._decision,
            row=row,
        )

    def _decide(self, rows: int) -> None:
        """Ask the detector once, then leave if nobody needs the rest of the forward pass."""
        if rows % len(self.kinds):
            raise DetectorError(f"the model ran {rows} rows for {len(self.kinds)} requests")
        self._row_kinds = [kind for kind in self.kinds for _ in range(rows // len(self.kinds))]
        self._failed = [False] * rows
        if self.detector is not None:
            try:
                self._decision = self.detector.decide(self.recorded(), self._row_kinds)
                self._failed = list(self._decision.failed)
            except Exception:  # the fail-mode border: the policy says what an outage means
                log.exception("the detector failed on %d rows", rows)
                self._decision, self._failed = None, [True] * rows
        everyone_stops = self.detector is not None and all(
            self._stops(self._applied(row)) for row in range(rows)
        )
        if self.leave_after_readout or everyone_stops:
            raise PrefillDoneError
        shadow = self.policy is not None and self.policy.mode == "shadow"
        no_edit = self.detector is None or self.detector.steering_layer is None
        self._edit_known = no_edit or shadow or self._decision is None

    def _find_edit(self, residual: Tensor) -> None:
        """Keep each row's edit; it is the same vector at every position it is added to."""
        self._edit_known = True
        if self.detector is None or self._decision is None:
            return
        try:
            delta = self.detector.edit(self._decision, residual.float().cpu(), self._row_kinds)
            if delta.shape != residual.shape or not bool(delta.isfinite().all()):
                raise DetectorError(f"an edit of shape {tuple(delta.shape)} cannot be added")
        except Exception:  # the fail-mode border again: a row that cannot be steered has failed
            log.exception("the detector could not say how to steer")
            steered = [action is Action.STEER for action in self._decision.actions]
            self._failed = [f or s for f, s in zip(self._failed, steered, strict=True)]
            return
        untouched = torch.tensor(self._failed)
        delta = delta.masked_fill(untouched[:, None], 0.0)
        self._delta = delta if bool(delta.any()) else None

    def _applied(self, row: int) -> Action:
        """What is done to a row: the decision, under the policy's mode and fail mode."""
        if self.policy is not None and self.policy.mode == "shadow":
            return Action.PASS
        if self._failed[row] or self._decision is None:
            closed = self.policy is None or self.policy.fail == "closed"
            return Action.FLAG if closed else Action.PASS
        action = self._decision.actions[row]
        if action is Action.STEER and self.policy is not None and not self._can_steer:
            return Action.FLAG if self.policy.unsteerable == "flag" else Action.PASS
        return action

    @property
    def _can_steer(self) -> bool:
        return self.detector is not None and self.detector.steering_layer is not None

    def _stops(self, action: Action) -> bool:
        """Whether a row with this action gets no answer from the model."""
        return (
            action is Action.FLAG and self.policy is not None and self.policy.on_flag != "annotate"
        )


def check_layers(detector: AnyDetector, layer_count: int) -> tuple[int, ...]:
    """The layers a detector needs hooks on; refuses those that cannot work in one pass."""
    layers, steering = detector.layers, detector.steering_layer
    if not layers or list(layers) != sorted(set(layers)):
        raise ConfigurationError(f"readout layers must ascend; got {layers}")
    if steering is not None and steering < layers[-1]:
        raise ConfigurationError(
            f"the steering layer ({steering}) must not lie before the last readout layer "
            f"({layers[-1]}): the decision would come too late; fit again"
        )
    needed = (*layers, *(() if steering is None or steering in layers else (steering,)))
    if needed[0] < 0 or needed[-1] >= layer_count:
        raise ConfigurationError(f"layers {needed} do not fit a model with {layer_count} layers")
    return needed
