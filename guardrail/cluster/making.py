"""What a replica is made of: the model, a guard under the agreed artefact, its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.audit import AuditLog
from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from guardrail.cluster.orders import Pin
    from guardrail.cluster.settings import ClusterSettings, Plan
    from guardrail.guard import Guard


def make_guard(plan: Plan, audit: AuditLog | None, pin: Pin, present: Guard | None) -> Guard:
    """A guard under the artefact that was agreed on, on the model that is loaded already, if any.

    Raises:
        ConfigurationError: there is another artefact in that place on this machine.
        GuardrailError: model or artefact cannot be loaded, or do not fit together.
    """
    from guardrail.artefact import Artefact
    from guardrail.guard import Guard
    from guardrail.model.load import load_model

    artefact = Artefact.from_pretrained(pin.source)
    if artefact.artefact_id != pin.artefact_id:
        raise ConfigurationError(
            f"{pin.source} is {artefact.artefact_id} on this machine, agreed on is "
            f"{pin.artefact_id}; put the same file on all machines"
        )
    settings = plan.settings
    loaded = load_model(settings.model, **settings.loading) if present is None else present.loaded
    return Guard(
        loaded, artefact, policy=plan.policy, allow_mismatch=settings.allow_mismatch, audit=audit
    )


def open_audit(settings: ClusterSettings, name: str) -> AuditLog | None:
    """A replica's own file in the folder for audit logs: a file has one writer."""
    if settings.audit is None:
        return None
    settings.audit.mkdir(parents=True, exist_ok=True)
    return AuditLog(settings.audit / f"{name}.jsonl")
