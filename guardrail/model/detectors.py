"""What a forward pass asks of a detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.types import Action


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
        """Where the edit is added; None = detect only."""

    @property
    def steer_tokens(self) -> int:
        """How many generated tokens are edited beside the last prompt position."""

    def decide(
        self, residuals: Tensor, kinds: Sequence[str], floors: Sequence[float] | None = None
    ) -> D:
        """Judge residuals (rows, k, d_model), float32; no row's score lies below its floor."""

    def edit(self, decision: D, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """What to add to the residual (rows, d_model), float32; zero rows where nothing is."""


AnyDetector = DetectorLike[Any]
