"""Another artefact, policy or set of keys, put in force while requests are answered."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError, GuardrailError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from guardrail.audit import Audit
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.server.keys import ApiKey
    from guardrail.server.service import Service
    from guardrail.server.settings import Engine


_log = logging.getLogger(__name__)


class Reloader:
    """Makes a guard anew on the same loaded model, and puts it in the place of the one before.

    `make` reads the files again and gives a new guard; it runs in a thread. `read_keys` does the
    same for keys. What cannot be read or does not fit changes nothing: the old ones stay in force,
    the log says why, and `/readyz` that it is so.
    """

    def __init__(
        self,
        service: Service,
        guard: Guard,
        make: Callable[[], Guard],
        read_keys: Callable[[], tuple[ApiKey, ...]],
    ) -> None:
        self._service, self._guard = service, guard
        self._make, self._read_keys = make, read_keys
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> bool:
        """Whether everything was read and is in force; requests under way end as they began.

        Returns when the guard before it is closed, which is after the last request it has.
        """
        async with self._one_at_a_time:
            try:
                keys = await asyncio.to_thread(self._read_keys)
                guard = await asyncio.to_thread(self._make)
                ended = self._service.replace(guard)
            except Exception as error:  # a border: no trouble here may cost an answer
                self._refused(error)
                return False
            before, self._guard = self._guard, guard
            self._service.keys, self._service.note = keys, None
            artefact_id = guard.artefact.artefact_id
            _log.info("reloaded", extra={"artefact": artefact_id, "keys": len(keys)})
        # Answers may take minutes, and the next reload, of keys after a theft, must not.
        await ended
        await asyncio.to_thread(before.close)
        return True

    def close(self) -> None:
        """Close the guard in force."""
        self._guard.close()

    def _refused(self, error: Exception) -> None:
        kind = type(error).__name__
        # An operator's own files are at fault here, not a request: their words may be told.
        why = str(error) if isinstance(error, GuardrailError | OSError) else kind
        _log.error("not reloaded; what was in force stays", extra={"error": kind, "why": why})
        self._service.note = f"the last reload failed ({kind}), and what was in force before stays"


@contextmanager
def opened(
    model: str, *, engine: Engine, options: Mapping[str, Any], allow_mismatch: bool
) -> Iterator[Callable[..., Guard]]:
    """What makes guards on a model that is loaded here, or that vLLM runs; for the block.

    Args:
        model: a folder, or a name on the hub.
        engine: who runs it.
        options: keywords of `load_model`, or vLLM's engine arguments.
        allow_mismatch: use an artefact that was fitted on another model.

    Raises:
        ModelLoadError: a part of the model is missing.
        MissingExtraError: vLLM is not installed.
    """
    if engine == "vllm":
        from guardrail.vllm import VllmGuard, VllmModel

        running = VllmModel(model, allow_mismatch=allow_mismatch, options=options)
        try:
            yield partial(VllmGuard, running)
        finally:
            running.release()
        return

    from guardrail.guard import Guard
    from guardrail.model.load import load_model

    yield partial(Guard, load_model(model, **options), allow_mismatch=allow_mismatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSource:
    """What a server's guards are made of: `artefact` and `read_policy` are read for each anew.

    `open_guard` makes a guard on the server's model, as `Guard` does on one that was loaded.
    """

    open_guard: Callable[..., Guard]
    artefact: str
    read_policy: Callable[[], Policy]
    audit: Audit | None = None

    def make(self) -> Guard:
        """A new guard.

        Raises:
            GuardrailError: a file cannot be read, or its artefact does not fit the model.
        """
        return self._guard(self.audit)

    def warm_up(self) -> None:
        """One verdict and one token, on no record: what is made at first use is made now.

        Raises:
            GuardrailError: the model cannot answer.
        """
        with self._guard(None) as guard:
            result = guard.generate("Hello", max_new_tokens=1)
            if result.verdict.reason == "detector_failed":
                raise DetectorError("the detector failed at a first, harmless request")

    def _guard(self, audit: Audit | None) -> Guard:
        return self.open_guard(self.artefact, policy=self.read_policy(), audit=audit)
