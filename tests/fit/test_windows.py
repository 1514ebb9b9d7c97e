"""Training of windows: what comes out reads as what was trained, and finds what was planted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from guardrail.fit import windows as module
from guardrail.fit.windows import TokenRows, over_layers, trained
from guardrail.stats import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.decide.windows import WindowReadout

WIDTH, LAYERS = 12, (3, 5)
SPAN = 4  # tokens of a planted request


def prompt(
    unsafe: bool, length: int, draw: torch.Generator, *, at: int | None = None
) -> torch.Tensor:
    """Tokens (n, 2, d) of a prompt; an unsafe one has `SPAN` tokens that say so, in all layers.

    Safe ones have as many that say something else. Coordinates are far from standard: one is large
    and the same everywhere, one hardly moves.
    """
    tokens = torch.randn(length, len(LAYERS), WIDTH, generator=draw)
    start = int(torch.randint(0, length - SPAN + 1, (), generator=draw)) if at is None else at
    tokens[start : start + SPAN, :, 0 if unsafe else 1] += 4
    tokens[..., 2] += 30
    tokens[..., 3] *= 0.05
    return tokens


def rows(n: int, lengths: tuple[int, int], seed: int) -> TokenRows:
    draw = torch.Generator().manual_seed(seed)
    unsafe = [i % 2 == 0 for i in range(n)]
    sizes = torch.randint(*lengths, (n,), generator=draw).tolist()
    return TokenRows(
        LAYERS, [prompt(u, s, draw) for u, s in zip(unsafe, sizes, strict=True)], unsafe
    )


@pytest.fixture(scope="module")
def found() -> list[WindowReadout]:
    return trained(rows(160, (6, 24), 0), epochs=12)


def scores(readout: WindowReadout, tokens: Sequence[torch.Tensor]) -> list[float]:
    """The highest window of each prompt."""
    places = [LAYERS.index(layer) for layer in readout.layers]
    highest = []
    for one in tokens:
        products = torch.stack(
            [readout.products(i, one[:, p]) for i, p in zip(readout.layers, places, strict=True)], 1
        )
        highest.append(float(readout.raw(products).max()))
    return highest


def told_apart(readout: WindowReadout, held: TokenRows) -> float:
    values = list(zip(scores(readout, held.tokens), held.unsafe, strict=True))
    return auroc([v for v, u in values if u], [v for v, u in values if not u])


def test_a_window_over_the_whole_prompt_is_the_softmax_that_was_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Standardised coordinates and all: an independent evaluation of the same parameters."""
    given = rows(24, (6, 12), 1)
    kept: list[torch.nn.Parameter] = []
    real = torch.optim.AdamW

    def watched(parameters: list[torch.nn.Parameter], **options: float) -> torch.optim.AdamW:
        kept[:] = parameters
        return real(parameters, **options)

    monkeypatch.setattr(torch.optim, "AdamW", watched)
    one = TokenRows(LAYERS[:1], [t[:, :1] for t in given.tokens], given.unsafe)
    (made,) = trained(one, heads=3, epochs=2)
    both, offset, bias = (part.detach().double() for part in kept)
    # every prompt weighs the same in means and deviations
    mean = sum(t[:, 0].double().mean(0) for t in one.tokens) / len(one)
    deviation = sum(t[:, 0].double().std(0) for t in one.tokens) / len(one)
    for tokens in one.tokens[:6]:
        wanted = float(bias)
        for head in range(3):
            standard = [(token - mean) / deviation for token in tokens[:, 0].double()]
            drawn = [math.exp(float(both[head] @ token)) for token in standard]
            for weight, token in zip(drawn, standard, strict=True):
                said = float(both[3 + head] @ token) + float(offset[head])
                wanted += weight / sum(drawn) * said
        whole = over_layers([made], width=len(tokens), first=len(tokens))
        (raw,) = whole.raw(whole.products(LAYERS[0], tokens[:, 0])[:, None]).tolist()
        assert raw == pytest.approx(wanted, abs=1e-4)


