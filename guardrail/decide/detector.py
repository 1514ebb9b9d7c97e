"""What is asked inside a prefill: score the rows, choose their actions, give their edits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.gate import action_for
from guardrail.decide.projection import projections, refusal_scores, wide
from guardrail.decide.trust_region import bounded_strength
from guardrail.errors import ConfigurationError, DetectorError
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.policy import Policy, Thresholds

log = logging.getLogger(__name__)

KINDS = ("text", "image", "images")


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer per row of a batch.

    `scores` is (rows,) float64 on the CPU; `actions` what the policy lets the guard do; `failed`
    marks rows without a finite score, whose action is the policy's fail mode.
    """

    scores: Tensor
    actions: list[Action]
    failed: list[bool]


@dataclass(frozen=True)
class Readout:
    """A linear detector over k layers; see `projection.refusal_scores` for the formula."""

    layers: tuple[int, ...]
    weight: Tensor
    zero: Tensor
    gap: Tensor
    offsets: dict[str, Tensor]

    def scores(self, residuals: Tensor, kinds: Sequence[str]) -> Tensor:
        """(rows, k, d_model) and the offset kind of each row -> (rows,) float64."""
        offset = torch.stack([self.offsets[kind] for kind in kinds])
        return refusal_scores(
            residuals, weight=self.weight, zero=self.zero, gap=self.gap, offset=offset
        )


@dataclass(frozen=True)
class Steering:
    """The edit: a unit direction at one layer, how far along it, and for how many tokens."""

    layer: int
    direction: Tensor
    zero: float
    gap: float
    offsets: dict[str, float]
    gain: float
    a_max: float
    region_max: float
    tokens: int

    def edits(
        self, scores: Tensor, residual: Tensor, gates: Tensor, kinds: Sequence[str]
    ) -> Tensor:
        """(rows, d_model) at the steering layer -> what to add, (rows, d_model) float32.

        Not finite where the residual or the score is not; zero beyond the trust region.
        """
        offset = torch.tensor([self.offsets[kind] for kind in kinds], dtype=torch.float64)
        read = projections(residual[:, None], self.direction[None])[:, 0].cpu().double()
        local = (read - offset - self.zero) / self.gap
        move = bounded_strength(
            scores, local, gate=gates, gain=self.gain, a_max=self.a_max, region_max=self.region_max
        )
        away = move * self.gap
        direction = wide(self.direction.to(residual.device))
        edit: Tensor = (away.to(residual.device, direction.dtype)[:, None] * direction).float()
        return edit


