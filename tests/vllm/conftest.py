"""Models on disk, what transformers says of the same chats, and engines in own processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.artefact import Artefact
from guardrail.guard import Guard
from guardrail.model.load import load_model
from guardrail.policy import Policy, Thresholds
from guardrail.types import Modality
from guardrail.vllm.options import EVERYBODY

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
FAMILIES = ("llama", "qwen2_5_vl", "smolvlm")
NEVER = 1e9
SECOND = {"SECOND_RUNNER": "1"}
RUNNERS = {
    "first": {},
    "second": SECOND,
    "second, asynchronous": SECOND | {"ASYNC_SCHEDULING": "1"},
}
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def run(*words: object, **variables: str) -> str:
    """A script's output; its errors if it fails."""
    root = HERE.parent.parent
    path = os.pathsep.join([str(root), str(HERE), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**os.environ, **QUIET, **variables, "PYTHONPATH": path},
    )
    assert told.returncode == 0, told.stderr[-4000:]
    return told.stdout


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models and an artefact of each."""
    folder = tmp_path_factory.mktemp("models")
    run(HERE / "models.py", folder, *FAMILIES)
    return folder


class Reference:
    """What a guard in transformers says of the chats, at thresholds between their scores."""

    def __init__(self, folder: Path, family: str) -> None:
        from tests.vllm.said import chats

        self.family, self.folder = family, folder
        asked = chats(family != "llama")
        loaded = load_model(str(folder / family))
        artefact = Artefact.load(folder / f"{family}.guard.safetensors")
        with Guard(loaded, artefact, policy=policy(NEVER, NEVER)) as guard:
            scores = sorted(v.score for v in guard.check_batch(asked))
        third = len(scores) // 3
        steer, flag = (sum(scores[i - 1 : i + 1]) / 2 for i in (third, 2 * third))
        self.policy = policy(steer, flag)
        with Guard(loaded, artefact, policy=self.policy) as guard:
            self.results = [guard.generate(chat, max_new_tokens=8) for chat in asked]


def policy(steer: float, flag: float, **more: Any) -> Policy:
    points = dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))
    return Policy(thresholds=points, judge=EVERYBODY, **more)


@pytest.fixture(scope="session")
def reference(models: Path) -> Callable[[str], Reference]:
    """Of a family, computed once."""
    made: dict[str, Reference] = {}

    def get(family: str) -> Reference:
        if family not in made:
            made[family] = Reference(models, family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def session(models: Path) -> Callable[..., dict[str, Any]]:
    """Run the chats of a family in an engine."""

    def start(family: str, rules: Policy, *, runner: str = "first", **case: Any) -> dict[str, Any]:
        case["policy"] = rules.model_dump(mode="json")
        told = run(HERE / "session.py", models, family, json.dumps(case), **RUNNERS[runner])
        found: dict[str, Any] = json.loads(told.splitlines()[-1])
        return found

    return start
