"""Sampling that repeats itself, and leaves everybody else's random numbers alone."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.model.load import LoadedModel
    from guardrail.model.settings import Settings

_DRAWING = threading.Lock()


@contextmanager
def seeded(loaded: LoadedModel, settings: Settings) -> Iterator[None]:
    """Sample as after `torch.manual_seed(seed)`, and leave the generators as they were.

    All models of a process draw from the same generators, so sampled answers are made one after
    another. What remains: code outside the guards that draws meanwhile, and a callback of a sampled
    request must not wait for a sampled answer of another model.
    """
    with _DRAWING if settings.seed is not None or settings.samples(loaded.model) else nullcontext():
        if settings.seed is None:
            yield
            return
        with _from_seed(loaded.device.type, settings.seed):
            yield


@contextmanager
def _from_seed(kind: str, seed: int) -> Iterator[None]:
    module: Any = getattr(torch, kind, None)
    devices = list(range(module.device_count())) if kind != "cpu" and module is not None else []
    with torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind):
        torch.manual_seed(seed)
        yield


def _forked() -> None:
    """A child has no thread but its own: whoever held the lock will never give it back there."""
    global _DRAWING
    _DRAWING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