class Detector:
    """Reads, decides and edits for one artefact under one policy; holds no request's state."""

    def __init__(
        self,
        readout: Readout,
        steering: Steering | None,
        *,
        thresholds: dict[Modality, Thresholds],
        policy: Policy,
        artefact_id: str,
    ) -> None:
        if steering is not None and steering.layer < readout.layers[-1]:
            raise ConfigurationError(
                f"the steering layer {steering.layer} lies before the readout layer "
                f"{readout.layers[-1]}; the edit would come before the decision"
            )
        self.readout, self.steering = readout, steering
        self.thresholds, self.policy, self.artefact_id = thresholds, policy, artefact_id

    @classmethod
    def from_artefact(cls, artefact: Artefact, policy: Policy) -> Detector:
        """The detector an artefact describes, at the thresholds the policy asks for.

        Raises:
            CalibrationError: the policy's rates are beyond what the calibration data supports.
        """
        tensors, header = artefact.tensors, artefact.header
        weight = tensors["readout_weight"]
        offsets = {kind: tensors[f"readout_offset_{kind}"] for kind in KINDS[1:]}
        readout = Readout(
            layers=tuple(header.readout.layers),
            weight=weight,
            zero=tensors["readout_zero"],
            gap=tensors["readout_gap"],
            offsets={"text": torch.zeros(len(weight)), **offsets},
        )
        steering = None
        if header.steering is not None:
            at, s = header.steering.layer, header.steering
            direction, safe = tensors["direction"][at], tensors["mu_safe"][at]
            difference = tensors["mu_unsafe"][at].double() - safe.double()
            steering = Steering(
                layer=at,
                direction=direction,
                zero=float(safe.double() @ direction.double()),
                gap=float(difference.norm()),
                offsets={"text": 0.0}
                | {kind: float(tensors[f"steer_offset_{kind}"]) for kind in KINDS[1:]},
                gain=s.gain,
                a_max=s.a_max,
                region_max=s.region_max,
                tokens=s.steer_tokens,
            )
        both = {m: artefact.thresholds(m, policy) for m in (Modality.TEXT, Modality.IMAGE)}
        return cls(
            readout, steering, thresholds=both, policy=policy, artefact_id=header.artefact_id
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Readout layers, ascending."""
        return self.readout.layers

    @property
    def steering_layer(self) -> int | None:
        """The layer after which a steered row is edited; None when the artefact only detects."""
        return None if self.steering is None else self.steering.layer

    @property
    def steer_tokens(self) -> int:
        """How many generated tokens are edited beside the last prompt position."""
        return 0 if self.steering is None else self.steering.tokens

    def thresholds_for(self, kind: str) -> Thresholds:
        """The thresholds of a row, by its offset kind."""
        return self.thresholds[Modality.TEXT if kind == "text" else Modality.IMAGE]

    def decide(self, residuals: Tensor, kinds: Sequence[str]) -> Decision:
        """Scores and actions of a batch: (rows, k, d_model) and each row's offset kind."""
        scores = self.readout.scores(residuals, kinds)
        failed = (~torch.isfinite(scores)).tolist()
        on_failure = Action.FLAG if self.policy.fail == "closed" else Action.PASS
        actions = [
            on_failure if bad else self._allowed(float(score), kind)
            for score, kind, bad in zip(scores, kinds, failed, strict=True)
        ]
        if any(failed):
            log.error("%d of %d rows have no finite score", sum(failed), len(failed))
        return Decision(scores, actions, failed)

    def _allowed(self, score: float, kind: str) -> Action:
        action = action_for(score, self.thresholds_for(kind), self.policy.actions)
        instead = self.policy.unsteerable == "flag" and Action.FLAG in self.policy.actions
        if action is Action.STEER and self.steering is None and instead:
            return Action.FLAG
        return action

    def edit(self, decision: Decision, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """What to add at the steering layer, (rows, d_model) float32; zero for rows not steered.

        Raises:
            ConfigurationError: the artefact only detects.
            DetectorError: a row to be steered has no finite residual here.
        """
        if self.steering is None:
            raise ConfigurationError("this artefact has no steering layer; it only detects")
        gates = torch.tensor(
            [self.thresholds_for(kind).steer for kind in kinds], dtype=torch.float64
        )
        edits = self.steering.edits(decision.scores, residual, gates, kinds)
        steered = torch.tensor([action is Action.STEER for action in decision.actions])
        chosen = torch.where(steered.to(edits.device)[:, None], edits, 0.0)
        if not bool(chosen.isfinite().all()):
            raise DetectorError("a row to be steered has no finite residual at the steering layer")
        return chosen

    def verdict(self, decision: Decision, row: int, kind: str, strength: float = 0.0) -> Verdict:
        """The verdict of one row; `strength` is the length of the edit it really got."""
        thresholds, failed = self.thresholds_for(kind), decision.failed[row]
        would_be = decision.actions[row]
        shadow = self.policy.mode == "shadow"
        return Verdict(
            action=Action.PASS if shadow else would_be,
            would_be=would_be,
            score=None if failed else float(decision.scores[row]),
            tau_steer=thresholds.steer,
            tau_flag=thresholds.flag,
            layers=self.layers,
            modality=Modality.TEXT if kind == "text" else Modality.IMAGE,
            artefact_id=self.artefact_id,
            strength=strength,
            steering_layer=self.steering_layer,
            mode=self.policy.mode,
            reason="detector_failed" if failed else "score",
        )
