"""Whether a fit reads videos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.artefact.header import Rates
from guardrail.errors import ConfigurationError
from guardrail.fit import run
from guardrail.fit.run import why_without_videos

RATES = Rates(steer=0.1, flag=0.05)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`model(reason)`: a collector of a model that videos cannot be shown to for that reason."""

    def make(reason: str | None) -> Any:
        monkeypatch.setattr(run, "unfit_for_video", lambda _collect: reason)
        return SimpleNamespace()

    return make


@pytest.mark.parametrize("video", [None, True])
def test_videos_are_read_where_they_can_be(model: Any, video: bool | None) -> None:
    assert why_without_videos(model(None), RATES, video=video, videos=0) is None


def test_unless_told_otherwise_a_model_without_videos_is_fitted_without(model: Any) -> None:
    assert why_without_videos(model("too small"), RATES, video=None, videos=0) == "too small"
    assert why_without_videos(model(None), RATES, video=False, videos=0) is not None


@pytest.mark.parametrize(
    ("reason", "options", "words"),
    [
        ("too small", {"video": True, "videos": 0}, "cannot be read: too small"),
        ("too small", {"video": None, "videos": 40}, "cannot be read: too small"),
        (None, {"video": False, "videos": 40}, "video=False"),
        (None, {"video": None, "videos": 18}, "18 drawn videos cannot support .*0.05: .* least 19"),
        (None, {"video": None, "videos": -1}, "ask for at least 19, or for 0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    model: Any, reason: str | None, options: Any, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        why_without_videos(model(reason), RATES, **options)


def test_as_many_drawn_videos_as_the_target_needs_will_do(model: Any) -> None:
    assert why_without_videos(model(None), RATES, video=None, videos=19) is None
