"""The guard inside vLLM against the guard inside transformers: verdicts, scores and answers."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.vllm.conftest import HERE, NEVER, policy, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vllm
COMPILED = {"enforce_eager": False}
CASES = {
    "llama": ("llama", "first", {}),
    "llama, chunked prefill": ("llama", "first", {"max_num_batched_tokens": 16}),
    "llama, no prefix cache": ("llama", "first", {"enable_prefix_caching": False}),
    "llama, compiled": ("llama", "first", COMPILED),
    "llama, second runner": ("llama", "second", {}),
    "llama, asynchronous": ("llama", "second, asynchronous", {"max_num_batched_tokens": 16}),
    "qwen2_5_vl": ("qwen2_5_vl", "first", {}),
    "qwen2_5_vl, compiled": ("qwen2_5_vl", "first", COMPILED),
    "qwen2_5_vl, asynchronous": ("qwen2_5_vl", "second, asynchronous", {}),
    "smolvlm": ("smolvlm", "first", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts_scores_and_answers_are_those_of_transformers(
    case: str, reference: Any, session: Any
) -> None:
    family, runner, options = CASES[case]
    wanted = reference(family)
    found = session(family, wanted.policy, runner=runner, options=options)
    assert Counter(r.verdict.action for r in wanted.results).keys() == {"pass", "steer", "flag"}
    for time in ("cold", "warm"):
        for one, result in zip(found[time], wanted.results, strict=True):
            expect_same(one, result)
    cached = options.get("enable_prefix_caching", True)
    assert any(one["cached"] for one in found["warm"]) == cached


def expect_same(one: dict[str, Any], result: Any) -> None:
    """What vLLM told of a chat is what transformers' guard did."""
    verdict, (answer,) = one["verdict"], one["answers"]
    assert verdict["action"] == result.verdict.action
    assert verdict["score"] == pytest.approx(result.verdict.score, rel=1e-4, abs=1e-3)
    assert verdict["strength"] == pytest.approx(result.verdict.strength, rel=1e-3, abs=1e-3)
    assert verdict["where"]["reading"] == result.verdict.where.reading
    assert verdict["where"]["message"] == result.verdict.where.message
    if verdict["action"] == "flag":
        assert (answer["text"], answer["stop"]) == (result.text, "guardrail:flag")
    else:
        assert len(answer["tokens"]) == 8
        assert answer["text"].rstrip("\ufffd") == result.text.rstrip("\ufffd")


def test_no_setting_lets_a_token_of_a_flagged_request_out(reference: Any, session: Any) -> None:
    wanted = reference("llama")
    found = session("llama", wanted.policy, settings=True)
    for name in ("sampled", "at least", "log-probabilities", "one token", "choice"):
        for one, result in zip(found[name], wanted.results, strict=True):
            assert one["verdict"]["action"] == result.verdict.action, name
            if result.verdict.action == "flag":
                texts = {answer["text"] for answer in one["answers"]}
                assert texts == {result.text}, name
                assert not any(answer["logprobs"] for answer in one["answers"])


@pytest.mark.parametrize("runner", ["first", "second, asynchronous"])
def test_requests_that_lose_their_blocks_keep_verdict_and_edit(
    runner: str, reference: Any, session: Any, tmp_path: Path
) -> None:
    wanted, audit = reference("llama"), tmp_path / "audit.jsonl"
    found = session(
        "llama",
        wanted.policy,
        runner=runner,
        audit=str(audit),
        options={"num_gpu_blocks_override": 10, "max_model_len": 256, "disable_log_stats": False},
        metrics=True,
    )
    for one, result in zip(found["cold"], wanted.results, strict=True):
        expect_same(one, result)
    assert found["preemptions"] > 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert Counter(line["action"] for line in lines) == Counter(
        2 * [str(r.verdict.action) for r in wanted.results]
    )


@pytest.mark.parametrize("left_out", ["scheduler_cls", "worker_cls", "additional_config"])
def test_half_an_installation_does_not_start(left_out: str, reference: Any, session: Any) -> None:
    with pytest.raises(AssertionError, match="ConfigurationError"):
        session("llama", reference("llama").policy, without=[left_out])


def test_no_other_prompt_is_served_from_what_was_edited(session: Any) -> None:
    only_steer = policy(-NEVER, NEVER, actions={"steer"})  # what is beyond the region passes
    found = session("llama", only_steer, shared=60)["shared"]  # blocks are of 32 tokens
    assert found["action"] == "steer"
    assert found["cached"] == 32
    assert found["apart"] < 1e-5


@pytest.mark.parametrize(
    ("family", "dtype", "conclusion"),
    [("qwen2_5_vl", "float32", "PASS"), ("llama", "bfloat16", "THRESHOLD STALE")],
)
def test_a_comparison_with_transformers_says_whether_thresholds_hold(
    family: str, dtype: str, conclusion: str, models: Path
) -> None:
    """In half precision scores of random weights move by more than a twentieth of a text gap."""
    told = run(HERE / "parity.py", models, family, dtype).splitlines()
    found = json.loads(told[-2])
    assert told[-1] == conclusion
    assert found["noise"] < 1e-4
    if conclusion == "PASS":
        assert found["pictures"] > 0
        assert found["score_apart"] < 1e-3
