from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardrail.bulk import job
from guardrail.bulk.job import Summary
from guardrail.cli.score import exit_code


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"r{i}", "text": f"Row {i}"}) + "\n" for i in range(9))
    )
    return str(path)


@pytest.mark.parametrize(("action", "code"), [("pass", 0), ("steer", 0), ("flag", 1)])
def test_the_exit_code_says_whether_any_row_is_flagged(run, saved, rows, tmp_path, action, code):
    words = (
        "score",
        saved.model,
        "-a",
        saved.artefact[action],
        rows,
        "--out",
        str(tmp_path / "out"),
    )
    done = run(*words, "--part-rows", "4")
    assert done.exit_code == code, done.stderr
    assert f"text             {action} 9" in done.stdout
    table = pq.read_table(tmp_path / "out")
    assert table.column("key").to_pylist() == [f"r{i}" for i in range(9)]
    assert set(table.column("action").to_pylist()) == {action}


def test_a_finished_run_is_counted_again_without_the_model(run, saved, rows, tmp_path):
    words = ("-a", saved.artefact["pass"], rows, "--out", str(tmp_path / "out"), "--json")
    first = run("score", saved.model, *words)
    again = run("score", "no/such/model", *words)
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert json.loads(again.stdout)["actions"] == {"text": {"pass": 9}}


def test_a_row_without_a_score_is_counted_and_ends_with_2(run, saved, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Hello")
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    words = ("score", saved.model, "-a", saved.artefact["flag"], str(tmp_path / "in"))
    done = run(*words, "--out", str(tmp_path / "out"), "--format", "jsonl")
    assert done.exit_code == 2
    assert "unreadable       1" in done.stdout
    assert "ImageDecodeError 1" in done.stdout
    lines = (tmp_path / "out" / "part-0000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["score", "unreadable"]


def test_columns_can_be_named(run, saved, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a"], "prompt": ["b"], "n": [5]}), path)
    words = ("score", saved.model, "-a", saved.artefact["pass"], str(path))
    words += ("--out", str(tmp_path / "out"))
    unclear = run(*words)
    assert unclear.exit_code == 2
    assert "'text' and 'prompt' could both be meant" in unclear.stderr
    dropped = run(*words, "--text-column", "prompt", "--id-column", "n")
    assert dropped.exit_code == 2
    assert "'text' would not be read" in dropped.stderr
    words += ("--ignore-column", "text")
    named = run(*words, "--text-column", "prompt", "--id-column", "n")
    assert named.exit_code == 0, named.stderr
    assert pq.read_table(tmp_path / "out").column("key").to_pylist() == ["5"]


def test_naming_the_pictures_does_not_drop_the_words(run, saved, tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "image": [None, saved.picture]}), path)
    words = ("score", saved.model, "-a", saved.artefact["pass"], str(path))
    done = run(*words, "--out", str(tmp_path / "named"), "--image-column", "image")
    assert done.exit_code == 0, done.stderr
    run(*words, "--out", str(tmp_path / "usual"))
    scores = [pq.read_table(tmp_path / n).column("score").to_pylist() for n in ("named", "usual")]
    assert scores[0] == scores[1]
    assert None not in scores[0]


def test_shards_share_a_folder_and_a_last_call_counts_them_all(run, saved, rows, tmp_path):
    words = ("score", saved.model, "-a", saved.artefact["pass"], rows, "--out", str(tmp_path / "o"))
    first = run(*words, "--part-rows", "2", "--shard", "2/2")
    assert "4 of 9" in first.stdout
    assert "other shards are left" in first.stdout
    run(*words, "--part-rows", "2", "--shard", "1/2")
    last = run(*words, "--part-rows", "2")
    assert "9 of 9" in last.stdout
    assert "left" not in last.stdout
    wrong = run(*words, "--shard", "3/2")
    assert wrong.exit_code == 2
    assert "such as 2/8" in wrong.stderr


def test_ctrl_c_is_no_finding_and_says_how_to_go_on(run, saved, rows, tmp_path, monkeypatch):
    words = ("score", saved.model, "-a", saved.artefact["flag"], rows, "--out", str(tmp_path / "o"))
    write = job.Parts.write

    def interrupted(self, number, rows):
        if number == 1:
            raise KeyboardInterrupt
        write(self, number, rows)

    with monkeypatch.context() as patch:
        patch.setattr(job.Parts, "write", interrupted)
        stopped = run(*words, "--part-rows", "4")
    assert stopped.exit_code == 130
    assert "start the same command again" in stopped.stderr
    assert len(list((tmp_path / "o").glob("part-*"))) == 1
    assert run(*words, "--part-rows", "4").exit_code == 1
    assert pq.read_table(tmp_path / "o").column("row").to_pylist() == list(range(9))


def test_another_artefact_does_not_go_on_with_the_folder(run, saved, rows, tmp_path):
    words = ("--out", str(tmp_path / "out"), rows)
    run("score", saved.model, "-a", saved.artefact["pass"], *words)
    other = run("score", saved.model, "-a", saved.artefact["flag"], *words)
    assert other.exit_code == 2
    assert "holds verdicts of another run (artefact was" in other.stderr


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({}, 0),
        ({"flagged": 1}, 1),
        ({"flagged": 1, "unreadable": 1}, 2),
        ({"failed": 1}, 2),
    ],
)
def test_a_missing_score_weighs_more_than_a_finding(facts, code):
    assert exit_code(Summary(of=3, complete=True, **facts)) == code
