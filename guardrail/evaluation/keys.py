"""What a cached value depends on, spelled out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail import __version__
from guardrail.fit.collect import VERSIONS
from guardrail.model.fingerprint import fingerprint

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.policy import Policy


@dataclass(frozen=True)
class Keys:
    """Keys of one model and one guard on it, from the digest of a request.

    `model` is the fingerprint, the versions that run it, dtype and kind of device; `guard` the
    artefact, the policy and this package's own version, which read and edit by them; `generation`
    the model's own generation config, which answers follow where an evaluation says nothing.
    """

    model: str
    guard: str
    generation: str = ""

    @classmethod
    def of(cls, guard: Guard) -> Keys:
        """The keys of a guard and its model as they are now."""
        loaded = guard.loaded
        about = {
            "fingerprint": fingerprint(loaded).model_dump(mode="json"),
            "versions": VERSIONS,
            "dtype": str(loaded.model.dtype),
            "device": loaded.device.type,
        }
        rules = {
            "artefact": guard.artefact.artefact_id,
            "policy": plain_policy(guard.policy),
            "version": __version__,
        }
        generation = loaded.model.generation_config.to_dict()
        return cls(_json(about), _json(rules), json.dumps(generation, sort_keys=True, default=str))

    def residuals(self, digest: str) -> str:
        """Of all layers' residuals: of the model alone."""
        return _key("residuals", self.model, digest)

    def plain(self, digest: str, settings: str) -> str:
        """Of the model's own answer."""
        return _key("plain", self.model, self.generation, settings, digest)

    def guarded(self, digest: str, settings: str) -> str:
        """Of the answer behind the guard."""
        return _key("guarded", self.model, self.generation, self.guard, settings, digest)

    def kl(self, digest: str) -> str:
        """Of the divergence at the first token."""
        return _key("kl", self.model, self.guard, digest)


def judgement_key(judge: str, prompt: str, answer: str) -> str:
    """Of what a judge said about an answer."""
    return _key("judged", judge, prompt, answer)


def plain_policy(policy: Policy) -> dict[str, Any]:
    """A policy as JSON values; its sets, which have no order of their own, sorted."""
    plain: dict[str, Any] = policy.model_dump(mode="json")
    return {name: sorted(v) if isinstance(v, list) else v for name, v in plain.items()}


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _key(*parts: str) -> str:
    return hashlib.sha256(_json(parts).encode("utf-8", "surrogatepass")).hexdigest()
