from __future__ import annotations

import io
import json

import pytest

from guardrail.artefact import Artefact
from guardrail.artefact.header import Calibration
from guardrail.cli.info import earlier_rows, show_thresholds
from guardrail.policy import Thresholds
from guardrail.stats import Rate
from guardrail.types import Modality


def test_an_artefact_is_described(run, saved):
    done = run("info", saved.artefact["flag"])
    assert done.exit_code == 0
    artefact = Artefact.load(saved.artefact["flag"])
    assert artefact.artefact_id in done.stdout
    assert "random, layers 1, 2" in done.stdout
    assert "layer 2, gain 1.000" in done.stdout
    assert "n = 199" in done.stdout


def test_the_figures_of_steering_say_what_they_are_shares_of(run, saved, tmp_path):
    artefact = Artefact.load(saved.artefact["flag"])
    rates = {"induced_refusal": Rate(5, 10), "false_refusal": Rate(1, 20)}
    steering = artefact.header.steering.model_copy(update=rates)
    path = artefact.revised(steering=steering).save(tmp_path / "revised.safetensors")
    shown = run("info", str(path)).stdout
    assert f"induced refusal (of harmful held-out prompts, all steered): {Rate(5, 10)}" in shown
    assert f"false refusal (of all benign prompts, behind the gate): {Rate(1, 20)}" in shown


def test_what_an_edit_before_the_readout_costs_is_said(run, saved, tmp_path):
    artefact = Artefact.load(saved.artefact["flag"])
    for layer, said in ((1, "layer 2 runs twice"), (0, "layers 1 to 2 run twice")):
        steering = artefact.header.steering.model_copy(update={"layer": layer})
        path = artefact.revised(steering=steering).save(tmp_path / f"{layer}.safetensors")
        shown = run("info", str(path)).stdout
        assert f"before the readout: for a steered request {said}" in shown
    assert "twice" not in run("info", saved.artefact["flag"]).stdout
    deeper = artefact.header.windows.model_copy(update={"layers": (2, 3)})
    path = artefact.revised(windows=deeper).save(tmp_path / "deeper.safetensors")
    assert "for a steered request layer 3 runs twice" in run("info", str(path)).stdout


def test_an_artefacts_document_is_its_header_without_scores(run, saved):
    found = json.loads(run("info", saved.artefact["flag"], "--json").stdout)
    header = Artefact.load(saved.artefact["flag"]).header.model_dump(mode="json")
    del header["calibration"]["text"]["scores"]
    assert found == header


def test_a_model_is_described_by_its_fingerprint(run, saved):
    done = run("info", saved.model, "--json")
    found = json.loads(done.stdout)
    assert (found["layers"], found["d_model"], found["pictures"]) == (4, 32, True)
    fitted = Artefact.load(saved.artefact["flag"]).header.fingerprint
    assert found["fingerprint"]["weights_digest"] == fitted.weights_digest


def test_a_model_is_described_for_people_too(run, saved):
    assert "layers           4\n" in run("info", saved.model).stdout


def test_a_damaged_file_is_an_error_in_one_line(run, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not an artefact")
    done = run("info", str(tmp_path / "x.safetensors"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_file_is_an_error_in_one_line(run, tmp_path):
    done = run("info", str(tmp_path / "gone.safetensors"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "gone.safetensors" in done.stderr


def test_what_else_is_read_and_what_pictures_leave_is_told(run, saved, tmp_path):
    artefact = Artefact.load(saved.artefact["flag"])
    shown = run("info", saved.artefact["flag"]).stdout
    assert "windows          up to 8 tokens, layers 1, 2\n" in shown
    row = artefact.header.recentring["image"]
    left = row.model_copy(update={"safe": 0.25, "unsafe": -0.125, "slope": 0.75, "n": 24})
    made = artefact.revised(recentring=artefact.header.recentring | {"image": left})
    shown = run("info", str(made.save(tmp_path / "a.safetensors"))).stdout
    assert "beside image     safe +0.25, unsafe -0.12, slope 0.75 (n = 24)\n" in shown
    assert "windows " not in run("info", without_windows(artefact, tmp_path)).stdout


def without_windows(artefact, folder):
    tensors = {n: t for n, t in artefact.tensors.items() if not n.startswith("window_")}
    made = artefact.revised(tensors=tensors, windows=None)
    return str(made.save(folder / "without.safetensors"))


def test_what_becomes_of_videos_is_told(run, saved, tmp_path):
    artefact = Artefact.load(saved.artefact["flag"])
    shown = run("info", saved.artefact["flag"]).stdout
    assert "videos           scored, held to the thresholds of text\n" in shown
    both = {m: artefact.header.calibration["text"] for m in ("text", "video")}
    own = artefact.revised(calibration=both)
    shown = run("info", str(own.save(tmp_path / "b.safetensors"))).stdout
    assert "scored, held to thresholds of their own" in shown
    assert "\nvideo            steer at" in shown
    rows = {kind: row for kind, row in artefact.header.recentring.items() if kind != "video"}
    old = artefact.revised(recentring=rows)
    shown = run("info", str(old.save(tmp_path / "c.safetensors"))).stdout
    assert "videos           cannot be scored: fitted without them\n" in shown


ROW = {
    "thresholds": {"steer": 0.25, "flag": 0.5},
    "targets": {"steer": 0.1, "flag": 0.02},
    "source": "safe prompts",
    "n": 120,
}


@pytest.fixture(scope="module")
def artefact(saved):
    return Artefact.load(saved.artefact["pass"])


def _after(artefact, earlier):
    return artefact.revised(extra={"calibrated_from": earlier})


def test_what_was_in_force_before_is_told(artefact):
    made = _after(artefact, {"calibration": {"text": ROW}})
    expected = "steer at 0.250 (target 10.0%), flag at 0.500 (target 2.0%), n = 120, safe prompts"
    assert earlier_rows(made.header) == [("text before", expected)]


def test_what_was_kept_is_not_told_twice(artefact):
    row = artefact.header.calibration[Modality.TEXT]
    same = row.model_dump(mode="json", include=set(ROW))
    made = _after(artefact, {"calibration": {"text": same, "image": ROW}})
    assert [name for name, _ in earlier_rows(made.header)] == ["image before"]


@pytest.mark.parametrize(
    "earlier", [None, 3, {}, {"calibration": 3}, {"calibration": {"text": {"n": "many"}}}]
)
def test_notes_of_another_form_are_passed_over(artefact, earlier):
    assert earlier_rows(_after(artefact, earlier).header) == []


def test_a_modality_that_had_none_says_so_and_a_sample_its_whole(artefact):
    scores = tuple(float(i) for i in range(10))
    thresholds = Thresholds(steer=8, flag=9)
    row = Calibration(scores=scores, thresholds=thresholds, source="mine", n=10)
    made = artefact.revised(
        calibration={Modality.TEXT: row, Modality.IMAGE: row},
        extra={"calibration": {"image": {"seen": 77, "kept": 10}, "text": {"seen": 10}}},
    )
    stdout = io.StringIO()
    show_thresholds(stdout, made, before=artefact)
    lines = {tuple(line.split()[:2]): line.split()[2:] for line in stdout.getvalue().splitlines()}
    assert lines["image", "steer"] == ["none", "8.000", "5.0%", "10", "of", "77"]
    assert lines["text", "flag"][1:] == ["9.000", "1.0%", "10"]
