"""Artefacts with random directions whose thresholds lie among the scores that were seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from guardrail.artefact import Artefact
from guardrail.artefact.header import (
    Calibration,
    Header,
    LayerRow,
    Readout,
    Steering,
    first_problem,
)
from guardrail.errors import ArtefactFormatError
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Thresholds
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.artefact.header import Fingerprint
    from guardrail.model.load import LoadedModel

KINDS = ("image", "images", "video")
FAR = 1e6  # a trust region without an end
LEAST = 0.01  # of a residual's mean length: the smallest unit of a score
REACH = 0.6  # length of the text gap at a layer, in units of its residuals' mean length


class Directions:
    """One draw of random unit directions for a model, scaled by residuals of some texts.

    `states` are (n, L - 1, d_model) float64: the last prompt position behind each layer but the
    last. The directions have no mean, which a LayerNorm would take away again.
    """

    def __init__(self, loaded: LoadedModel, states: Tensor, *, seed: int) -> None:
        self.states = states
        self._print: Fingerprint = fingerprint(loaded)
        self._count, width = loaded.layer_count, loaded.d_model
        self._random = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self._count, width, generator=self._random, dtype=torch.float64)
        drawn -= drawn.mean(dim=1, keepdim=True)
        self.direction = drawn / drawn.norm(dim=1, keepdim=True)

    def artefact(
        self,
        read: Sequence[int],
        steer: int | None = None,
        *,
        gain: float = 1.0,
        region: float = FAR,
        steer_tokens: int = 0,
    ) -> Artefact:
        """Scores of the texts have mean 0 and spread 1 (or less) at each readout layer.

        Raises:
            ArtefactFormatError: the guard takes no artefact with these layers.
        """
        rows = list(read)
        along = torch.einsum("nkd,kd->nk", self.states[:, rows], self.direction[rows])
        safe = torch.cat([self.states.mean(dim=0), torch.zeros(1, self.states.shape[-1])])
        lengths = self.states.norm(dim=-1).mean(dim=0)
        gaps = REACH * torch.cat([lengths, lengths[-1:]])
        tensors = {
            "direction": self.direction,
            "mu_safe": safe,
            "mu_unsafe": safe + gaps[:, None] * self.direction,
            "readout_weight": self.direction[rows],
            "readout_zero": along.mean(dim=0),
            # where texts end alike, as after a first short convolution, any error would be small
            "readout_gap": along.std(dim=0).maximum(LEAST * lengths[rows]),
        }
        for number, kind in enumerate(KINDS, start=1):
            tensors[f"readout_offset_{kind}"] = 0.1 * number * tensors["readout_gap"]
            if steer is not None:
                tensors[f"steer_offset_{kind}"] = 0.1 * number * gaps[steer]
        steering = {"gain": gain, "region_max": region, "steer_tokens": steer_tokens}
        header = self._header(tuple(rows), None if steer is None else steering | {"layer": steer})
        return Artefact(header, {name: value.float() for name, value in tensors.items()})

    def _header(self, read: tuple[int, ...], steering: dict[str, Any] | None) -> Header:
        calibration = Calibration(
            scores=(),
            thresholds=Thresholds(steer=1e6, flag=1e6),
            source="made up for conformance checks",
            n=0,
        )
        try:
            return Header(
                fingerprint=self._print,
                readout=Readout(estimator="random", layers=read),
                steering=None if steering is None else Steering(a_max=2.0, **steering),
                layers=tuple(LayerRow(layer=i, usable=True) for i in range(self._count)),
                calibration={Modality.TEXT: calibration},
                warnings=("random directions: for conformance checks only",),
            )
        except ValidationError as error:
            raise ArtefactFormatError(first_problem(error, "such an artefact")) from error
