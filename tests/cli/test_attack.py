from __future__ import annotations

import json

import pytest

ROWS = [{"text": f"Tell me about {name}", "id": name} for name in "abcd"]
FEW = ("--questions", "4", "--searched", "1", "--gradients", "1", "--plain", "1")


@pytest.fixture
def files(tmp_path):
    harmful, benign = tmp_path / "harmful.jsonl", tmp_path / "benign.jsonl"
    harmful.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    benign.write_text("".join(json.dumps({"text": f"Say {i}"}) + "\n" for i in range(4)))
    return harmful, benign


@pytest.fixture
def attack(run, saved, files):
    def call(*words, action="steer"):
        harmful, benign = files
        given = ("-d", str(harmful), "--benign", str(benign), *FEW, "--new-tokens", "2")
        return run("attack", saved.model, "-a", saved.artefact[action], *given, *words)

    return call


def test_the_page_and_the_report_are_written_and_a_second_run_asks_nothing(attack, tmp_path):
    out = tmp_path / "out"
    words = ("--only", "upper case", "--only", "greedy words before", "-o", str(out))
    done = attack(*words)
    assert done.exit_code == 0, done.stderr
    assert "greedy words before" in done.stdout
    report = json.loads((out / "attack.json").read_text())
    assert [row["name"] for row in report["rows"]] == [
        "as it is",
        "upper case",
        "greedy words before",
    ]
    assert report["rows"][0]["hit"]["n"] == 4
    page = (out / "attack.html").read_text()
    assert "upper case" in page
    assert "<script" not in page
    again = attack(*words)
    assert again.exit_code == 0, again.stderr
    second = json.loads((out / "attack.json").read_text())
    for one in (report, second):
        one.pop("created")
        for row in one["rows"]:
            row.pop("seconds")
    assert second == report


def test_json_on_stdout_alone(attack):
    done = attack("--only", "JSON", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["n_benign"] == 4


def test_ones_own_attack_and_an_unknown_name(attack, monkeypatch):
    from tests.attack.test_attacks import Shouted

    monkeypatch.setattr("json.Shouted", Shouted, raising=False)
    done = attack("--attack", "json:Shouted")
    assert done.exit_code == 0, done.stderr
    assert "shouted" in done.stdout
    wrong = attack("--only", "nonsense")
    assert wrong.exit_code == 2
    assert "there is no attack 'nonsense'; known are base64" in wrong.stderr


def test_packaged_requests_say_that_they_are(run, saved):
    done = run(
        "attack", saved.model, "-a", saved.artefact["pass"], "--only", "upper case", "--plain", "0"
    )
    assert done.exit_code == 0, done.stderr
    assert "packaged contrast prompts" in done.stderr


def test_an_aim_that_is_no_reading_is_refused(attack):
    done = attack("--only", "JSON", "--aim", "nothing")
    assert done.exit_code == 2
    assert "aims are readings (last, turns, windows, joint, ensemble, folded)" in done.stderr
