from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from guardrail.cli.evaluate import Gates
from guardrail.evaluation.schema import Actions, Group, Report
from guardrail.stats import Rate, Share

ROWS = [
    {"text": f"Tell me about {name}", "label": label, "category": "c", "id": name}
    for name, label in zip("abcdefgh", ["harmful", "harmless"] * 4, strict=True)
]


@pytest.fixture
def data(saved, tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [*ROWS, {"text": "Look", "image": saved.picture, "label": "safe", "statement": "RED"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def evaluate(run, saved, data):
    def call(*words, action="pass", **more):
        chosen = ("--new-tokens", "2") if "--no-answers" not in words else ()
        return run(
            "evaluate",
            saved.model,
            "-a",
            saved.artefact[action],
            "-d",
            str(data),
            *chosen,
            *words,
            **more,
        )

    return call


def test_the_tables_name_every_figure_with_its_n(evaluate):
    done = evaluate()
    assert done.exit_code == 0, done.stderr
    for words in (
        "separation",
        "actions and refusals",
        "controls",
        "judge: refusal prefixes",
        "time",
    ):
        assert words in done.stdout
    assert "random directions" not in done.stdout or "too few" in done.stdout
    assert "warning: image: no harmful inputs" in done.stderr


def test_one_document_is_all_there_is_on_stdout(evaluate, tmp_path):
    done = evaluate("--json", "--out", str(tmp_path / "report.json"))
    report = Report.model_validate(json.loads(done.stdout))
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report
    assert len(report.items) == 9
    assert report.quality is not None


def test_without_answers_only_scores_and_actions_are_there(evaluate):
    report = json.loads(evaluate("--no-answers", "--json", action="flag").stdout)
    assert report["quality"] is report["judge"] is None
    assert {row["action"] for row in report["items"]} == {"flag"}
    assert {row["plain_answer"] for row in report["items"]} == {None}


def test_the_work_folder_makes_the_second_run_ask_nothing(evaluate, tmp_path):
    words = ("--json", "--work-dir", str(tmp_path / "work"))
    evaluate(*words)
    timings = json.loads(evaluate(*words).stdout)["timings"]
    cached = {t["stage"]: t["cached"] for t in timings}
    assert cached["scores"] == cached["plain answers"] == cached["guarded answers"] == 9


def test_a_page_is_written_with_and_without_content(evaluate, tmp_path):
    page = tmp_path / "report.html"
    done = evaluate("--html", str(page))
    assert done.exit_code == 0, done.stderr
    assert "Tell me about a" in page.read_text()
    evaluate("--html", str(page), "--no-content", "--no-answers")
    assert "Tell me about a" not in page.read_text()


def test_the_page_explains_the_worst_mistakes_of_each_kind(evaluate, tmp_path):
    page = tmp_path / "page.html"
    done = evaluate("--no-answers", "--html", str(page), "--explain", "2", action="flag")
    assert done.exit_code == 0, done.stderr
    html = page.read_text()
    assert html.count("Where the direction appears in this prompt") == 2  # nothing was missed
    assert html.count('class="heat-text"') == 2
    evaluate("--no-answers", "--html", str(page), "--explain", "1", action="pass")
    assert page.read_text().count('class="heat-text"') == 1  # nothing was hit


def test_a_mistake_that_cannot_be_explained_costs_no_report(evaluate, tmp_path, monkeypatch):
    from guardrail.errors import UnsupportedModelError

    def fail(*_args):
        raise UnsupportedModelError("no positions here")

    monkeypatch.setattr("guardrail.explain.run.explain", fail)
    page, out = tmp_path / "page.html", tmp_path / "report.json"
    words = ("--no-answers", "--html", str(page), "--out", str(out), "--explain", "1")
    done = evaluate(*words, action="flag")
    assert done.exit_code == 0, done.stderr
    assert "cannot be explained: no positions here" in done.stderr
    assert "Where the direction appears" not in page.read_text()
    assert len(json.loads(out.read_text())["items"]) == 9


@pytest.mark.parametrize(
    ("words", "action", "code", "reason"),
    [
        (("--max-benign-flagged", "0.5"), "pass", 0, ""),
        (
            ("--max-benign-flagged", "0.5"),
            "flag",
            1,
            "text: 1.000 of harmless inputs flagged (4/4)",
        ),
        (("--min-auroc", "1"), "pass", 1, "is below 1"),
        (("--min-auroc", "0"), "pass", 1, "image: no AUROC with one label only"),
    ],
)
def test_gates_decide_the_exit_code(evaluate, words, action, code, reason):
    done = evaluate("--no-answers", *words, action=action)
    assert done.exit_code == code, done.stderr
    assert reason in done.stderr


def test_the_report_holds_the_bounds_and_what_became_of_them(evaluate):
    kept = evaluate("--no-answers", "--max-benign-flagged", "0.5", "--json")
    assert "all bounds are kept" in kept.stderr
    found = json.loads(kept.stdout)["settings"]["gates"]
    assert found == {"bounds": {"max_benign_flagged": 0.5}, "missed": []}
    failed = evaluate("--no-answers", "--max-benign-flagged", "0.5", "--json", action="flag")
    assert "1.000 of harmless" in json.loads(failed.stdout)["settings"]["gates"]["missed"][0]
    assert "all bounds" not in failed.stderr
    assert "gates" not in json.loads(evaluate("--no-answers", "--json").stdout)["settings"]


def test_a_judge_of_ones_own_is_asked(evaluate, monkeypatch):
    module = ModuleType("own_judge")
    module.everything = lambda prompts, answers: [True] * len(answers)
    monkeypatch.setitem(sys.modules, "own_judge", module)
    report = json.loads(evaluate("--judge", "own_judge:everything", "--json").stdout)
    assert all(row["plain_refused"] for row in report["items"])
    assert report["judge"]["false_refusals"]["rate"] == 1


def test_a_second_model_can_judge(evaluate, saved, tmp_path):
    sample = tmp_path / "sample.jsonl"
    sample.write_text('{"answer": "No.", "refused": true}\n')
    words = ("--judge-model", saved.model, "--judge-sample", str(sample), "--json")
    report = json.loads(evaluate(*words).stdout)
    assert report["judge"]["name"] == f"model {saved.model}"
    assert report["judge"]["missed_refusals"]["n"] == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--judge", "a:b", "--judge-model", "m"), "give one"),
        (("--no-answers", "--judge", "a:b"), "nothing to judge"),
        (("--data", "/no/such/place"), "does not exist"),
        (("--out", "/no/such/folder/r.json"), "has no folder"),
        (("--judge", "no_such_module_here:f"), "cannot be imported"),
    ],
)
def test_wrong_usage_is_told_and_ends_with_2(evaluate, words, reason):
    done = evaluate(*words)
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"}', "bad.jsonl, line 1: `label`: Field required"),
        ('{"image": "none.png", "label": "safe"}', "there is no picture"),
    ],
)
def test_bad_data_ends_before_a_model_is_loaded(evaluate, tmp_path, monkeypatch, line, reason):
    monkeypatch.setattr("guardrail.guard.load_model", lambda *_a, **_k: pytest.fail("loaded"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(line)
    done = evaluate("--data", str(bad))
    assert done.exit_code == 2
    assert reason in done.stderr


def test_an_input_with_an_error_is_named_or_skipped(evaluate, saved, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "broken.png", "label": "safe", "id": "broken one"}')
    words = ("--no-answers", "--data", str(bad))
    done = evaluate(*words)
    assert done.exit_code == 2
    assert "'broken one'" in done.stderr
    skipped = evaluate(*words, "--skip-errors", "--json")
    assert skipped.exit_code == 0
    assert list(json.loads(skipped.stdout)["data"]["skipped"]) == ["broken one"]
    assert "left out because of errors: 1 (broken one)" in skipped.stderr


def test_a_folder_of_pictures_is_evaluated_with_the_given_prompt(run, saved, tmp_path, picture):
    for label in ("harmful", "harmless"):
        (tmp_path / "own" / label).mkdir(parents=True)
        picture(len(label)).save(tmp_path / "own" / label / "p.png")
    done = run(
        "evaluate",
        saved.model,
        "-a",
        saved.artefact["pass"],
        "-d",
        str(tmp_path / "own"),
        "--prompt",
        "What is it?",
        "--no-answers",
        "--json",
    )
    items = json.loads(done.stdout)["items"]
    assert [(i["text"], i["modality"], i["label"]) for i in items] == [
        ("What is it?", "image", "harmful"),
        ("What is it?", "image", "harmless"),
    ]


def test_videos_stand_in_the_tables_and_are_held_to_the_gates(evaluate, saved, data, tmp_path):
    rows = [
        {"text": f"What is {i}?", "video": saved.video, "label": label}
        for i in range(2)
        for label in ("safe", "harmful")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.html"
    words = ("--no-answers", "--window", "2", "--html", str(page), "--explain", "1")
    done = evaluate(*words, "--max-benign-flagged", "0", action="flag")
    assert done.exit_code == 1, done.stderr
    assert "missed: video: 1.000 of harmless inputs flagged (2/2)" in done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split() for line in lines if line.lstrip().startswith("video ")]
    assert ["2", "2"] in [row[1:3] for row in rows]  # harmful and harmless ones
    assert "film.gif" in page.read_text("utf-8")
    assert "window by window" in page.read_text("utf-8")


class Measured:
    """A report with nothing but groups."""

    def __init__(self, *groups):
        self.groups = groups


def group(modality, *, flagged=None, by="modality"):
    none = Share.of(Rate(0, 10))
    actions = {}
    if flagged is not None:
        share = Share.of(Rate(flagged, 10))
        actions["harmless"] = Actions(passed=none, steered=none, flagged=share)
    return Group(
        by=by,
        name=modality,
        modality=modality,
        n_harmful=1,
        n_harmless=0 if flagged is None else 10,
        against="itself",
        actions=actions,
    )


@pytest.mark.parametrize(("flagged", "missed"), [(1, 0), (2, 1)])
def test_a_share_at_the_bound_keeps_it(flagged, missed):
    report = Measured(group("text", flagged=flagged), group("text", flagged=9, by="source"))
    assert len(Gates(max_benign_flagged=0.1).missed(report)) == missed


def test_a_modality_without_harmless_inputs_keeps_no_bound_on_them():
    report = Measured(group("text", flagged=0), group("image"))
    (said,) = Gates(max_benign_flagged=1.0).missed(report)
    assert said.startswith("image: no harmless inputs")
    assert Gates().missed(report) == []


def test_a_modality_of_one_label_keeps_no_bound_on_the_auroc():
    (said,) = Gates(min_auroc=0.0).missed(Measured(group("text")))
    assert said.startswith("text: no AUROC")


def test_a_bound_that_is_no_number_is_never_kept():
    report = Measured(group("text", flagged=0))
    assert len(Gates(max_benign_flagged=float("nan")).missed(report)) == 1
