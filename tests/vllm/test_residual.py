"""The operation inside the model against a slow reference; vLLM itself is not needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.policy import Policy, Thresholds
from guardrail.testing import tiny_artefact
from guardrail.types import Modality
from guardrail.vllm.judge import TokenNumbers
from guardrail.vllm.residual import Residuals, install

TOKENS, SLOTS, STEERING = 12, 40, 2
POINTS = dict.fromkeys(Modality, Thresholds(steer=0.0, flag=1.0))


@pytest.fixture
def wanted(tiny_of: Any) -> TokenNumbers:
    made = tiny_of("llama")
    artefact = tiny_artefact(made.model, made.processor)
    return TokenNumbers.of(Detector.from_artefact(artefact, Policy(thresholds=POINTS)))


@pytest.fixture
def slots() -> torch.Tensor:
    return torch.full((TOKENS,), -1)


@pytest.fixture
def residuals(wanted: TokenNumbers, slots: torch.Tensor) -> Residuals:
    made = Residuals(wanted, TOKENS, torch.device("cpu"))
    made.keep(SLOTS, lambda: slots)
    return made


class Block(torch.nn.Module):
    """A decoder layer that gives what it is given, in one summand or in two."""

    def __init__(self, *, two: bool) -> None:
        super().__init__()
        self.two = two

    def forward(self, hidden: torch.Tensor) -> Any:
        return (hidden.clone(), 0.5 * hidden) if self.two else hidden.clone()


@pytest.mark.parametrize("two", [False, True])
def test_numbers_lie_at_the_slots_of_their_tokens(
    two: bool, wanted: TokenNumbers, residuals: Residuals, slots: torch.Tensor
) -> None:
    layers = [Block(two=two) for _ in range(4)]
    install(residuals, layers)
    slots[:5] = torch.tensor([7, 3, -1, 39, 0])
    hidden = {i: torch.randn(5, wanted.basis.shape[2]) for i in range(4)}
    for number, layer in enumerate(layers):
        layer(hidden[number])
    whole = 1.5 if two else 1.0
    found = residuals.read([7, 3, 39, 0])
    for i, layer in enumerate(wanted.layers):
        for row, token in enumerate((0, 1, 3, 4)):
            expected = wanted.basis[i] @ (whole * hidden[layer][token])
            torch.testing.assert_close(found[row, i], expected, atol=1e-5, rtol=1e-5)
    assert residuals.read([1, 2, 38]).isnan().all()  # nobody's


def test_only_rows_that_are_to_be_moved_are_moved_and_only_once(
    wanted: TokenNumbers, residuals: Residuals, slots: torch.Tensor
) -> None:
    assert wanted.steering_layer == STEERING
    layers = [Block(two=False) for _ in range(4)]
    install(residuals, layers)
    slots[:4] = torch.arange(4)
    hidden = torch.randn(4, wanted.basis.shape[2])
    residuals.move({1: 2.5, 3: -1.0})
    moved = layers[STEERING](hidden) - hidden
    amounts = torch.tensor([0.0, 2.5, 0.0, -1.0])
    torch.testing.assert_close(moved, amounts[:, None] * wanted.direction, atol=1e-6, rtol=1e-5)
    assert layers[1](hidden).equal(hidden)
    residuals.move({})
    assert layers[STEERING](hidden).equal(hidden)


def test_a_row_that_is_not_finite_spoils_no_other(
    wanted: TokenNumbers, residuals: Residuals, slots: torch.Tensor
) -> None:
    layers = [Block(two=False) for _ in range(4)]
    install(residuals, layers)
    slots[:3] = torch.arange(3)
    hidden = torch.randn(3, wanted.basis.shape[2])
    hidden[1] = torch.nan
    residuals.move({0: 1.0})
    found = layers[STEERING](hidden)
    assert found[[0, 2]].isfinite().all()
    place = wanted.layers.index(STEERING)
    assert residuals.read([0, 2])[:, place].isfinite().all()
    assert residuals.read([1])[:, place].isnan().all()


def test_nothing_is_kept_before_there_are_slots(wanted: TokenNumbers) -> None:
    made = Residuals(wanted, TOKENS, torch.device("cpu"))
    layers = [Block(two=False) for _ in range(4)]
    install(made, layers)
    hidden = torch.randn(3, wanted.basis.shape[2])
    assert layers[STEERING](hidden).equal(hidden)
    with pytest.raises(RuntimeError, match="no numbers"):
        made.read([0])


def test_the_operation_can_be_compiled_and_traced(
    residuals: Residuals, wanted: TokenNumbers, slots: torch.Tensor
) -> None:
    install(residuals, [Block(two=False) for _ in range(4)])
    slots[:3] = torch.arange(3)
    hidden = torch.randn(3, wanted.basis.shape[2])
    torch.library.opcheck(torch.ops.guardrail.residual.default, (hidden, None, STEERING))
