"""Windows against a loop over tokens, and what is promised of them: more text lowers nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardrail.decide import windows as module
from guardrail.decide.windows import WindowReadout, joined

WIDTH_OF_MODEL = 6


def made(
    layers: tuple[int, ...] = (1, 4),
    *,
    heads: int = 3,
    width: int = 4,
    first: int = 2,
    seed: int = 0,
) -> WindowReadout:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(layers), heads, WIDTH_OF_MODEL)
    return WindowReadout(
        layers=layers,
        query=torch.randn(shape, generator=generator),
        value=torch.randn(shape, generator=generator),
        bias=torch.randn(len(layers), generator=generator),
        width=width,
        first=first,
        zero=0.25,
        gap=2.0,
    )


def drawn(count: int, seed: int = 0, *, layers: int = 2, heads: int = 3) -> torch.Tensor:
    """Products of `count` tokens, spread as widely as attention ever is."""
    generator = torch.Generator().manual_seed(seed)
    return 5 * torch.randn(count, layers, 2, heads, generator=generator)


def slow(readout: WindowReadout, products: torch.Tensor) -> list[float]:
    """Raw scores window by window, layer by layer, head by head, in Python's own floats."""
    rows, found = products.double().tolist(), []
    for end in range(readout.first, len(rows) + 1):
        total = 0.0
        for layer, bias in enumerate(readout.bias.tolist()):
            total += bias
            for head in range(products.shape[-1]):
                some = rows[max(end - readout.width, 0) : end]
                weights = [math.exp(token[layer][0][head]) for token in some]
                values = [token[layer][1][head] for token in some]
                total += sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        found.append(total / len(readout.bias))
    return found


@given(
    count=st.integers(0, 30),
    width=st.integers(1, 9),
    first=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_windows_are_what_a_loop_over_tokens_finds(
    count: int, width: int, first: int, seed: int
) -> None:
    readout, products = made(width=width, first=first), drawn(count, seed)
    assert readout.raw(products).tolist() == pytest.approx(slow(readout, products), abs=1e-9)
    expected = [(raw - 0.25) / 2.0 for raw in slow(readout, products)]
    assert readout.scores(products).tolist() == pytest.approx(expected, abs=1e-9)
    highest = readout.highest(products)
    if not expected:
        assert highest is None
        return
    score, end = highest
    assert score == pytest.approx(max(expected), abs=1e-9)
    assert expected[end - first + 1] == pytest.approx(score, abs=1e-9)


@given(
    count=st.integers(1, 40),
    more=st.integers(0, 40),
    width=st.integers(1, 9),
    first=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_more_tokens_behind_never_lower_the_highest_score(
    count: int, more: int, width: int, first: int, seed: int
) -> None:
    readout, products = made(width=width, first=first), drawn(count + more, seed)
    few, many = readout.highest(products[:count]), readout.highest(products)
    if few is not None:
        assert many is not None
        assert few[0] <= many[0] + 1e-12
    kept = readout.scores(products)[: max(count - first + 1, 0)]
    assert readout.scores(products[:count]).tolist() == pytest.approx(kept.tolist(), abs=1e-12)


def test_a_window_reaches_back_no_further_than_its_width_or_the_start() -> None:
    readout, products = made(width=4, first=2), drawn(12)
    before = readout.raw(products)
    changed = products.clone()
    changed[3] += 7.0
    touched = (readout.raw(changed) != before).nonzero().flatten().tolist()
    assert touched == [2, 3, 4, 5]  # those that end at tokens 3 to 6; the first ends at token 1
    assert readout.raw(products[:2]).tolist() == pytest.approx(before[:1].tolist())


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_part_shorter_than_the_first_window_has_none(count: int) -> None:
    readout = made(first=4)
    assert readout.raw(drawn(count)).shape == (0,)
    assert readout.highest(drawn(count)) is None
    assert readout.highest(drawn(4)) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", [0, 1])
def test_a_token_that_was_not_read_makes_its_windows_nan_and_the_part_with_them(
    what: int, bad: float
) -> None:
    """-inf is what padding has; of a token it says that nothing was read."""
    readout, products = made(width=4, first=2), drawn(12)
    products[5, 1, what, 2] = bad
    found = readout.raw(products)
    assert found.isnan().tolist() == [end in (5, 6, 7, 8) for end in range(1, 12)]
    score, _ = readout.highest(products)
    assert math.isnan(score)


def test_the_padding_before_the_start_draws_no_attention() -> None:
    readout = made(width=8, first=1)
    products = drawn(1)
    products[:, :, 0] = -60.0  # a token that draws next to none is still all there is
    assert readout.raw(products).tolist() == pytest.approx(slow(readout, products))


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_a_long_part_is_read_piece_by_piece_as_in_one(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    readout, products = made(width=5, first=3), drawn(23)
    whole = readout.raw(products)
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    assert readout.raw(products).tolist() == pytest.approx(whole.tolist(), abs=1e-12)
    assert readout.raw(products).shape == (21,)


def test_the_border_between_pieces_is_crossed_without_a_seam() -> None:
    readout, products = made(width=16, first=4), drawn(module._AT_ONCE + 40)
    found = readout.raw(products)
    for start in (module._AT_ONCE - 60, module._AT_ONCE - 10):
        some = readout.raw(products[start : start + 50])[16:]  # behind the clipped ones
        there = found[start + 16 : start + 16 + len(some)]
        assert there.tolist() == pytest.approx(some.tolist(), abs=1e-12)


def test_products_are_the_dot_products_of_their_own_layer() -> None:
    readout = made()
    hidden = torch.randn(2, 5, WIDTH_OF_MODEL, generator=torch.Generator().manual_seed(3))
    for at, layer in enumerate(readout.layers):
        found = readout.products(layer, hidden.half())
        assert found.dtype == torch.float32
        for which, weight in enumerate((readout.query[at], readout.value[at])):
            expected = hidden.half().float() @ weight.T
            assert torch.allclose(found[..., which, :], expected, atol=1e-5)


def test_layers_fitted_alone_are_joined_in_order_and_averaged() -> None:
    late, early = made((7,), seed=1), made((2,), seed=2)
    both, products = joined([late, early]), drawn(9)
    assert both.layers == (2, 7)
    each = [early.raw(products[:, :1]), late.raw(products[:, 1:])]
    assert both.raw(products).tolist() == pytest.approx(torch.stack(each).mean(0).tolist())


def test_the_scale_moves_scores_and_not_where_the_highest_is() -> None:
    readout, products = made(), drawn(30)
    other = replace(readout, zero=-3.0, gap=0.5)
    assert readout.highest(products)[1] == other.highest(products)[1]
    raw = float(readout.raw(products).max())
    assert other.highest(products)[0] == pytest.approx((raw + 3.0) / 0.5)
