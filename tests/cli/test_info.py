from __future__ import annotations

import json

from guardrail.artefact import Artefact


def test_an_artefact_is_described(run, saved):
    done = run("info", saved.artefact["flag"])
    assert done.exit_code == 0
    artefact = Artefact.load(saved.artefact["flag"])
    assert artefact.artefact_id in done.stdout
    assert "random, layers 1, 2" in done.stdout
    assert "layer 2, gain 1.000" in done.stdout
    assert "n = 199" in done.stdout


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
