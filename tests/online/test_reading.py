"""From a value to a job: reading takes no longer than the caller waits."""

from __future__ import annotations

import io
import itertools
import threading

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import RequestCancelledError, RequestTimeoutError
from guardrail.online.reading import Caller
from guardrail.requests.shots import Shot
from guardrail.requests.video_footage import Encoded
from guardrail.types import Action


def endless(self, limits, what):
    """Frame upon frame within the first tick: no window is ever full."""
    for i in itertools.count():
        yield Shot(i * 1e-9, lambda: Image.new("RGB", (8, 8)), lambda: np.zeros((1, 1), np.uint8))


def test_the_time_of_a_request_covers_the_reading_of_its_video(llava, guard_on, monkeypatch):
    monkeypatch.setattr(Encoded, "shots", endless)
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "GIF")
    chat = [{"role": "user", "content": [{"type": "video", "video": data.getvalue()}]}]
    with pytest.raises(RequestTimeoutError):
        guard_on(llava, Action.PASS).check(chat, timeout=0.05)


def test_a_caller_waits_until_the_time_is_over_or_it_gives_up():
    given_up = threading.Event()
    Caller(None, given_up, wait=False).still_waits()
    with pytest.raises(RequestTimeoutError):
        Caller(0.0, given_up, wait=False).still_waits()
    given_up.set()
    with pytest.raises(RequestCancelledError):
        Caller(None, given_up, wait=False).still_waits()
