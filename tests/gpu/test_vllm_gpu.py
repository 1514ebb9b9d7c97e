"""The guard inside vLLM on GPUs: captured graphs, bfloat16, both runners, one card and two.

`make test-vllm-gpu` runs them. `GUARDRAIL_DEVICE=cpu GUARDRAIL_SHAPE=tiny` runs their code without
a GPU, with what `make test-vllm` installs; there is no second runner then, and two processes with
`GUARDRAIL_CARDS=2 VLLM_CPU_OMP_THREADS_BIND='0|1'`.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.guard import Guard
from guardrail.model.load import load_model
from guardrail.vllm.options import FLAGGED
from tests.vllm.conftest import HERE as VLLM
from tests.vllm.conftest import NEVER, policy, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.policy import Policy
    from guardrail.types import Result

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="vLLM is not installed; `make test-vllm-gpu` installs it"
    ),
    pytest.mark.filterwarnings("default"),  # what compilers and drivers warn of is no finding here
]

HERE = Path(__file__).parent
# Heads as wide as every kernel takes; weights that neither stretch what they are given nor let
# rounding grow.
TINY = {"TINY_HEAD": "64", "TINY_SCALE": "0.25"}
FAMILIES = ("llama", "qwen2_5_vl")
RUNNERS = {"first": "0", "second": "1"}
# How far a score may be from transformers' in the same precision on the same device, as a part of
# what lies between the least and the largest score: the worst of all prompts, and the median. (A
# GPU's float32 may be TF32.)
TOLERANCE = {"bfloat16": (0.1, 0.03), "float32": (0.02, 0.005)}
SIZED = 0.1  # on a model of a real size, in text gaps; what is said there is printed
CLIENTS = {"1": 8, "8": 4, "32": 2}  # how many, and answers that each waits for
TURNS = 3  # of each side, in changing order


@pytest.fixture(params=[1, 2])
def cards(request: pytest.FixtureRequest, device: str) -> int:
    """Over how many cards the model is spread."""
    known = torch.cuda.device_count() if device == "cuda" else 1
    there = int(os.environ.get("GUARDRAIL_CARDS", known))
    if request.param > there:
        pytest.skip(f"{request.param} cards are needed, and there are {there}")
    count: int = request.param
    return count


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, device: str) -> str:
    """Which of vLLM's two runners of a model, as its variable calls it."""
    if device == "cpu" and request.param != "first":
        pytest.skip("the second runner is a GPU's; `make test-vllm` interprets it")
    return RUNNERS[request.param]


@pytest.fixture(scope="session")
def quick(device: str) -> bool:
    """Whether little is done: a CPU shows that the code runs, no more."""
    return device == "cpu"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models and an artefact of each."""
    folder = tmp_path_factory.mktemp("tiny")
    run(VLLM / "models.py", folder, *FAMILIES, **TINY)
    return folder


@pytest.fixture(scope="session")
def shaped(shape_name: str, device: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of a real size and its artefact."""
    folder = tmp_path_factory.mktemp("shaped")
    run(HERE / "vllm_shape.py", folder, shape_name, device)
    return folder


@dataclass(frozen=True)
class Wanted:
    """What transformers says of the chats, at thresholds where no score is near."""

    policy: Policy
    results: list[Result]


@pytest.fixture(scope="session")
def wanted(models: Path, device: str) -> Callable[[str, str], Wanted]:
    """Of a family in a precision, computed once."""
    made: dict[tuple[str, str], Wanted] = {}

    def get(family: str, dtype: str) -> Wanted:
        if (family, dtype) not in made:
            made[family, dtype] = reference(models, family, dtype, device)
        return made[family, dtype]

    return get


def reference(folder: Path, family: str, dtype: str, device: str) -> Wanted:
    from tests.vllm.said import chats

    asked = chats(family != "llama")
    loaded = load_model(str(folder / family), dtype=dtype, device=device)
    artefact = Artefact.load(folder / f"{family}.guard.safetensors")
    with Guard(loaded, artefact, policy=policy(NEVER, NEVER)) as guard:
        scores = [verdict.score for verdict in guard.check_batch(asked)]
    rules = policy(*between(sorted(scores)))
    with Guard(loaded, artefact, policy=rules) as guard:
        return Wanted(rules, [guard.generate(chat, max_new_tokens=8) for chat in asked])


def between(scores: list[float]) -> tuple[float, float]:
    """Two thresholds in the widest gaps between scores, with some below, between and above."""
    places = range(2, len(scores) - 1)
    pairs = ((i, j) for i in places for j in places if j >= i + 2)

    def narrower(pair: tuple[int, int]) -> float:
        return min(scores[at] - scores[at - 1] for at in pair)

    low, high = max(pairs, key=narrower)
    return (scores[low - 1] + scores[low]) / 2, (scores[high - 1] + scores[high]) / 2


