"""What a model says, read while it says it: windows over the answer's own tokens.

The hooks are there in every step of decoding, so a token costs two numbers a head and layer, and
one softmax over a window. A token is read in the step after the one that chose it; so an answer
that ends by itself is read whole, and one that is cut off for its length but for its last token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from guardrail.decide.detector import Decision
from guardrail.decide.reading import Found, PromptReading
from guardrail.errors import DetectorError
from guardrail.policy.acting import answer_action, enforced, on_outage, outranks_outage
from guardrail.types import Action, Verdict, Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.decide.detector import Detector
    from guardrail.decide.windows import WindowReadout
    from guardrail.types import RowParts


class Watching:
    """The answers of one batch while they grow, a row each; it dies with the batch.

    A window's score does not depend on the order of its tokens, so the newest one takes the place
    of the oldest.
    """

    def __init__(self, windows: WindowReadout) -> None:
        self._windows, self.layers = windows, frozenset(windows.layers)
        self._weights: dict[int, Tensor] = {}
        self._new: dict[int, Tensor] = {}
        self._kept: Tensor | None = None  # (rows, width, k, 2, heads) float64
        self._tokens = 0

    def see(self, layer: int, hidden: Tensor) -> None:
        """A layer gave `hidden` (rows, d_model) at the newest token, chosen in the step before."""
        weight = self._weights.get(layer)
        if weight is None:
            weight = self._windows.weight(layer).flatten(0, 1).T.to(hidden.device)
            self._weights[layer] = weight
        self._new[layer] = hidden.detach().float() @ weight

    def scores(self) -> list[float] | None:
        """Each row's window that ends at the newest token; None while that is too early for one.

        Raises:
            DetectorError: a layer did not run in this step.
        """
        windows = self._windows
        if missing := [layer for layer in windows.layers if layer not in self._new]:
            raise DetectorError(f"layers {missing} gave nothing to read of an answer's token")
        step = torch.stack([self._new.pop(layer) for layer in windows.layers], dim=1).cpu().double()
        step = step.where(step.isfinite(), math.nan).reshape(len(step), len(windows.layers), 2, -1)
        if self._kept is None:
            self._kept = step.new_zeros(len(step), windows.width, *step.shape[1:])
            self._kept[:, :, :, 0] = -math.inf  # draws no attention
        self._kept[:, self._tokens % windows.width] = step
        self._tokens += 1
        if self._tokens < windows.first:
            return None
        found: list[float] = windows.of_each(self._kept).tolist()
        return found


@dataclass(slots=True)
class Heard:
    """The highest window of one answer so far: its score, and the tokens [start, stop) of it."""

    score: float = -math.inf
    start: int = 0
    stop: int = 0
    failed: bool = False

    def hear(self, score: float, stop: int, width: int) -> None:
        """A window that ends before token number `stop`; what is not finite is an outage."""
        if not math.isfinite(score):
            self.failed = True
        elif score > self.score:
            self.score, self.start, self.stop = score, max(0, stop - width), stop


def heard_in(found: Found | None, parts: RowParts) -> Heard:
    """What was found in an answer that was there already, in a prompt of these parts."""
    if found is None or math.isnan(found.score):
        return Heard(failed=True)
    match found.where:
        case Where(start=int(start), stop=int(stop)):
            begins = parts.turns[-1].start
            return Heard(found.score, start - begins, stop - begins)
        case _:
            return Heard()


def answer_verdict(detector: Detector, heard: Heard, asked: Verdict, message: int) -> Verdict:
    """The verdict on an answer that is message number `message`, and was `asked` for like that.

    An outage counts, unless the policy lets outages pass and something was found beside it.
    """
    windows, policy = detector.watched, detector.policy
    found = Action.PASS
    if math.isfinite(heard.score):
        found = answer_action(heard.score, detector.answer_threshold, policy)
    failed = heard.failed and not outranks_outage(found, policy)
    would_be = on_outage(policy) if failed else found
    none = failed or not math.isfinite(heard.score)
    where = Where(reading="answer", message=message, role="assistant")
    return replace(
        asked,
        action=enforced(would_be, policy),
        would_be=would_be,
        score=None if none else heard.score,
        tau_steer=detector.answer_threshold,
        tau_flag=detector.answer_threshold,
        layers=windows.layers,
        reason="detector_failed" if failed else "answer",
        window=None,
        folded=False,
        where=where if none else replace(where, start=heard.start, stop=heard.stop),
    )


class GivenAnswers:
    """Reads answers that are there already, the last message of each chat, in one prefill.

    It stands where a `Detector` does, and steers nothing.
    """

    steering_layer = None
    steer_tokens = 0

    def __init__(self, detector: Detector) -> None:
        self._detector, self._windows = detector, detector.watched
        self.reads = self._windows.layers
        self.layers = self.reads[-1:]

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> PromptReading:
        """What is to be read of a batch: the answers alone."""
        return PromptReading(
            readout=self._detector.readout,
            windows=self._windows,
            rows=rows,
            judged=frozenset({"assistant"}),
            prompt_len=prompt_len,
            turns=False,
        )

    def decide(
        self,
        residuals: Tensor,
        kinds: Sequence[str],
        beside: Sequence[Found] = (),
        floors: Sequence[float] = (),
    ) -> Decision:
        """The highest window of each answer; -inf where it is too short for one."""
        scores = torch.tensor([one.score for one in beside], dtype=torch.float64)
        failed = scores.isnan().tolist()
        actions = [Action.PASS] * len(failed)
        return Decision(scores, actions, failed)

    def edit(self, decision: Decision, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """Nothing is."""
        return torch.zeros_like(residual)
