from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from guardrail.artefact import Artefact
from guardrail.errors import NoUsableDirectionError


@pytest.fixture
def fitted(saved, monkeypatch):
    """A fit that takes no time: records its arguments and returns the saved artefact."""
    calls = []

    def fit(loaded, *, progress, **options):
        calls.append((loaded, options))
        print("remote code may print, too")  # noqa: T201
        for done in range(3):
            progress("reading", done + 1, 3)
        progress("steering", 1, 1)
        return Artefact.load(saved.artefact["pass"])

    module = ModuleType("guardrail.fit.run")
    module.fit = fit
    monkeypatch.setitem(sys.modules, "guardrail.fit.run", module)
    return calls


def test_the_artefact_is_written_and_described(run, saved, fitted, tmp_path):
    out = tmp_path / "made.guard.safetensors"
    done = run("fit", saved.model, "-o", str(out))
    assert done.exit_code == 0, done.stderr
    made = Artefact.load(out)
    assert made.artefact_id in done.stdout
    assert str(out) in done.stdout
    assert "steer at 1000000.000 (target 5.0%)" in done.stdout
    assert "reading" in done.stderr
    assert "warning: random directions" in done.stderr


def test_options_reach_the_fit(run, saved, fitted, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("")
    words = ["--steer-rate", "0.1", "--flag-rate", "0.02", "--batch-size", "3", "--replace-data"]
    words += ["--data", str(data), "--work-dir", str(tmp_path / "work"), "--dtype", "float32"]
    done = run("fit", saved.model, "-o", str(tmp_path / "o.safetensors"), *words)
    assert done.exit_code == 0, done.stderr
    ((loaded, options),) = fitted
    assert loaded.layer_count == 4
    assert options == {
        "data": data,
        "extend": False,
        "steer_rate": 0.1,
        "flag_rate": 0.02,
        "batch_size": 3,
        "per_kind": 64,
        "video": None,
        "videos": 0,
        "work_dir": tmp_path / "work",
    }


def test_json_is_one_document_whatever_else_prints(run, saved, fitted, tmp_path):
    out = tmp_path / "made.safetensors"
    done = run("fit", saved.model, "-o", str(out), "--json")
    found = json.loads(done.stdout)
    assert found["path"] == str(out)
    assert found["artefact_id"] == Artefact.load(out).artefact_id
    assert "scores" not in found["calibration"]["text"]
    assert "remote code may print" in done.stderr


@pytest.mark.parametrize("out", ["no such folder/out.safetensors", "."])
def test_a_place_that_cannot_be_written_fails_before_the_work(run, saved, fitted, tmp_path, out):
    done = run("fit", saved.model, "-o", str(tmp_path / out))
    assert done.exit_code == 2
    assert "name a file to write" in done.stderr
    assert fitted == []


def test_replacing_the_data_needs_data(run, saved, fitted, tmp_path):
    done = run("fit", saved.model, "-o", str(tmp_path / "o.safetensors"), "--replace-data")
    assert done.exit_code == 2
    assert "--replace-data needs --data" in done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_a_fit_that_finds_nothing_says_so_in_one_line(run, saved, monkeypatch, tmp_path, debug):
    def fit(_loaded, **_options):
        raise NoUsableDirectionError("best AUROC 0.61 at layer 2,\nneeds 0.80")

    module = ModuleType("guardrail.fit.run")
    module.fit = fit
    monkeypatch.setitem(sys.modules, "guardrail.fit.run", module)
    words = ["--debug"] if debug else []
    done = run("fit", saved.model, "-o", str(tmp_path / "o.safetensors"), *words)
    assert done.exit_code == 2
    assert "error: best AUROC 0.61 at layer 2, needs 0.80\n" in done.stderr
    assert ("Traceback" in done.stderr) == debug
    assert not (tmp_path / "o.safetensors").exists()
