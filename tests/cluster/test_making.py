from __future__ import annotations

import pytest

from guardrail.cluster.making import make_guard, open_audit
from guardrail.cluster.orders import Pin
from guardrail.cluster.settings import ClusterSettings, Plan
from guardrail.errors import ArtefactMismatchError, ConfigurationError
from guardrail.guard import Guard
from guardrail.policy import Policy
from guardrail.server.settings import ServerSettings
from guardrail.testing import tiny_artefact, tiny_model


@pytest.fixture
def present(llava):
    with Guard((llava.model, llava.processor), tiny_artefact(llava.model, llava.processor)) as made:
        yield made


@pytest.fixture
def plan(tmp_path) -> Plan:
    settings = ClusterSettings(model="unused", artefact="unused", audit=tmp_path / "audit")
    return Plan(settings, Pin(0, "unused", "unused"), Policy(mode="shadow"), ServerSettings())


def test_the_agreed_artefact_is_put_on_the_model_that_is_there(plan, present, tmp_path):
    artefact = tiny_artefact(present.loaded.model, present.loaded.processor, seed=3)
    source = artefact.save(tmp_path / "b.safetensors")
    made = make_guard(plan, None, Pin(1, str(source), artefact.artefact_id), present)
    with made:
        assert made.artefact.artefact_id == artefact.artefact_id
        assert made.loaded is present.loaded
        assert made.policy.mode == "shadow"


def test_another_artefact_in_that_place_is_not_served(plan, present, tmp_path):
    source = present.artefact.save(tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError, match="agreed on is guard-other"):
        make_guard(plan, None, Pin(1, str(source), "guard-other"), present)


def test_an_artefact_of_another_model_is_not_served(plan, present, tmp_path):
    foreign = tiny_artefact(*tiny_model(seed=5))
    source = foreign.save(tmp_path / "foreign.safetensors")
    with pytest.raises(ArtefactMismatchError):
        make_guard(plan, None, Pin(1, str(source), foreign.artefact_id), present)


def test_each_replica_writes_its_own_audit_file(plan, tmp_path):
    for name in ("one", "two"):
        log = open_audit(plan.settings, name)
        assert log is not None
        log.close()
    assert sorted(p.name for p in (tmp_path / "audit").iterdir()) == ["one.jsonl", "two.jsonl"]
