from __future__ import annotations

import json

from guardrail.artefact import Artefact
from guardrail.artefact.header import Offset
from guardrail.stats import Rate


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


def test_what_becomes_of_videos_is_told(run, saved, tmp_path):
    artefact = Artefact.load(saved.artefact["flag"])
    offset = Offset(size=0.25, spread_colours=0.125, spread_prompts=0.0, n_colours=4, n_prompts=2)
    with_offset = artefact.revised(offsets={"video": offset})
    shown = run("info", str(with_offset.save(tmp_path / "a.safetensors"))).stdout
    assert "offset video     0.250 (spread 0.125)\n" in shown
    assert "videos           scored, held to the thresholds of text\n" in shown
    both = {m: artefact.header.calibration["text"] for m in ("text", "video")}
    own = artefact.revised(calibration=both)
    shown = run("info", str(own.save(tmp_path / "b.safetensors"))).stdout
    assert "scored, held to thresholds of their own" in shown
    assert "\nvideo            steer at" in shown
    tensors = {n: t for n, t in artefact.tensors.items() if not n.endswith("_video")}
    old = artefact.revised(tensors=tensors)
    shown = run("info", str(old.save(tmp_path / "c.safetensors"))).stdout
    assert "videos           cannot be scored: fitted without them\n" in shown
