"""What is kept of a token inside an engine that has no room for its residual stream.

A detector is linear in the residual stream up to the numbers it keeps of each token and layer: the
readout's projection, the windows' queries and values, the projection on the steering direction. So
an engine takes these products where a layer runs, and the same detector then judges a residual
stream as wide as they are many. What it decides, and how, is said in one place for both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Detector
from guardrail.model.prefill import PrefillDoneError, PromptCall

if TYPE_CHECKING:
    from guardrail.model.prefill import Ruling
    from guardrail.types import RowParts


@dataclass(frozen=True)
class TokenNumbers:
    """The products an engine takes, and the detector that reads them.

    `basis` is (k, m, d_model) float32: of layer `layers[i]`'s output h, m numbers <h, basis[i, j]>
    are kept. `detector` judges residuals of width m at these layers; its steering layer is one
    behind them all, which is shown the numbers of `steering_layer`, and moves a row along
    `direction` (d_model,) float32.
    """

    layers: tuple[int, ...]
    basis: Tensor
    detector: Detector
    steering_layer: int | None
    direction: Tensor | None

    @classmethod
    def of(cls, detector: Detector) -> TokenNumbers:
        """The numbers that a detector needs of a token."""
        readout, windows, steering = detector.readout, detector.windows, detector.steering
        steered = set() if steering is None else {steering.layer}
        layers = tuple(sorted({*detector.reads, *steered}))
        heads = 0 if windows is None else windows.query.shape[1]
        basis = torch.zeros(len(layers), 2 + 2 * heads, readout.weight.shape[-1])
        own = torch.eye(basis.shape[1])
        for weight, layer in zip(readout.weight, readout.layers, strict=True):
            basis[layers.index(layer), 0] = weight
        read = replace(readout, weight=own[0].expand(len(readout.layers), -1))
        if windows is not None:
            for i, layer in enumerate(windows.layers):
                both = torch.cat([windows.query[i], windows.value[i]])
                basis[layers.index(layer), 1 : 1 + 2 * heads] = both
            count = len(windows.layers)
            windows = replace(
                windows,
                query=own[1 : 1 + heads].expand(count, -1, -1),
                value=own[1 + heads : 1 + 2 * heads].expand(count, -1, -1),
            )
        if steering is not None:
            basis[layers.index(steering.layer), -1] = steering.direction
            steering = replace(steering, layer=layers[-1] + 1, direction=own[-1])
        made = Detector(
            read,
            steering,
            thresholds=detector.thresholds,
            policy=detector.policy,
            artefact_id=detector.artefact_id,
            windows=windows,
            turns=detector.turns,
        )
        direction = None if detector.steering is None else detector.steering.direction.float()
        return cls(layers, basis, made, detector.steering_layer, direction)

    def judge(self, numbers: Tensor, parts: RowParts, kind: str) -> Ruling:
        """What happens to one prompt, by its tokens' numbers (n, k, m) float32 on the CPU.

        The ruling's `strength` is how far along the direction the row is to be moved, in the
        residual stream's own units.
        """
        detector, length = self.detector, len(numbers)
        call = PromptCall(
            prompt_len=length,
            kinds=(kind,),
            layers=detector.layers,
            detector=detector,
            policy=detector.policy,
            reading=detector.reading([parts], length),
        )
        call.enter(0, length)
        try:
            for i, layer in enumerate(self.layers):
                call.see(layer, numbers[None, :, i])
            if self.steering_layer is not None:
                at = self.layers.index(self.steering_layer)
                call.see(self.layers[-1] + 1, numbers[None, :, at])
        except PrefillDoneError:  # nobody needs the rest
            return call.ruling(0)
        call.settle()
        return call.ruling(0)
