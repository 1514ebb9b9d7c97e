from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest

from guardrail.artefact import Artefact
from guardrail.artefact.header import Rates
from guardrail.audit import AuditLog
from guardrail.fit.calibrate import calibration
from guardrail.monitor import Monitor, compare
from guardrail.types import Action, Modality, Verdict


@pytest.fixture(scope="module")
def fitted(saved):
    """An artefact whose 999 benign scores are normal, and its file."""
    scores = np.random.default_rng(0).normal(0, 1, 999).tolist()
    row = calibration(scores, Rates(steer=0.05, flag=0.01), source="safe prompts")
    made = Artefact.load(saved.artefact["pass"]).revised(calibration={Modality.TEXT: row})
    return made, str(made.save(saved.folder / "monitored.guard.safetensors"))


@pytest.fixture
def kept(fitted, tmp_path):
    """`kept("a.json", shift=0.5, n=400)`: a snapshot; a name in .jsonl makes an audit log."""
    artefact, _ = fitted

    def verdict(score, artefact_id):
        return Verdict(
            action=Action.PASS,
            would_be=Action.PASS,
            score=score,
            tau_steer=9,
            tau_flag=9,
            layers=(1,),
            modality=Modality.TEXT,
            artefact_id=artefact_id,
        )

    def make(name, *, shift=0.0, n=400, seed=1, artefact_id=artefact.artefact_id):
        monitor, path = Monitor(artefact), tmp_path / name
        scores = np.random.default_rng(seed).normal(shift, 1, n).tolist()
        if path.suffix == ".json":
            for score in scores:
                monitor.record(verdict(score, artefact_id))
            return str(monitor.snapshot().save(path))
        with AuditLog(path) as log:
            for score in scores:
                log(verdict(score, artefact_id), {"event": "verdict", "request_id": "r"})
        return str(path)

    return make


def test_like_traffic_is_fine(run, fitted, kept):
    done = run("monitor", fitted[1], kept("a.json"))
    assert done.exit_code == 0, done.stderr
    assert "no alarm" in done.stdout
    assert fitted[0].artefact_id in done.stdout
    assert "inputs (calibration)         400 (999)" in done.stdout
    assert "beyond steer (target)        " in done.stdout
    assert "(5.0%)" in done.stdout
    assert done.stderr == ""


def test_which_reading_asked_for_flags_is_told(run, fitted, tmp_path):
    artefact, path = fitted
    monitor = Monitor(artefact)
    for reading in ("last", "window", "window", "window"):
        monitor.add(Modality.TEXT, Action.FLAG, 9.0, reading)
    done = run("monitor", path, str(monitor.snapshot().save(tmp_path / "a.json")))
    assert re.search(r"flagged by reading +last 25%, window 75% \(n 4\) ", done.stdout)


