"""Guards on one loaded model, made from files that may be read again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.errors import DetectorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.guard import Guard
    from guardrail.model.load import LoadedModel
    from guardrail.online.jobs import Audit
    from guardrail.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSource:
    """What a server's guards are made of: `artefact` and `read_policy` are read for each anew."""

    loaded: LoadedModel
    artefact: str
    read_policy: Callable[[], Policy]
    audit: Audit | None = None
    allow_mismatch: bool = False

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
        from guardrail.guard import Guard

        options: dict[str, Any] = {"audit": audit, "allow_mismatch": self.allow_mismatch}
        return Guard(self.loaded, self.artefact, policy=self.read_policy(), **options)
