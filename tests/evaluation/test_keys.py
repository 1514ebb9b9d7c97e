from __future__ import annotations

import subprocess
import sys

import pytest

from guardrail.evaluation.keys import Keys, judgement_key, plain_policy
from guardrail.guard import Guard
from guardrail.policy import Policy

_CODE = (
    "from guardrail.evaluation.keys import plain_policy\n"
    "from guardrail.policy import Policy\n"
    "hosts = frozenset(f'h{n}.org' for n in range(9))\n"
    "print(plain_policy(Policy(allowed_hosts=hosts)))"
)


def test_a_policy_reads_the_same_in_every_process():
    said = {
        subprocess.run(
            [sys.executable, "-c", _CODE],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_every_part_of_a_key_counts():
    one = Keys("model", "guard")
    keys = [
        one.residuals("d"),
        one.plain("d", "s"),
        one.guarded("d", "s"),
        one.kl("d"),
        one.residuals("e"),
        one.plain("d", "t"),
        Keys("other", "guard").residuals("d"),
        Keys("model", "other").guarded("d", "s"),
        Keys("model", "other").kl("d"),
        Keys("model", "guard", "other").plain("d", "s"),
        Keys("model", "guard", "other").guarded("d", "s"),
        judgement_key("j", "a", "bc"),
        judgement_key("j", "ab", "c"),
    ]
    assert len(set(keys)) == len(keys)
    assert Keys("model", "other").residuals("d") == one.residuals("d")
    assert Keys("model", "other").plain("d", "s") == one.plain("d", "s")


@pytest.mark.parametrize(
    ("name", "value", "changed"),
    [("VERSIONS", {"torch": "0"}, "model"), ("__version__", "0.0.0", "guard")],
)
def test_keys_follow_what_runs_the_model(monkeypatch, name, value, changed):
    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_artefact, tiny_model

    loaded = wrap_model(*tiny_model("llama"))
    with Guard(loaded, tiny_artefact(loaded.model, loaded.processor)) as guard:
        before = Keys.of(guard)
        monkeypatch.setattr(f"guardrail.evaluation.keys.{name}", value)
        after = Keys.of(guard)
    differing = {part for part in ("model", "guard") if vars(after)[part] != vars(before)[part]}
    assert differing == {changed}


def test_keys_follow_the_weights_and_the_policy():
    import torch

    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_artefact, tiny_model

    loaded = wrap_model(*tiny_model("llama"))
    artefact = tiny_artefact(loaded.model, loaded.processor)
    with Guard(loaded, artefact) as guard:
        before = Keys.of(guard)
        assert Keys.of(guard) == before
        with guard.with_policy(Policy(mode="shadow")) as shadow:
            assert Keys.of(shadow).model == before.model
            assert Keys.of(shadow).guard != before.guard
        with torch.no_grad():
            loaded.model.get_output_embeddings().weight.mul_(2)
        assert Keys.of(guard).model != before.model
        assert Keys.of(guard).guard == before.guard
        generation = Keys.of(guard).generation
        loaded.model.generation_config.repetition_penalty = 1.5
        assert Keys.of(guard).generation != generation
    assert plain_policy(Policy())["mode"] == "enforce"
