"""Signals that come while a model is loaded, before there is a server to heed them."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_HANGUP = getattr(signal, "SIGHUP", None)  # there is none on Windows


@dataclass(slots=True)
class Start:
    """What signals have said so far."""

    reload_asked: bool = False

    def ask_reload(self, *_signal: object) -> None:
        """The handler of SIGHUP, which would end the process otherwise."""
        self.reload_asked = True


@contextmanager
def starting() -> Iterator[Start]:
    """For the block, SIGTERM ends the process at once, and SIGHUP is kept for the server.

    The first process of a container ignores a SIGTERM for which it has no handler. The exit code is
    0 as when an idle server ends: nobody was answered yet, so nothing is cut.
    """
    start = Start()
    with handled({signal.SIGTERM: _end}, start.ask_reload):
        yield start


@contextmanager
def handled(
    handlers: Mapping[signal.Signals, Callable[..., object]], hangup: Callable[..., object]
) -> Iterator[None]:
    """Other handlers for the block, and one for SIGHUP where there is such a signal."""
    wanted = dict(handlers) if _HANGUP is None else {**handlers, _HANGUP: hangup}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(*_signal: object) -> None:
    os._exit(0)  # the libraries that load may take an exception for a failure of their own
