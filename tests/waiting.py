"""Waiting for what another thread, task or process does: never for ever, and never by the clock."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.model.decoder import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.guard import Guard

T = TypeVar("T")

LONG_S = 60.0
"""More than anything takes on a busy machine; only a test that fails waits for so long."""
_LOOK_S = 0.002


def until(condition: Callable[[], T], *, seconds: float = LONG_S) -> T:
    """What the condition gives once it is true; it is looked at again and again."""
    for found in _looks(condition, seconds):
        if found:
            return found
        time.sleep(_LOOK_S)
    raise AssertionError(f"it did not become true within {seconds} s")


async def auntil(condition: Callable[[], Any], *, seconds: float = LONG_S) -> Any:
    """The same while the event loop runs on; what is looked at may be waited for, too."""
    for looked in _looks(condition, seconds):
        found = await looked if inspect.isawaitable(looked) else looked
        if found:
            return found
        await asyncio.sleep(_LOOK_S)
    raise AssertionError(f"it did not become true within {seconds} s")


def _looks(condition: Callable[[], T], seconds: float) -> Iterator[T]:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        yield condition()


def at_rest(guard: Guard) -> bool:
    """Whether the model's thread has nothing to do any more."""
    worker = guard._engine.worker
    return not worker._running and not len(worker._waiting)


class Passes:
    """The forward passes of a model: how many have begun, and a gate in front of each."""

    def __init__(self) -> None:
        self.begun = 0
        self._open, self._at_gate = threading.Event(), threading.Event()
        self._open.set()

    def hold(self) -> None:
        """Let no further pass through."""
        self._at_gate.clear()
        self._open.clear()

    def held(self) -> bool:
        """Whether a pass waits at the gate."""
        return self._at_gate.is_set()

    def go_on(self) -> None:
        """Let that pass through, and all others."""
        self._open.set()
        self._at_gate.clear()

    def come(self, *_: Any) -> None:
        """A pass begins."""
        self.begun += 1
        if not self._open.is_set():
            self._at_gate.set()
            if not self._open.wait(LONG_S):
                raise AssertionError("nobody let the model go on")


@contextmanager
def passes_of(model: Any) -> Iterator[Passes]:
    """Count and hold the model's forward passes for the block."""
    passes = Passes()
    handle = decoder_layers(model)[0].register_forward_pre_hook(passes.come)
    try:
        yield passes
    finally:
        handle.remove()
        passes.go_on()
