from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guardrail.artefact import Artefact
from guardrail.drift.run import Drift
from guardrail.drift.schema import (
    DriftReport,
    FieldChange,
    Figures,
    FormSeparation,
    LayerDrift,
    PictureDrift,
    RateDrift,
    Repaired,
    Scores,
    ScoreShift,
    Separation,
    SteeringDrift,
    TransportFigures,
)
from guardrail.errors import ArtefactError, NoUsableDirectionError
from guardrail.stats import Estimate, Rate, Share

HOW = {"keep": "fingerprint", "recalibrate": "recalibrated", "refit": "transported"}


def report(verdict: str, artefact_id: str = "guard-old", *, transport: bool = False) -> DriftReport:
    """A report with something in every place."""
    level = Estimate(value=0.93, low=0.9, high=0.95)
    share = Share.of(Rate(6, 56))
    return DriftReport(
        created="2026-01-02T03:04:05+00:00",
        guardrail_version="0.1.0",
        model="a <model>",
        artefact_id=artefact_id,
        verdict=verdict,
        reasons=("the AUROC is what it is & <more>",),
        warnings=("the artefact holds no scores",),
        fingerprint=(
            FieldChange(field="weights_digest", fitted="aa", running="bb", decides=True),
            FieldChange(field="dtype", fitted="float32", running="bfloat16", decides=False),
        ),
        data={"digest": "00"},
        readout={"estimator": "shrinkage LDA", "layers": [1, 2]},
        figures=Figures(
            separation=Separation(
                n=48, recorded=0.94, fitted=level, old=level, same=None, best=level,
                best_estimator="difference of means", best_layers=(1,), lost=level, dropped=None,
            ),
            forms=(
                FormSeparation(
                    form="plain", n_unsafe=16, n_safe=32,
                    fitted=None, old=level, same=level, best=level,
                ),
            ),
            layers=(
                LayerDrift(layer=0, read=False, edited=False, cosine=None,
                           gap_fitted=0.0, gap_now=0.1),
                LayerDrift(layer=1, read=True, edited=True, cosine=0.97,
                           gap_fitted=2.0, gap_now=2.1),
            ),
            rates=(
                RateDrift(modality="text", label="safe", action="flag", threshold=0.7,
                          target=0.05, now=share, fitted=None, p_value=None),
                RateDrift(modality="text", label="unsafe", action="flag", threshold=0.7,
                          target=None, now=share, fitted=share, p_value=1.0),
            ),
            shifts=(
                ScoreShift(form="plain", label="safe", n=3, mean_now=0.1, mean_fitted=0.0,
                           shift=Estimate(value=0.1, low=0.0, high=0.2)),
            ),
            centroids_now=(0.0, 1.0),
            pictures=(PictureDrift(kind="image", safe_fitted=0.01, unsafe_fitted=-0.02,
                                   safe_now=0.31, unsafe_now=-0.42),),
            steering=SteeringDrift(layer=1, n=12, shift_fitted=None, shift_now=2.0,
                                   shift_fresh=None, kl_fitted=None, kl_now=0.4, kl_fresh=None),
        ),
        transport=TransportFigures(
            coordinates=32, moved=30, flipped=12, unexplained=0.41, ambiguous=0.0,
            auroc_fitted=None, auroc_before=0.6, auroc_after=0.9, shift=0.0, source="means",
            reason="the change is not a signed permutation",
        ) if transport else None,
        scores=(
            Scores(form="plain", label="safe", now=(0.0, 0.1, 0.2), fitted=(0.1, 0.1, 0.0)),
            Scores(form="plain", label="unsafe", now=(0.9, 1.1), fitted=None),
        ),
    )  # fmt: skip


class Check(NamedTuple):
    """A check that takes no time: what it was asked, and what it will answer."""

    calls: list[dict[str, Any]]
    answer: dict[str, Any]


@pytest.fixture
def checked(monkeypatch: Any) -> Check:
    check = Check([], {"verdict": "keep"})

    def check_drift(artefact: Artefact, loaded: Any, *, progress: Any, **options: Any) -> Drift:
        check.calls.append({"loaded": loaded, **options})
        print("remote code may print, too")  # noqa: T201
        progress("contrast prompts", 1, 1)
        if "error" in check.answer:
            raise check.answer["error"]
        verdict = check.answer["verdict"]
        told = report(verdict, artefact.artefact_id, transport=verdict == "refit")
        if not options["fix"]:
            return Drift(told, None)
        made = artefact.revised(extra={"drift": {"verdict": verdict}})
        named = Repaired(artefact_id=made.artefact_id, how=HOW[verdict])
        return Drift(told.model_copy(update={"repaired": named}), made)

    monkeypatch.setattr("guardrail.drift.run.check_drift", check_drift)
    return check


