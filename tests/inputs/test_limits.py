from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guardrail.inputs.limits import patience, still_wanted
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy, VideoSampling

if TYPE_CHECKING:
    from collections.abc import Iterator


class GoneError(Exception):
    pass


@contextmanager
def patience_for(asks: int) -> Iterator[None]:
    def ask() -> None:
        nonlocal asks
        asks -= 1
        if asks < 0:
            raise GoneError

    with patience(ask):
        yield


def read(video: Any) -> Any:
    rules = Policy(video=VideoSampling(scenes=False, window=8))
    (part,) = to_request(
        [{"role": "user", "content": [{"type": "video", "video": video}]}], policy=rules
    ).videos
    return part


def test_a_video_is_read_no_further_once_nobody_waits(film):
    data = film(48)  # at 8 a second; 3 of 4 frames are only looked at
    with pytest.raises(GoneError), patience_for(10):
        read(data)
    stream = read(data)
    with pytest.raises(GoneError), patience_for(40):
        list(stream.windows)
    assert len(list(stream.windows)) == 2  # the other asker's impatience is not ours


def test_no_further_frame_of_a_list_is_opened_either(tmp_path):
    frames: list[Any] = [np.zeros((4, 4, 3), np.uint8)] * 3
    with pytest.raises(GoneError), patience_for(3):
        read([*frames, tmp_path / "missing.png"])


def test_without_an_asker_reading_goes_on():
    still_wanted()
