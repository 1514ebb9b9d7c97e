"""Which worker a model has, and who uses it: guards on one model share its thread."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from guardrail.model.worker import ModelWorker

if TYPE_CHECKING:
    from torch import nn

_EXIT_WAIT_S = 10.0
_WORKERS: WeakKeyDictionary[nn.Module, tuple[ModelWorker, int]] = WeakKeyDictionary()
_LOCK = threading.RLock()  # the garbage collector may release a lease while another is taken


class WorkerLease:
    """A guard's share of its model's worker; the last one to be released stops the thread."""

    def __init__(self, model: nn.Module) -> None:
        with _LOCK:
            worker, users = _WORKERS.get(model) or (ModelWorker(), 0)
            _WORKERS[model] = (worker, users + 1)
        self.worker = worker
        self._model: nn.Module | None = model

    def release(self) -> None:
        """Give the share back; safe to call twice."""
        with _LOCK:
            model, self._model = self._model, None
            if model is None:
                return
            worker, users = _WORKERS[model]
            if users > 1:
                _WORKERS[model] = (worker, users - 1)
                return
            del _WORKERS[model]
        worker.stop()


@atexit.register
def _end_all() -> None:
    """The interpreter ends: a thread that is inside the model then would abort the process."""
    with _LOCK:
        workers = [worker for worker, _ in _WORKERS.values()]
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(_EXIT_WAIT_S)


def _forked() -> None:
    """A child has the workers without their threads; it must not answer its parent's requests."""
    global _LOCK
    _LOCK = threading.RLock()  # a thread that is not here may have held it
    for worker, _ in _WORKERS.values():
        worker.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
