"""What is asked inside a prefill: score the rows, choose their actions, give their edits."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.linear import UNMOVED, Readout
from guardrail.decide.linear import Steering as Steering
from guardrail.decide.reading import Found, PromptReading
from guardrail.decide.windows import WindowReadout
from guardrail.errors import CalibrationError, ConfigurationError, DetectorError
from guardrail.policy.acting import action_for, enforced, on_outage, outranks_outage
from guardrail.types import Action, Modality, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Windows
    from guardrail.policy import Policy, Thresholds
    from guardrail.types import RowParts

log = logging.getLogger(__name__)

# Kinds of requests by what pictures they hold, and by whose thresholds a row of each is judged.
KINDS = {
    "text": Modality.TEXT,
    "image": Modality.IMAGE,
    "images": Modality.IMAGE,
    "video": Modality.VIDEO,
}
NO_FLOOR = -math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """One answer per row of a batch.

    `scores` is (rows,) float64 on the CPU; `actions` what the policy lets the guard do; `failed`
    marks rows without a finite score, whose action is the policy's fail mode. `last` are the scores
    of the last positions alone, which other readings may have outdone.
    """

    scores: Tensor
    actions: list[Action]
    failed: list[bool]
    last: Tensor | None = None


class Detector:
    """Reads, decides and edits for one artefact under one policy; holds no request's state.

    `layers` are those of the readout at the last position, ascending, `reads` those of all
    readings; `steering_layer` is None when the artefact only detects. Without `windows` a prompt is
    judged at the ends of its turns alone, without `turns` at no earlier one's. `answers` is what
    reads the model's own words, where the policy has them watched (`guardrail.decide.answers`).
    """

    def __init__(
        self,
        readout: Readout,
        steering: Steering | None,
        *,
        thresholds: dict[Modality, Thresholds],
        policy: Policy,
        artefact_id: str,
        windows: WindowReadout | None = None,
        turns: bool = True,
        answers: WindowReadout | None = None,
        answer_threshold: float = math.inf,
    ) -> None:
        self.answers, self.answer_threshold = answers, answer_threshold
        self.readout, self.steering, self.windows, self.turns = readout, steering, windows, turns
        self.layers = readout.layers
        self.reads = tuple(sorted({*readout.layers, *(windows.layers if windows else ())}))
        # Where a steered row is edited, and for how many tokens beside the last prompt position.
        self.steering_layer = None if steering is None else steering.layer
        self.steer_tokens = 0 if steering is None else steering.tokens
        self.thresholds, self.policy, self.artefact_id = thresholds, policy, artefact_id

    @classmethod
    def from_artefact(cls, artefact: Artefact, policy: Policy) -> Detector:
        """The detector an artefact describes, at the thresholds the policy asks for.

        Raises:
            CalibrationError: the policy's rates are beyond what the calibration data supports, for
                texts, pictures or answers; a guard without thresholds for videos refuses those
                alone.
            ConfigurationError: answers are to be watched, and the artefact cannot.
        """
        tensors, header = artefact.tensors, artefact.header
        pictures = header.recentring
        readout = Readout(
            layers=tuple(header.readout.layers),
            weight=tensors["readout_weight"],
            zero=tensors["readout_zero"],
            gap=tensors["readout_gap"],
            recentring={"text": UNMOVED}
            | {kind: (row.score.intercept, row.score.slope) for kind, row in pictures.items()},
        )
        answers: Windows | None = None
        answer_threshold = math.inf
        if policy.watch == "answer":
            answer_threshold = artefact.answer_threshold(policy)
            answers = artefact.require_answers().windows
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
                recentring={"text": UNMOVED}
                | {
                    kind: (row.steering.intercept, row.steering.slope)
                    for kind, row in pictures.items()
                    if row.steering is not None
                },
                gain=s.gain,
                a_max=s.a_max,
                region_max=s.region_max,
                tokens=s.steer_tokens,
            )
        points = {m: artefact.thresholds(m, policy) for m in (Modality.TEXT, Modality.IMAGE)}
        if "video" in pictures:
            try:
                points[Modality.VIDEO] = artefact.thresholds(Modality.VIDEO, policy)
            except CalibrationError as error:  # of no matter to who never asks about a video
                log.warning("videos will be refused: %s", error)
        return cls(
            readout,
            steering,
            thresholds=points,
            policy=policy,
            artefact_id=header.artefact_id,
            windows=_windows(header.windows, tensors, "window"),
            turns=header.readout.turns,
            answers=_windows(answers, tensors, "answer"),
            answer_threshold=answer_threshold,
        )

    @property
    def watched(self) -> WindowReadout:
        """What reads answers.

        Raises:
            ConfigurationError: the policy does not have them watched.
        """
        if self.answers is None:
            raise ConfigurationError(
                'answers are not judged; set `watch` to "answer" in the policy'
            )
        return self.answers

    @property
    def kinds(self) -> tuple[str, ...]:
        """The offset kinds that can be judged; `video` is not always among them."""
        return tuple(kind for kind in self.readout.recentring if _modality(kind) in self.thresholds)

    def thresholds_for(self, kind: str) -> Thresholds:
        """The thresholds of a row, by its offset kind."""
        return self.thresholds[_modality(kind)]

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> PromptReading | None:
        """What is read of a batch beside the last positions; None where there is nothing."""
        found = PromptReading(
            readout=self.readout,
            windows=self.windows,
            rows=rows,
            judged=self.policy.judged_roles,
            prompt_len=prompt_len,
            turns=self.turns,
        )
        return found if found.layers else None

    def decide(
        self,
        residuals: Tensor,
        kinds: Sequence[str],
        beside: Sequence[Found] = (),
        floors: Sequence[float] = (),
    ) -> Decision:
        """Scores and actions of a batch: (rows, k, d_model) and each row's offset kind.

        A row's score is at least what was found `beside` its last position, and its floor, what
        other prompts of the same request gave; `NO_FLOOR` is none, and NaN says that the detector
        failed there.
        """
        last = scores = self.readout.scores(residuals, kinds)
        if beside:
            found = _tensor([one.score for one in beside])
            outdone = torch.tensor([one.alone for one in beside]) & last.isfinite()
            scores = found.where(outdone, self._raised(scores, found, kinds))
        if floors:
            scores = self._raised(scores, _tensor(floors), kinds)
        failed = (~torch.isfinite(scores)).tolist()
        on_failure = on_outage(self.policy)
        actions = [
            on_failure if bad else self.action_for(float(score), kind)
            for score, kind, bad in zip(scores, kinds, failed, strict=True)
        ]
        if any(failed):
            log.error("%d of %d rows have no finite score", sum(failed), len(failed))
        return Decision(scores, actions, failed, last)

    def _raised(self, scores: Tensor, floors: Tensor, kinds: Sequence[str]) -> Tensor:
        """(rows,) float64 scores lifted to their floors; NaN where an outage of either counts."""
        scores = scores.where(scores.isfinite(), math.nan)  # -inf is no low score: it was not read
        raised = torch.maximum(scores, floors)
        rest = torch.fmax(scores, floors)
        found = [
            math.isfinite(score) and outranks_outage(self.action_for(score, kind), self.policy)
            for score, kind in zip(rest.tolist(), kinds, strict=True)
        ]
        return torch.where(torch.tensor(found), rest, raised)

    def action_for(self, score: float, kind: str) -> Action:
        """What the policy lets a finite score of an offset kind lead to."""
        can_steer = self.steering is not None
        return action_for(score, self.thresholds_for(kind), self.policy, can_steer=can_steer)

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

    def verdict(
        self, decision: Decision | None, row: int, kind: str, strength: float = 0.0
    ) -> Verdict:
        """The verdict of one row; `strength` is the length of the edit it really got.

        Without a decision it is that of an outage.
        """
        thresholds, would_be = self.thresholds_for(kind), on_outage(self.policy)
        score: float | None = None
        if decision is not None:
            would_be = decision.actions[row]
            score = None if decision.failed[row] else float(decision.scores[row])
        return Verdict(
            action=enforced(would_be, self.policy),
            would_be=would_be,
            score=score,
            tau_steer=thresholds.steer,
            tau_flag=thresholds.flag,
            layers=self.layers,
            modality=_modality(kind),
            artefact_id=self.artefact_id,
            strength=strength,
            steering_layer=self.steering_layer,
            mode=self.policy.mode,
            reason="detector_failed" if score is None else "score",
        )


def _windows(
    header: Windows | None, tensors: Mapping[str, Tensor], name: str
) -> WindowReadout | None:
    """The readout that a header and the tensors whose names begin with `name` describe."""
    if header is None:
        return None
    return WindowReadout(
        layers=header.layers,
        query=tensors[f"{name}_query"],
        value=tensors[f"{name}_value"],
        bias=tensors[f"{name}_bias"],
        width=header.width,
        first=header.first,
        zero=header.zero,
        gap=header.gap,
        alone=header.alone,
    )


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _modality(kind: str) -> Modality:
    if kind not in KINDS:
        raise DetectorError(f"no modality has the offset kind {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind]
