from __future__ import annotations

import os
from typing import Any

import pytest

from guardrail.bulk import Columns, score_dataset
from guardrail.errors import ConfigurationError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def data() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80_000_000,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.data
    ray.shutdown()


@pytest.fixture
def saved(guard: Any, tmp_path: Any) -> dict[str, str]:
    guard.loaded.model.save_pretrained(tmp_path / "model")
    guard.loaded.processor.save_pretrained(tmp_path / "model")
    artefact = guard.artefact.save(tmp_path / "a.guard.safetensors")
    return {"model": str(tmp_path / "model"), "artefact": str(artefact)}


def test_each_row_of_a_dataset_is_one_row_with_the_guards_verdict_or_an_error(
    data, saved, guard, png
):
    rows = [{"id": i, "text": f"Row {i}", "image": None, "n": -i} for i in range(40)]
    rows[3]["image"], rows[4]["image"] = png(9), b"broken"
    made = score_dataset(
        data.from_items(rows), **saved, keep=["n"], batch_size=8, actors=1, num_cpus=1
    )
    found = sorted(made.take_all(), key=lambda row: int(row["key"]))
    assert [(row["key"], row["n"]) for row in found] == [(str(i), -i) for i in range(40)]
    assert found[4]["error_type"] == "ImageDecodeError"
    assert [row["modality"] for row in found[:4]] == ["text"] * 3 + ["image"]
    for row in found[5:]:
        verdict = guard.check(f"Row {row['key']}")
        assert row["action"] == str(verdict.action)
        assert row["score"] == pytest.approx(verdict.score, abs=1e-4)


def test_rows_that_could_not_be_told_apart_are_refused(data):
    dataset = data.from_items([{"text": "a", "score": 1.0}])
    with pytest.raises(ConfigurationError, match="name an id column, or columns to keep"):
        score_dataset(dataset, model="m", artefact="a")
    with pytest.raises(ConfigurationError, match="'score' is written by the guard"):
        score_dataset(dataset, model="m", artefact="a", keep=["score"])
    with pytest.raises(ConfigurationError, match="no column 'words'"):
        score_dataset(dataset, model="m", artefact="a", columns=Columns(text="words"))


def test_a_column_that_would_not_be_read_is_named(data):
    dataset = data.from_items([{"id": 1, "text": "a", "scan": b"GIF", "question": "b", "n": 1}])
    with pytest.raises(ConfigurationError, match="'scan', 'question' would not be read"):
        score_dataset(dataset, model="m", artefact="a")
