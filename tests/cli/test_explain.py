from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from io import StringIO

import pytest
from PIL import Image

from guardrail.cli.explain import show_explanation
from guardrail.explain import explain
from guardrail.explain.explanation import Video
from guardrail.guard import Guard
from tests.explain.made import explanation, filmed, scanned


@pytest.mark.parametrize(("action", "code"), [("pass", 0), ("steer", 0), ("flag", 1)])
def test_it_exits_like_a_check_and_shows_the_prompt(run, saved, action, code):
    done = run("explain", saved.model, "-a", saved.artefact[action], "--text", "tell me a cat")
    assert done.exit_code == code, done.stderr
    assert f"action           {action}" in done.stdout
    assert "<|im_start|>user\u21b5\ntell me a cat<|im_end|>" in done.stdout
    assert "position  token" in done.stdout
    assert re.search(r"^decided (in|at the end of) message 1 \(user\)", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_the_document_is_the_explanation_and_all_there_is_on_stdout(run, saved):
    words = ("--text", "What is this?", "--image", saved.picture, "--json")
    done = run("explain", saved.model, "-a", saved.artefact["pass"], *words)
    found = json.loads(done.stdout)
    with Guard.from_pretrained(saved.model, saved.artefact["pass"]) as guard:
        content = [
            {"type": "image", "image": saved.picture},
            {"type": "text", "text": "What is this?"},
        ]
        wanted = explain(guard, [{"role": "user", "content": content}])
    assert [p["text"] for p in found["positions"]] == [p.text for p in wanted.positions]
    scores = [p["score"] for p in found["positions"] if p["score"] is not None]
    assert max(scores) == pytest.approx(wanted.verdict.score, abs=1e-4)
    assert found["where"] == found["verdict"]["where"]
    assert found["where"]["message"] == 0
    assert found["pictures"][0]["grid"] == [2, 2]


def test_a_page_and_a_picture_are_written_whole(run, saved, tmp_path):
    page, picture = tmp_path / "new" / "page.html", tmp_path / "new" / "figure.png"
    words = ("--image", saved.picture, "--html", str(page), "--png", str(picture))
    done = run("explain", saved.model, "-a", saved.artefact["pass"], *words)
    assert done.exit_code == 0, done.stderr
    assert page.read_text("utf-8").rstrip().endswith("</html>")
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    assert str(page) in done.stderr
    assert sorted(p.name for p in page.parent.iterdir()) == ["figure.png", "page.html"]


def test_a_layout_can_be_chosen(run, saved):
    words = ("--image", saved.picture, "--layout", "strip", "--json")
    done = run("explain", saved.model, "-a", saved.artefact["pass"], *words)
    assert json.loads(done.stdout)["pictures"][0]["grid"] is None


def test_a_missing_extra_is_named_before_a_model_is_looked_for(run, saved, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ("--text", "hi", "--png", str(tmp_path / "x.png"))
    done = run("explain", "no/such/model", "-a", saved.artefact["pass"], *words)
    assert done.exit_code == 2
    assert "guardrail-vlm[report]" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def explained(saved):
    with Guard.from_pretrained(saved.model, saved.artefact["pass"]) as guard:
        content = [{"type": "image", "image": saved.picture}, {"type": "text", "text": "\x1b[5m a"}]
        yield explain(guard, [{"role": "user", "content": content}])


@pytest.mark.parametrize("colours", ["truecolor", "standard"])
def test_a_terminal_gets_colours_and_nothing_of_the_prompts_own(explained, monkeypatch, colours):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor" if colours == "truecolor" else "")
    out = StringIO()
    show_explanation(out, explained)
    text = out.getvalue()
    assert "\x1b[5m" not in text
    assert ("48;2;" in text) == (colours == "truecolor")
    assert "picture 1: 4 positions" in text


def test_a_video_is_explained_frame_by_frame(run, saved, tmp_path):
    page = tmp_path / "page.html"
    words = ("--video", saved.video, "--window", "8", "--html", str(page))
    done = run("explain", saved.model, "-a", saved.artefact["pass"], *words)
    assert done.exit_code == 0, done.stderr
    assert "highest score in the frame at  0.0 s" in done.stdout
    assert done.stdout.count(" s ") >= 6
    html = page.read_text("utf-8")
    assert len(re.findall(r">\d\.\d s</text>", html)) == 6
    assert "Scores of video 1, frame by frame" in html
    assert "window by window" not in html


def test_a_long_video_is_explained_window_by_window(run, saved, tmp_path):
    page = tmp_path / "page.html"
    words = ("explain", saved.model, "-a", saved.artefact["pass"], "--video", saved.video)
    found = json.loads(run(*words, "--window", "2", "--json").stdout)
    scores = [window["score"] for window in found["windows"]]
    assert len(scores) == 4
    assert found["verdict"]["score"] == pytest.approx(max(scores), abs=1e-6)
    done = run(*words, "--window", "2", "--html", str(page))
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [row for row in lines if row.endswith(" highest") and not row.startswith("note")]
    assert len(rows) == 1
    assert f"{max(scores):.2f}" in rows[0]
    assert "answer frames" in done.stdout
    assert "Scores along the video, window by window" in page.read_text("utf-8")


def text_of(explanation):
    out = StringIO()
    show_explanation(out, explanation)
    return out.getvalue()


def test_a_terminal_marks_the_slots_of_a_picture_that_decided(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text_of(explanation())).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("picture 1: 6 positions"))
    assert lines[at + 1 : at + 3] == ["    []", "[][]\N{MIDDLE DOT} "]
    assert lines[0] == "decided in message 1 (user), image positions 3 to 5 of 6"


def test_a_terminal_shows_the_score_of_each_frame_and_of_each_window():
    shown = text_of(filmed())
    assert "0.0 s 0.10  0.5 s 0.90  1.0 s none  1.5 s 0.40" in shown
    assert "answer frames" not in shown
    lines = text_of(scanned()).splitlines()
    (highest,) = [line for line in lines if line.rstrip().endswith("highest")]
    assert highest.split()[:2] == ["2", "4.0"]
    assert any(line.startswith("answer frames") for line in lines)
    untied = replace(filmed(), videos=(Video(positions=(), frames=(), note="not known"),))
    assert "not known" in text_of(untied)


def test_windows_that_tie_have_one_highest_and_name_their_video():
    rows = [(0, 0.0, 3.5, 0.8), (1, 0.0, 3.5, 0.8), (None, 0.0, 3.5, 0.8)]
    lines = text_of(scanned(rows)).splitlines()
    (highest,) = [line for line in lines if line.rstrip().endswith(" highest")]
    assert highest.startswith("1 (video 1) ")  # the one that a verdict names
    assert any(line.startswith("2 (video 2) ") for line in lines)
