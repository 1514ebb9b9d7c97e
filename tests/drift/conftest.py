"""Planted models, their artefacts, and the same models changed in known ways, one of each."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.drift.fitted import Fitted
from guardrail.drift.run import Drift, check_drift
from guardrail.fit.collect import Collector
from guardrail.fit.dataset import load_contrast
from guardrail.fit.readings import read_all
from guardrail.fit.run import candidates_of, fit
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import wrap_model
from guardrail.testing import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.artefact import Artefact
    from guardrail.fit.readings import Readings
    from guardrail.fit.select import Candidate
    from guardrail.model.load import LoadedModel

TESTS = Path(__file__).parents[1]
RATES = {"steer_rate": 0.06, "flag_rate": 0.05}  # few are steered: all of these are refused


def _module(path: Path) -> Any:
    spec = spec_from_file_location(f"drift_tests_{path.stem}_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


planted = _module(TESTS / "fit" / "conftest.py")
edits_module = _module(TESTS.parent / "examples" / "benchmarks" / "drift_edits.py")


@dataclass(frozen=True)
class Planted:
    """A planted model, the artefact fitted on it, and the file of its prompts.

    What checks read of a model is kept in `residuals`: the next check of it asks no more. The fit
    keeps nothing there, so that every model is read by a check.
    """

    loaded: LoadedModel
    artefact: Artefact
    data: Path
    residuals: Path

    def check(
        self, model: LoadedModel, *, artefact: Artefact | None = None, **options: Any
    ) -> Drift:
        return check_drift(
            artefact or self.artefact,
            model,
            data=self.data,
            extend=False,
            **{"measure": True, "work_dir": self.residuals} | options,
        )

    def read(self, model: LoadedModel) -> Read:
        key = fingerprint(model).model_dump_json()
        collect = Collector(model, work_dir=self.residuals, key=key)
        contrast = load_contrast(self.data, extend=False)
        text = self.artefact.calibration_for("text")[1]
        seeing = self.artefact.reads_videos
        readings = read_all(collect, contrast, text.targets, 112, video=seeing)
        return Read(Fitted.of(self.artefact), collect, readings, candidates_of(readings))


@dataclass(frozen=True)
class Read:
    """What `measure` takes."""

    fitted: Fitted
    collect: Collector
    readings: Readings
    candidates: list[Candidate]


def plant(family: str, *, seed: int = 3) -> LoadedModel:
    loaded = wrap_model(*tiny_model(family, seed=seed), source=f"planted {family}")
    planted.plant(loaded)
    return loaded


@pytest.fixture(scope="session")
def edits() -> Any:
    """The module of changes, `examples/benchmarks/drift_edits.py`."""
    return edits_module


@pytest.fixture(scope="session")
def planted_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Planted]:
    """`planted_of("llama")`: a planted model of a family with its artefact."""
    made: dict[str, Planted] = {}

    def get(family: str) -> Planted:
        if family not in made:
            loaded = plant(family)
            folder = tmp_path_factory.mktemp(family)
            data = planted.write_rows(folder / "contrast.jsonl")
            artefact = fit(
                loaded, data=data, extend=False, refusal_prefixes=planted.PREFIXES, **RATES
            )
            made[family] = Planted(loaded, artefact, data, folder)
        return made[family]

    return get


@pytest.fixture(scope="session")
def text(planted_of: Callable[[str], Planted]) -> Planted:
    return planted_of("llama")


@pytest.fixture(scope="session")
def pictures(planted_of: Callable[[str], Planted]) -> Planted:
    return planted_of("llava")


def replies(kind: str, answer: str, count: int) -> list[tuple[str, str]]:
    rows = [r for r in planted.contrast_rows() if r["kind"] == kind and r["split"] == "fit"]
    return [(row["text"], answer) for row in rows[:count]]


@pytest.fixture(scope="session")
def changed(
    planted_of: Callable[[str], Planted], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], LoadedModel]:
    """`changed("llama", "rebased")`: the planted model of a family after a change, made once."""
    harmless = replies("ordinary", " what you can do is this picture", 20)
    complying = replies("unsafe", " you can make this picture", 20)
    e, made = edits_module, {}

    def saved(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
        folder = tmp_path_factory.mktemp("saved")
        return e.resaved(loaded, folder, shard="20KB", dtype=dtype)

    def begun(template: str) -> str:
        return template.replace("assistant\\n'", "assistant\\nI can'")

    changes: dict[str, Callable[[LoadedModel], LoadedModel]] = {
        "nothing": lambda old: old,
        "shards": lambda old: saved(old, torch.float32),
        "bfloat16": lambda old: saved(old, torch.bfloat16),
        "template": lambda old: e.with_template(old, begun),
        "tuned a little": lambda old: e.fine_tuned(old, harmless, steps=3, rate=1e-4, batch=4),
        "tuned to comply": lambda old: e.fine_tuned(old, complying, steps=30, rate=1e-2, batch=4),
        "LoRA": lambda old: e.with_lora(old, harmless, strength=0.5, steps=8, rate=1e-2),
        "rebased": e.rebased,
        "permuted": lambda old: e.rebased(old, flips=False),
        "another": lambda old: e.rebased(plant(old.source.removeprefix("planted "), seed=4)),
        "deafened": e.deafened,
    }

    def get(family: str, change: str) -> LoadedModel:
        if (family, change) not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT asks by a model's old names
                made[family, change] = changes[change](planted_of(family).loaded)
        return made[family, change]

    return get


@pytest.fixture(scope="session")
def drifted(
    planted_of: Callable[[str], Planted], changed: Callable[[str, str], LoadedModel]
) -> Callable[[str, str], Drift]:
    """`drifted("llama", "rebased")`: the check of that change, repaired, made once."""
    made: dict[tuple[str, str], Drift] = {}

    def get(family: str, change: str) -> Drift:
        if (family, change) not in made:
            made[family, change] = planted_of(family).check(changed(family, change), fix=True)
        return made[family, change]

    return get


@pytest.fixture(scope="session")
def read(text: Planted) -> Read:
    """The planted text model, read as a check would."""
    return text.read(text.loaded)