def test_a_planted_request_is_told_apart_on_windows(found: list[WindowReadout]) -> None:
    held = rows(80, (6, 24), 2)
    for one in found:
        assert told_apart(over_layers([one], 8, 4), held) > 0.95
    assert told_apart(over_layers(found, 8, 4), held) > 0.97


def test_a_request_in_a_prompt_longer_than_any_trained_on_is_found_by_windows(
    found: list[WindowReadout],
) -> None:
    """Where one softmax over all of it, or a mean, would dilute it."""
    short, long = rows(60, (6, 24), 3), rows(60, (200, 300), 3)
    windows = over_layers(found, 8, 4)
    assert told_apart(windows, long) > 0.9
    high = [s for s, u in zip(scores(windows, long.tokens), long.unsafe, strict=True) if u]
    was = [s for s, u in zip(scores(windows, short.tokens), short.unsafe, strict=True) if u]
    assert sum(high) / len(high) > 0.8 * sum(was) / len(was)


def test_length_tells_nothing(found: list[WindowReadout]) -> None:
    """Trained with unsafe prompts four times as long, neither class is told by its length."""
    draw = torch.Generator().manual_seed(6)
    sizes = [(u, 24 if u else 6) for u in (True, False) * 40]
    lopsided = TokenRows(LAYERS, [prompt(u, n, draw) for u, n in sizes], [u for u, _ in sizes])
    windows = over_layers(trained(lopsided, epochs=12), 6, 4)
    same = [[prompt(u, n, draw) for _ in range(40)] for u, n in ((True, 6), (False, 24))]
    high, low = (scores(windows, tokens) for tokens in same)
    assert auroc(high, low) > 0.95


def test_the_same_rows_and_seed_give_the_same_weights(found: list[WindowReadout]) -> None:
    given = rows(32, (6, 12), 4)
    torch.manual_seed(1)  # the caller's state is of no matter
    first, again, other = (trained(given, epochs=2, seed=seed) for seed in (0, 0, 1))
    for one, same, apart in zip(first, again, other, strict=True):
        assert torch.equal(one.query, same.query)
        assert torch.equal(one.value, same.value)
        assert torch.equal(one.bias, same.bias)
        assert not torch.equal(one.query, apart.query)


def test_what_is_rare_counts_as_much_as_what_is_common() -> None:
    """One unsafe prompt in ten, and the readout does not simply say that all are safe."""
    draw = torch.Generator().manual_seed(8)
    unsafe = [i % 10 == 0 for i in range(200)]
    made = trained(TokenRows(LAYERS, [prompt(u, 12, draw) for u in unsafe], unsafe), epochs=12)
    whole = over_layers(made, 12, 12)
    values = scores(whole, [prompt(u, 12, draw) for u in unsafe])
    # the loss is balanced, so zero lies between the classes
    assert sum((v > 0) == u for v, u in zip(values, unsafe, strict=True)) > 180


def test_layers_are_trained_on_their_own_and_told_of(found: list[WindowReadout]) -> None:
    given = rows(32, (6, 12), 5)
    seen: list[tuple[int, int]] = []
    both = trained(given, epochs=2, progress=lambda *at: seen.append(at))
    alone = TokenRows(LAYERS[1:], [tokens[:, 1:] for tokens in given.tokens], given.unsafe)
    (second,) = trained(alone, epochs=2)
    assert seen == [(1, 2), (2, 2)]
    assert [one.layers for one in both] == [(3,), (5,)]
    assert torch.equal(both[1].query, second.query)


def test_half_precision_is_trained_in_single(found: list[WindowReadout]) -> None:
    given = rows(32, (6, 12), 9)
    half = TokenRows(LAYERS, [tokens.half() for tokens in given.tokens], given.unsafe)
    for one in trained(half, epochs=2):
        assert one.query.dtype == one.value.dtype == one.bias.dtype == torch.float32
        assert bool(one.query.isfinite().all())
    assert module.HEADS == trained(half, epochs=1)[0].query.shape[1]