def test_a_shift_is_a_finding_with_its_reasons_and_meaning(run, fitted, kept):
    done = run("monitor", fitted[1], kept("a.json", shift=1.0))
    assert done.exit_code == 1
    assert "text: scores are distributed otherwise" in done.stdout
    assert "run `guardrail calibrate`" in done.stdout


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_the_document_is_the_comparison(run, fitted, kept, name):
    artefact, path = fitted
    done = run("monitor", path, kept(name, shift=0.8), "--json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    monitor = Monitor(artefact)
    for score in np.random.default_rng(1).normal(0.8, 1, 400).tolist():
        monitor.add(Modality.TEXT, Action.PASS, score)
    expected = compare(monitor.snapshot(), artefact).to_dict()
    for part in ("alarm", "tests", "modalities", "meaning", "artefact_id"):
        assert found[part] == expected[part]
    assert found["logs"]["counted"] == (400 if name.endswith("l") else 0)


def test_snapshots_and_logs_are_added_up(run, fitted, kept):
    files = [kept("a.json", n=60), kept("b.json", n=60, seed=2), kept("c.jsonl", n=60, seed=3)]
    done = run("monitor", fitted[1], *files, "--json")
    assert json.loads(done.stdout)["modalities"][0]["n"] == 180


def test_limits_are_options(run, fitted, kept):
    shifted, few = kept("a.json", shift=-0.7), kept("b.json", n=30, shift=3)
    assert run("monitor", fitted[1], shifted).exit_code == 1
    assert run("monitor", fitted[1], shifted, "--psi", "50").exit_code == 0
    done = run("monitor", fitted[1], few)
    assert done.exit_code == 0
    assert "30 inputs are too few to judge; it takes 100" in done.stdout
    assert run("monitor", fitted[1], few, "--least", "30").exit_code == 1


def test_lines_of_other_artefacts_and_half_lines_are_told(run, fitted, kept):
    other = kept("a.jsonl", artefact_id="guard-other", n=7)
    mine = kept("b.jsonl", n=200)
    with open(mine, "a") as file:
        file.write('{"time": "20')
    done = run("monitor", fitted[1], other, mine)
    assert done.exit_code == 0
    assert "warning: 7 verdicts of other artefacts" in done.stderr
    assert "warning: 1 half-written last lines" in done.stderr
    assert "  200 (999)" in done.stdout


def test_only_lines_of_a_stretch_of_time_are_read(run, fitted, kept):
    log, now = kept("a.jsonl", n=150), datetime.now(UTC)
    later = f"{now.year + 1}-01-01"
    done = run("monitor", fitted[1], log, "--since", later, "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "do --since and --until leave anything" in done.stderr
    done = run("monitor", fitted[1], log, "--until", later + "T00:00+02:00", "--json")
    assert json.loads(done.stdout)["logs"]["counted"] == 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--since", "yesterday"), "no time such as"),
        (("--since", "2026-01-01"), "cut logs only"),
        (("--bins", "5"), "bins: 10, 5"),
        (("--alpha", "0"), "alpha"),
        (("--bins", "1"), "bins"),
    ],
)
def test_usage_that_cannot_hold_is_an_error(run, fitted, kept, options, message):
    files = [kept("a.json"), *([kept("b.jsonl")] if "--bins" in options else [])]
    done = run("monitor", fitted[1], *files, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_file_given_twice_would_count_twice(run, fitted, kept, tmp_path):
    path = kept("a.json")
    (tmp_path / "link.json").symlink_to(path)
    done = run("monitor", fitted[1], path, str(tmp_path / "link.json"))
    assert done.exit_code == 2
    assert "given twice" in done.stderr


def test_logs_of_other_artefacts_alone_are_no_good_news(run, fitted, kept):
    done = run("monitor", fitted[1], kept("a.jsonl", artefact_id="guard-other", n=7))
    assert done.exit_code == 2
    assert "all 7 verdicts are of other artefacts" in done.stderr


def test_too_few_verdicts_to_judge_are_told(run, fitted, kept):
    done = run("monitor", fitted[1], kept("a.jsonl", n=7))
    assert done.exit_code == 0
    assert "warning: nothing was judged; it takes 100 inputs" in done.stderr
    assert "nothing was judged" not in run("monitor", fitted[1], kept("b.jsonl", n=400)).stderr


def test_a_log_without_any_verdict_is_no_good_news(run, fitted, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = run("monitor", fitted[1], str(empty))
    assert done.exit_code == 2
    assert "there is no verdict" in done.stderr


def test_other_files_and_other_artefacts_snapshots_are_errors(run, saved, fitted, kept, tmp_path):
    path = kept("a.json")
    done = run("monitor", saved.artefact["flag"], path)
    assert done.exit_code == 2
    assert "the guard ran with" in done.stderr
    whole = (tmp_path / "a.json").read_text()
    (tmp_path / "cut.json").write_text(whole[:-50])
    for name, text in (("cut.json", whole[:-50]), ("other.txt", "hello\nyou\n")):
        (tmp_path / name).write_text(text)
        done = run("monitor", fitted[1], str(tmp_path / name))
        assert (done.exit_code, done.stdout) == (2, "")
        assert name in done.stderr