@pytest.mark.parametrize(("verdict", "code"), [("keep", 0), ("recalibrate", 1), ("refit", 1)])
@pytest.mark.parametrize("fix", [False, True])
def test_the_exit_code_says_whether_it_has_drifted_repaired_or_not(
    run, saved, checked, tmp_path, verdict, code, fix
):
    checked.answer["verdict"] = verdict
    out = tmp_path / "new.guard.safetensors"
    words = ["--fix", "-o", str(out)] if fix else []
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == code, done.stderr
    assert done.stdout.startswith("verdict")
    assert verdict in done.stdout.splitlines()[0]
    assert "the AUROC is what it is & <more>" in done.stdout
    assert "warning: the artefact holds no scores" in done.stderr
    assert out.exists() is fix
    if fix:
        assert Artefact.load(out).artefact_id in done.stdout
        assert str(out) in done.stdout.replace("\n", "")


def test_a_model_that_has_not_changed_is_answered_at_once(run, saved, tmp_path):
    """Through the real check: a made-up artefact names no prompts, and none are needed."""
    out, html = tmp_path / "report.json", tmp_path / "report.html"
    words = ("drift", saved.artefact["pass"], "--model", saved.model)
    done = run(*words, "--report", str(out), "--html", str(html))
    assert done.exit_code == 0, done.stderr
    assert "keep" in done.stdout.splitlines()[0]
    assert "nothing was measured, because nothing has changed" in done.stdout
    assert "AUROC" not in done.stdout
    found = json.loads(out.read_text())
    assert (found["figures"], found["scores"]) == (None, [])
    assert "nothing was measured" in found["reasons"][0]
    page = html.read_text()
    assert "nothing was measured, because nothing has changed" in page
    assert 'id="separation"' not in page
    assert 'href="#separation"' not in page


def test_figures_are_shown_with_their_counts(run, saved, checked):
    checked.answer["verdict"] = "refit"
    done = run("drift", saved.artefact["pass"], "--model", saved.model)
    for shown in ("0.930 (0.900-0.950)", "6/56", "16+32", "0.970", "5.0%", "+2.00", "41.00%"):
        assert shown in done.stdout, shown


def test_json_is_the_report(run, saved, checked, tmp_path):
    out = tmp_path / "new.guard.safetensors"
    done = run(
        "drift", saved.artefact["pass"], "--model", saved.model, "--json", "--fix", "-o", str(out)
    )
    found = DriftReport.model_validate_json(done.stdout)
    assert found.verdict == "keep"
    assert found.repaired.path == str(out)
    assert "remote code may print" in done.stderr