def engine(folder: Path, family: str, rules: Policy, runner: str, **case: Any) -> dict[str, Any]:
    """What the chats of a family get of an engine in a process of its own."""
    options = {"enforce_eager": False, "gpu_memory_utilization": 0.4, **case.pop("options", {})}
    case |= {"policy": rules.model_dump(mode="json"), "options": options}
    told = run(
        VLLM / "session.py", folder, family, json.dumps(case), VLLM_USE_V2_MODEL_RUNNER=runner
    )
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_verdicts_and_scores_are_those_of_transformers(
    family: str,
    dtype: str,
    cards: int,
    runner: str,
    device: str,
    models: Path,
    wanted: Callable[[str, str], Wanted],
    tell: Callable[[str], object],
) -> None:
    known = wanted(family, dtype)
    options = {"dtype": dtype, "tensor_parallel_size": cards}
    found = engine(models, family, known.policy, runner, options=options)
    assert device == "cpu" or found["graphs"] != "NONE"
    assert any(one["cached"] for one in found["warm"])
    scores = [result.verdict.score for result in known.results]
    spread = max(scores) - min(scores)
    for time in ("cold", "warm"):
        pairs = zip(found[time], known.results, strict=True)
        apart = [expect_like(one, result, known.policy) for one, result in pairs]
        worst, usual = max(apart) / spread, statistics.median(apart) / spread
        tell(f"{family} {dtype} on {cards}, {time}: {worst:.4f} of the spread, median {usual:.4f}")
        assert worst <= TOLERANCE[dtype][0]
        assert usual <= TOLERANCE[dtype][1]
        actions = {one["verdict"]["action"] for one in found[time]}
        assert actions == {"pass", "steer", "flag"}


def expect_like(one: dict[str, Any], result: Result, rules: Policy) -> float:
    """How far a score is from transformers'; what follows of it is what followed there.

    A score on the other side of a threshold is left to the tolerance. Answers are of another
    rounding, and are not compared.
    """
    verdict, (answer,), known = one["verdict"], one["answers"], result.verdict
    sides = {
        (score >= known.tau_steer, score >= known.tau_flag)
        for score in (verdict["score"], known.score)
    }
    if len(sides) == 1:
        assert verdict["action"] == known.action
    if verdict["action"] == "flag":
        assert (answer["text"], answer["stop"]) == (rules.refusal_message, FLAGGED)
    else:
        assert len(answer["tokens"]) == 8
    return abs(verdict["score"] - known.score)


def test_no_token_of_a_flagged_request_leaves(
    cards: int, runner: str, models: Path, wanted: Callable[[str, str], Wanted]
) -> None:
    rules = wanted("llama", "bfloat16").policy
    options = {"dtype": "bfloat16", "tensor_parallel_size": cards}
    found = engine(models, "llama", rules, runner, options=options, settings=True)
    for name in ("sampled", "at least", "log-probabilities", "one token", "choice"):
        flagged = [one for one in found[name] if one["verdict"]["action"] == "flag"]
        assert flagged, name
        for one in flagged:
            assert {answer["text"] for answer in one["answers"]} == {rules.refusal_message}, name
            assert {answer["stop"] for answer in one["answers"]} == {FLAGGED}, name
            assert not any(answer["logprobs"] for answer in one["answers"]), name


def test_scores_hold_on_a_model_of_a_real_size(
    cards: int,
    shape_name: str,
    device: str,
    quick: bool,
    shaped: Path,
    tell: Callable[[str], object],
) -> None:
    """As `guardrail conform --engine vllm` looks: prompts and pictures, judged in both."""
    case = {"options": sized(cards, quick), "loaded": {"device": device}}
    told = run(VLLM / "parity.py", shaped, shape_name, "bfloat16", json.dumps(case)).splitlines()
    found = json.loads(told[-2])
    tell(f"{shape_name} on {cards}: {told[-1]}, {found}")
    assert found["pictures"] > 0
    assert found["score_apart"] <= SIZED + found["noise"]


def sized(cards: int, quick: bool) -> dict[str, Any]:
    """Options of vLLM for a model of a real size, beside which transformers has its own."""
    return {
        "dtype": "bfloat16",
        "enforce_eager": quick,
        "gpu_memory_utilization": 0.5,
        "max_model_len": 2048,
        "max_num_batched_tokens": 4096,
        "max_num_seqs": 32,
        "tensor_parallel_size": cards,
    }


def test_what_the_guard_costs_is_printed(
    cards: int, shape_name: str, quick: bool, shaped: Path, tell: Callable[[str], object]
) -> None:
    """Each side in processes of its own, in turn: what differs is the guard, not the hour."""
    turns, clients = (1, {"1": 1, "4": 1}) if quick else (TURNS, CLIENTS)
    case = {"options": sized(cards, quick), "tokens": 4 if quick else 64, "clients": clients}
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for turn in range(turns):
        for guarded in (True, False) if turn % 2 else (False, True):
            asked = json.dumps({**case, "guarded": guarded})
            told = run(HERE / "vllm_load.py", shaped, shape_name, asked)
            sides[guarded].append(json.loads(told.splitlines()[-1]))
    tell(table(f"{shape_name} on {cards}", sides[True], sides[False]))
    for guarded, runs in sides.items():
        for one in runs:
            assert all(met["judged"] == guarded * met["answers"] for met in one.values())


def table(about: str, guarded: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """Guarded / plain: tokens a second, and seconds to the first one; medians, least to most."""
    lines = [f"{about}, guarded / plain", "clients  tokens/s             first token"]
    for clients in guarded[0]:
        row = f"{clients:>7}"
        for name in ("tokens_per_s", "first_s"):
            pairs = zip(guarded, plain, strict=True)
            ratios = sorted(one[clients][name] / other[clients][name] for one, other in pairs)
            row += f"  {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(row)
    return "\n".join(lines)
