from __future__ import annotations

import pytest
import torch

from guardrail.errors import DetectorError
from guardrail.evaluation.scores import Scorer, packed, random_directions, unpacked
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact, tiny_model


@pytest.fixture(scope="module")
def artefact():
    return tiny_artefact(*tiny_model("llava"))


def test_every_figure_is_a_projection_of_the_residuals(artefact):
    residuals = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    found = Scorer(artefact, Policy())(residuals, "image")
    tensors, layers = artefact.tensors, artefact.header.readout.layers
    parts = [
        (
            residuals[layer] @ tensors["readout_weight"][i]
            - tensors["readout_offset_image"][i]
            - tensors["readout_zero"][i]
        )
        / tensors["readout_gap"][i]
        for i, layer in enumerate(layers)
    ]
    assert found.score == pytest.approx(float(sum(parts)) / len(parts), abs=1e-5)
    along = (residuals * tensors["direction"]).sum(-1)
    assert torch.allclose(found.layers.float(), along, atol=1e-5)
    drawn = random_directions(tensors["readout_weight"])
    read = residuals[list(layers)].double()
    zero, gap = tensors["readout_zero"].double(), tensors["readout_gap"].double()
    wanted = (((drawn * read).sum(-1) - zero) / gap).mean(-1)
    assert torch.allclose(found.random, wanted, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_outage(artefact, value):
    residuals = torch.zeros(4, 32)
    residuals[artefact.header.readout.layers[0]] = value
    with pytest.raises(DetectorError, match="not finite"):
        Scorer(artefact, Policy())(residuals, "text")


def test_a_long_video_has_the_highest_of_its_windows_direction_by_direction(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scorer = Scorer(artefact, Policy())
    alone = [scorer(window, "video") for window in windows]
    found = scorer(windows, "video")
    assert found.score == pytest.approx(max(one.score for one in alone), abs=1e-9)
    for name in ("layers", "random"):
        stacked = torch.stack([getattr(one, name) for one in alone])
        assert torch.allclose(getattr(found, name), stacked.amax(0), atol=1e-9)
        assert len(set(stacked.argmax(0).tolist())) > 1  # not all of them in one window


def test_the_action_of_a_long_video_is_that_of_its_highest_window(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scores = [Scorer(artefact, Policy())(window, "video").score for window in windows]
    assert max(scores) > scores[-1]
    between = (max(scores) + sorted(scores)[-2]) / 2
    policy = Policy(thresholds={"video": {"steer": between, "flag": between}})
    assert Scorer(artefact, policy)(windows, "video").action == "flag"
    assert Scorer(artefact, policy)(windows[-1], "video").action == "pass"


def test_a_window_without_a_score_is_an_outage_of_the_whole_video(artefact):
    windows = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(3))
    windows[0, artefact.header.readout.layers[0]] = float("nan")
    with pytest.raises(DetectorError, match="not finite"):
        Scorer(artefact, Policy())(windows, "video")


def test_windows_are_kept_like_other_residuals():
    windows = torch.randn(3, 4, 32)
    assert torch.equal(unpacked(packed(windows, torch.float32), (4, 32)), windows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residuals_are_kept_bit_for_bit_and_no_larger_than_need_be(dtype):
    exact = torch.randn(4, 32).to(dtype).float()
    data = packed(exact, dtype)
    assert torch.equal(unpacked(data, (4, 32)), exact)
    between = exact + 1e-7
    assert torch.equal(unpacked(packed(between, dtype), (4, 32)), between)
    if dtype != torch.float32:
        assert len(data) < len(packed(between, dtype))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"none",
        packed(torch.zeros(3, 32), torch.float32),
        packed(torch.zeros(2, 3, 32), torch.float32),
        packed(torch.zeros(0, 4, 32), torch.float32),
        packed(torch.zeros(1, 1, 4, 32), torch.float32),
    ],
)
def test_bytes_that_are_no_residuals_of_this_model_are_refused(data):
    with pytest.raises(ValueError, match=r".+"):
        unpacked(data, (4, 32))