def test_reports_are_written_beside(run, saved, checked, tmp_path):
    checked.answer["verdict"] = "recalibrate"
    out, html = tmp_path / "report.json", tmp_path / "report.html"
    done = run(
        "drift", saved.artefact["pass"], "--model", saved.model, "--report", str(out), "--html",
        str(html),
    )  # fmt: skip
    assert done.exit_code == 1, done.stderr
    assert DriftReport.model_validate_json(out.read_text()).verdict == "recalibrate"
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_options_reach_the_check(run, saved, checked, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("")
    words = ["--data", str(data), "--replace-data", "--batch-size", "3", "--old-model", saved.model]
    words += ["--work-dir", str(tmp_path / "work"), "--dtype", "float32"]
    words += ["--measure", "--per-kind", "7"]
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 0, done.stderr
    (call,) = checked.calls
    assert call.pop("loaded").layer_count == 4
    assert call.pop("old_model").layer_count == 4
    assert call == {
        "data": data, "extend": False, "fix": False, "batch_size": 3, "work_dir": tmp_path / "work",
        "measure": True, "per_kind": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [NoUsableDirectionError("best AUROC 0.61,\nneeds 0.80"), RuntimeError("out of memory")],
)
def test_a_failure_exits_with_2_and_writes_nothing(run, saved, checked, tmp_path, error):
    checked.answer["error"] = error
    names = [str(tmp_path / name) for name in ("new.safetensors", "r.json", "r.html")]
    words = ["--fix", "-o", names[0], "--report", names[1], "--html", names[2]]
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 2
    assert " ".join(str(error).split()) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_drawn_leaves_no_artefact(run, saved, checked, tmp_path, monkeypatch):
    def broken(_report: Any) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("guardrail.report.drift.drift_page", broken)
    words = ["--fix", "-o", str(tmp_path / "new"), "--html", str(tmp_path / "r.html")]
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--fix"], ["-o", "new.safetensors"]])
def test_fix_and_its_file_belong_together(run, saved, checked, words):
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 2
    assert "--fix and --out belong together" in done.stderr
    assert checked.calls == []


def test_a_repair_takes_all_prompts_of_the_fit(run, saved, checked):
    words = ["--fix", "-o", "new.safetensors", "--per-kind", "7"]
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 2
    assert "leave --per-kind out" in " ".join(done.stderr.split())
    assert checked.calls == []


@pytest.mark.parametrize("option", ["-o", "--report", "--html"])
def test_a_place_that_cannot_be_written_fails_before_the_work(
    run, saved, checked, tmp_path, option
):
    words = [option, str(tmp_path / "no folder" / "file")]
    words += ["--fix"] if option == "-o" else []
    done = run("drift", saved.artefact["pass"], "--model", saved.model, *words)
    assert done.exit_code == 2
    assert "has no folder" in done.stderr
    assert checked.calls == []


@pytest.mark.parametrize("command", ["drift", "transport"])
def test_replacing_the_data_needs_data(run, saved, checked, command, tmp_path):
    words = ["-o", str(tmp_path / "new")] if command == "transport" else []
    done = run(command, saved.artefact["pass"], "--model", saved.model, "--replace-data", *words)
    assert done.exit_code == 2
    assert "--replace-data needs --data" in done.stderr


def test_an_artefact_of_other_prompts_is_an_error(run, saved):
    """Through the real check: a made-up artefact names no prompts."""
    done = run("drift", saved.artefact["pass"], "--model", saved.model, "--measure")
    assert done.exit_code == 2
    assert "on a set it does not name" in done.stderr


@pytest.fixture
def carried(monkeypatch: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {}

    def transport(artefact: Artefact, _loaded: Any, **options: Any) -> Any:
        answer["options"] = options
        if "error" in answer:
            raise answer["error"]
        figures = report("refit", transport=True).transport.model_copy(update={"reason": None})
        return artefact.revised(extra={"drift": {}}), figures

    monkeypatch.setattr("guardrail.drift.transport.transport", transport)
    return answer


def test_transport_writes_the_artefact_and_says_how_sure_it_is(run, saved, carried, tmp_path):
    out = tmp_path / "new.guard.safetensors"
    done = run("transport", saved.artefact["pass"], "--model", saved.model, "-o", str(out))
    assert done.exit_code == 0, done.stderr
    made = Artefact.load(out)
    assert made.header.parent == Artefact.load(saved.artefact["pass"]).artefact_id
    assert made.artefact_id in done.stdout
    assert "30 of 32 coordinates moved, 12 signs flipped" in done.stdout
    assert carried["options"]["extend"] is True


def test_transport_as_json(run, saved, carried, tmp_path):
    out = tmp_path / "new.guard.safetensors"
    done = run(
        "transport", saved.artefact["pass"], "--model", saved.model, "-o", str(out), "--json"
    )
    found = json.loads(done.stdout)
    assert found["path"] == str(out)
    assert found["transport"]["moved"] == 30
    assert found["artefact_id"] == Artefact.load(out).artefact_id


def test_transport_that_does_not_apply_writes_nothing(run, saved, carried, tmp_path):
    carried["error"] = ArtefactError("the artefact cannot be carried over: 41% unexplained")
    out = tmp_path / "new.guard.safetensors"
    done = run("transport", saved.artefact["pass"], "--model", saved.model, "-o", str(out))
    assert done.exit_code == 2
    assert "41% unexplained" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_scores_of_single_prompts_are_no_part_of_an_artefacts_facts(run, saved, tmp_path):
    old = Artefact.load(saved.artefact["pass"])
    extra = {"reference": {"plain": {"index": [1], "score": [0.5]}}, "drift": {"how": "refitted"}}
    path = old.revised(extra=extra).save(tmp_path / "made.guard.safetensors")
    found = json.loads(run("info", str(path), "--json").stdout)
    assert found["extra"] == {"drift": {"how": "refitted"}}


@pytest.mark.parametrize(
    "words",
    [
        ["--fix", "-o", "{here}/a", "--report", "{here}/a"],
        ["--report", "{here}/a", "--html", "{here}/./a"],
        ["--report", "{artefact}"],
        ["--html", "{artefact}"],
    ],
)
def test_a_file_is_not_written_over_another(run, saved, checked, tmp_path, words):
    artefact = tmp_path / "old.guard.safetensors"
    artefact.write_bytes(Path(saved.artefact["pass"]).read_bytes())
    before = artefact.read_bytes()
    named = [word.format(here=tmp_path, artefact=artefact) for word in words]
    done = run("drift", str(artefact), "--model", saved.model, *named)
    assert done.exit_code == 2
    assert "need a file each" in done.stderr
    assert checked.calls == []
    assert artefact.read_bytes() == before


def test_the_new_artefact_may_take_the_old_ones_place(run, saved, checked, tmp_path):
    artefact = tmp_path / "old.guard.safetensors"
    artefact.write_bytes(Path(saved.artefact["pass"]).read_bytes())
    old = Artefact.load(artefact).artefact_id
    run("drift", str(artefact), "--model", saved.model, "--fix", "-o", str(artefact))
    assert Artefact.load(artefact).header.parent == old
