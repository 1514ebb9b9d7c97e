"""Training the window readout: one softmax over a prompt's tokens, judged on windows.

Trained with the maximum over windows a probe fires on anything long, and an average over tokens
dilutes a request in a long prompt. A softmax that is trained over all tokens of a prompt learns
which of them to look at, and is judged on short windows afterwards (arXiv 2601.11516, 2601.04603).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from guardrail.decide.windows import WindowReadout, joined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HEADS = 6
EPOCHS = 20
BATCH = 32
RATE, DECAY = 2e-3, 1e-2
NOISE = 0.1  # standard deviations of a coordinate, added to every token of every epoch


@dataclass(frozen=True)
class TokenRows:
    """Tokens of the judged parts of prompts, and what the prompts are.

    `tokens[i]` is (n_i, k, d_model), any float dtype, for the k `layers`; `unsafe[i]` the prompt's
    class.
    """

    layers: tuple[int, ...]
    tokens: Sequence[Tensor]
    unsafe: Sequence[bool]

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.tokens)


def trained(
    rows: TokenRows,
    *,
    heads: int = HEADS,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[WindowReadout]:
    """One readout per layer, each trained on its own; width and first end are left to be chosen.

    Logistic loss with the classes weighted alike, AdamW; coordinates are standardised, which is
    taken back in the weights. The same rows and seed give the same readouts.
    """
    found = []
    for place, layer in enumerate(rows.layers):
        found.append(_trained(rows, place, layer, heads, epochs, seed))
        if progress is not None:
            progress(place + 1, len(rows.layers))
    return found


def _trained(
    rows: TokenRows, place: int, layer: int, heads: int, epochs: int, seed: int
) -> WindowReadout:
    draw = torch.Generator().manual_seed(seed)
    mean, deviation = _moments(rows, place)
    width = len(mean)
    query, value = (torch.randn(heads, width, generator=draw).mul_(0.01) for _ in range(2))
    both = nn.Parameter(torch.cat([query, value]))  # of one product
    offset, bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.AdamW([both, offset, bias], lr=RATE, weight_decay=DECAY)
    unsafe = torch.tensor(rows.unsafe, dtype=torch.float32)
    alike = (len(unsafe) - unsafe.sum()) / unsafe.sum()
    order = sorted(range(len(rows)), key=lambda i: len(rows.tokens[i]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for _ in range(epochs):
        for number in torch.randperm(len(batches), generator=draw).tolist():
            batch = batches[number]
            tokens, mask = _padded([rows.tokens[i][:, place] for i in batch])
            tokens = (tokens - mean) / deviation
            tokens += NOISE * torch.randn(tokens.shape, generator=draw)
            drawn, said = torch.split(tokens @ both.T, heads, -1)
            attention = drawn.masked_fill(~mask[..., None], -1e9).softmax(1)
            read = (attention * (said + offset)).sum((1, 2)) + bias
            loss = nn.functional.binary_cross_entropy_with_logits(
                read, unsafe[batch], pos_weight=alike
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    query, value = torch.split(both.detach() / deviation, heads)
    return WindowReadout(
        layers=(layer,),
        query=query[None].clone(),  # what the mean adds is the same for all tokens of a head
        value=value[None].clone(),
        bias=(bias + offset.sum() - (value @ mean).sum()).detach()[None],
        width=1,
        first=1,
    )


def _moments(rows: TokenRows, place: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each coordinate; every prompt weighs the same, however long."""
    kept = [tokens[:, place].float() for tokens in rows.tokens if len(tokens) > 1]
    mean = torch.stack([tokens.mean(0) for tokens in kept]).mean(0)
    deviation = torch.stack([tokens.std(0) for tokens in kept]).mean(0)
    return mean, deviation.clamp_min(1e-6 * float(deviation.mean()))


def _padded(tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(rows, longest, d_model) float32, and which of them are real."""
    padded = nn.utils.rnn.pad_sequence([one.float() for one in tokens], batch_first=True)
    lengths = torch.tensor([len(one) for one in tokens])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def over_layers(readouts: Sequence[WindowReadout], width: int, first: int) -> WindowReadout:
    """The mean over layers, judged on windows of up to `width` tokens from the `first` on."""
    return replace(joined(readouts), width=width, first=first)
