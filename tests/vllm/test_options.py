"""What vLLM is started with holds; what was not tested is refused, with all that is in the way."""

from __future__ import annotations

import json
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import ArtefactMismatchError, ConfigurationError
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact
from guardrail.vllm.options import (
    EVERYBODY,
    NAME,
    SCHEDULER,
    WORKER,
    Settings,
    engine_options,
    require_names,
    require_supported,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def artefact(tmp_path: Path, tiny_of: Any) -> Path:
    made, path = tiny_of("llama"), tmp_path / "a b.guard.safetensors"
    tiny_artefact(made.model, made.processor).save(path)
    return path


def config(**changes: Any) -> Any:
    """A vLLM configuration with nothing in the way, less what is changed by `room__name`."""
    found = SimpleNamespace(
        parallel_config=SimpleNamespace(
            worker_cls=WORKER, pipeline_parallel_size=1, use_ubatching=False
        ),
        scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER),
        model_config=SimpleNamespace(runner_type="generate", is_encoder_decoder=False),
        speculative_config=None,
        lora_config=None,
        kv_transfer_config=None,
        additional_config={},
    )
    for name, value in changes.items():
        room, _, field = name.partition("__")
        setattr(getattr(found, room) if field else found, field or room, value)
    return found


def test_settings_survive_the_way_through_json(artefact: Path) -> None:
    policy = Policy(on_flag="annotate", refusal_message="No, not this.", judge={"turns"})
    given = engine_options(artefact, policy, allow_mismatch=True)
    sent = json.loads(json.dumps(given["additional_config"]))
    found = Settings.of(config(additional_config=sent))
    assert found.policy == policy
    assert (found.artefact, found.allow_mismatch) == (artefact, True)
    assert found.load().header.artefact_id == found.artefact_id
    assert (given["worker_cls"], given["scheduler_cls"]) == (WORKER, SCHEDULER)


def test_everybody_is_judged_unless_a_policy_says_otherwise(artefact: Path) -> None:
    settings = Settings.of(config(additional_config=engine_options(artefact)["additional_config"]))
    assert settings.policy.judge == EVERYBODY == {"turns", "tools", "system", "answers"}


def test_an_artefact_that_was_exchanged_on_disk_is_refused(artefact: Path, tiny_of: Any) -> None:
    given = engine_options(artefact)["additional_config"]
    made = tiny_of("llama")
    tiny_artefact(made.model, made.processor, seed=5).save(artefact)
    with pytest.raises(ArtefactMismatchError, match="artefact_id"):
        Settings.of(config(additional_config=given)).load()


@pytest.mark.parametrize("entry", [{}, {"other": 1}, None])
def test_vllm_without_the_guards_settings_is_refused(entry: Any) -> None:
    with pytest.raises(ConfigurationError, match="engine_options"):
        Settings.of(config(additional_config=entry))


def test_a_configuration_with_nothing_in_the_way_is_taken() -> None:
    require_supported(config(), "0.32.0")
    require_supported(config(), "0.33.1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parallel_config__worker_cls": "auto"}, "worker_cls"),
        ({"scheduler_config__scheduler_cls": None}, "scheduler_cls"),
        ({"speculative_config": object()}, "speculative"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__use_ubatching": True}, "micro-batches"),
        ({"lora_config": object()}, "LoRA"),
        ({"kv_transfer_config": object()}, "KV connector"),
        ({"model_config__runner_type": "pooling"}, "pooling"),
        ({"model_config__is_encoder_decoder": True}, "encoder"),
    ],
)
def test_what_was_not_tested_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        require_supported(config(**changes), "0.32.0")


def test_all_that_is_in_the_way_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"vLLM 0\.31\.0 .*speculative.*LoRA"):
        require_supported(config(speculative_config=1, lora_config=1), "0.31.0")


def test_missing_names_are_listed() -> None:
    owner = SimpleNamespace(running=[])
    require_names(owner, ("running",))
    with pytest.raises(ConfigurationError, match="SimpleNamespace has no block, _preempt"):
        require_names(owner, ("running", "block", "_preempt"))


def test_the_command_prints_words_that_a_shell_hands_on_whole(artefact: Path) -> None:
    from typer.testing import CliRunner

    from guardrail.cli.main import app

    told = CliRunner().invoke(app, ["vllm-options", "-a", str(artefact), "--judged", "turns"])
    assert told.exit_code == 0, told.output
    words = told.output.split()  # as the shell takes $(...) apart
    options = dict(word.removeprefix("--").split("=", 1) for word in words)
    switches = {"worker-cls", "scheduler-cls", "additional-config", "middleware"}
    assert options.keys() == switches
    module, _, name = options["middleware"].rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)  # as vLLM finds it
    entry = json.loads(options["additional-config"])[NAME]
    assert entry["artefact"] == str(artefact)
    found = Settings.model_validate(entry)
    assert (found.policy.judge, found.scores, found.audit) == ({"turns"}, False, None)


def test_what_is_not_done_inside_vllm_is_refused(artefact: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing is folded inside vLLM"):
        engine_options(artefact, Policy(fold_answers=True))
