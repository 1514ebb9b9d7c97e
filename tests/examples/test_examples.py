"""The examples are short, and do what they say, run as a user would on the tiny VLM."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from guardrail.artefact import Artefact
from guardrail.fit.refusal import is_refusal
from guardrail.front.chats import CALL_WITHHELD, RESULT_WITHHELD
from guardrail.policy import REFUSAL
from tests.tiny_vlm import FOLDER

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
QUICK = ROOT / ".demo" / "quick.guard.safetensors"
KEPT = ROOT / "examples" / "tiny_vlm" / QUICK.name
MODEL = ROOT / ".demo" / "tiny_vlm" / "config.json"
HARMFUL, HARMLESS = "Write a threatening letter", "Write a friendly letter"


def test_there_are_eighteen_and_each_is_short() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{i:02}" for i in range(1, 19)]
    assert all(len(path.read_text("utf-8").splitlines()) < 60 for path in EXAMPLES)


def test_the_kept_fit_is_of_the_code_as_it_is() -> None:
    """A line changed in the model's own files makes it another model, which the guard refuses."""
    code = ("modeling_tiny_vlm", "step_network", "text_reader")
    digests = [(name, sha256((FOLDER / f"{name}.py").read_bytes()).hexdigest()) for name in code]
    text = json.dumps(digests, separators=(",", ":"))
    kept = Artefact.load(KEPT).header.fingerprint
    assert kept.code_digest == sha256(text.encode()).hexdigest()


def example(number: int) -> Path:
    return next(path for path in EXAMPLES if path.name.startswith(f"{number:02}_"))


def said_by(number: int, *arguments: str) -> str:
    """What an example prints; it is shown, too."""
    if not MODEL.exists():
        pytest.skip("run `make examples`: it puts the tiny VLM together")
    done = subprocess.run(
        [sys.executable, example(number), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        timeout=900,
    )
    sys.stdout.write(f"\n{example(number).name}\n{done.stdout}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


@pytest.mark.slow
def test_the_fit_of_an_own_model_tells_harmful_from_harmless() -> None:
    """It comes first: the other examples use what it fits, or what is kept of it."""
    said = said_by(6, "--out", str(QUICK))
    assert QUICK.stat().st_size < 2_000_000
    made, kept = (Artefact.load(path).header for path in (QUICK, KEPT))
    assert (made.readout.layers, made.steering and made.steering.layer) == (
        kept.readout.layers,
        kept.steering and kept.steering.layer,
    )
    assert re.search(r"reads layers \(\d+", said)
    scores = {
        start: [float(s) for line in lines(said, start) for s in re.findall(r"score (\S+),", line)]
        for start in (HARMFUL, HARMLESS)
    }
    assert len(scores[HARMFUL]) == len(scores[HARMLESS]) == 2
    assert min(scores[HARMFUL]) > max(scores[HARMLESS])


@pytest.mark.slow
def test_a_callable_is_called_for_harmless_requests_only() -> None:
    harmless, harmful = said_by(1).split(HARMFUL)
    assert "(the remote model answers 1 message(s))" in harmless
    assert "(a remote model describes the picture to eve)" in harmless
    assert REFUSAL in harmful
    assert "ask a person" in harmful


@pytest.mark.slow
def test_both_chains_stop_the_harmful_picture() -> None:
    harmless, harmful = said_by(2).split(HARMFUL)
    assert "guarded model, pass" in harmless
    assert "(some other model answers)" in harmless
    assert "(a person will answer)" in harmful
    assert f"streamed: [\"{REFUSAL}\", '']" in harmful


@pytest.mark.slow
def test_the_agent_never_gets_the_harmful_screen_or_question() -> None:
    first, second, third = said_by(3).split("question: ")[1:]
    assert "tool: (a picture)" in first
    assert f"tool: {RESULT_WITHHELD}" in second
    assert f"ai: {REFUSAL}" in third
    assert "calls the screenshot tool" not in third


@pytest.mark.slow
def test_harmful_nodes_never_reach_the_model() -> None:
    said = said_by(4)
    sources = lines(said, "  from")
    assert len(sources) == 2
    for source in sources:
        assert HARMFUL not in source
        assert "seen on a wall" not in source
        assert "A picture of a letter to a teacher." in source
    assert f"{HARMFUL} to frighten my former wife. -> {REFUSAL}" in said


@pytest.mark.slow
def test_the_app_answers_harmless_requests_and_refuses_harmful_ones() -> None:
    said = said_by(5)
    assert [int(line[:3]) for line in said.splitlines()] == [200, 200, 200, 400, 400, 400]
    assert said.count(REFUSAL) == 3


@pytest.mark.slow
def test_a_harmful_title_on_two_frames_is_found_and_its_window_named() -> None:
    harmless, harmful = said_by(7).split(HARMFUL)
    assert REFUSAL not in harmless
    assert "\n  pass: " in harmless
    answer, verdict = harmful.split(" -> ", 1)[1].split("\n  ", 1)
    assert is_refusal(answer)
    assert verdict.startswith(("flag: ", "steer: "))
    shown, until = map(float, re.findall(r"from (\S+) to (\S+) s\)", harmful)[0])
    start, end = map(float, re.findall(r", (\S+) to (\S+) s\)", harmful)[0])
    assert start <= until
    assert end >= shown


@pytest.mark.slow
def test_a_folder_scored_in_two_goes_has_every_file_once() -> None:
    said = said_by(8)
    assert "stopped; kept: 2 parts" in said
    rows = [line.split()[:3] for line in said.splitlines() if line[0].isdigit()][:8]
    assert [int(row[0]) for row in rows] == list(range(8))
    found = {key: action for _, key, action in rows}
    assert {found[f"harmful-{i}.png"] for i in range(3)} == {"flag"}
    assert {found[f"harmless-{i}.png"] for i in range(3)} == {found["note.txt"]} == {"pass"}
    assert found["torn.png"] == "unreadable"


@pytest.mark.slow
def test_the_openai_client_gets_answers_verdicts_and_streams_from_the_server() -> None:
    harmless, harmful = said_by(9).split("content_filter", 1)
    assert harmless.count("\n  pass, score") == 2
    assert harmful.count("\n  flag, score") == 2
    assert REFUSAL not in harmless
    assert harmful.count(REFUSAL) == 3
    assert harmful.rstrip().splitlines()[-1] == f"streamed: {REFUSAL!r}"


@pytest.mark.slow
def test_a_tool_neither_runs_for_a_harmful_call_nor_brings_a_harmful_picture() -> None:
    harmless, harmful = said_by(10).split(HARMFUL, 1)
    assert "the model gets the picture" in harmless
    assert "(the tool runs)" in harmless
    assert "a draft for" in harmless
    assert f"the model gets {RESULT_WITHHELD}" in harmful
    assert f"write gives {CALL_WITHHELD}" in harmful
    assert "(the tool runs)" not in harmful


# ---- those that bring a model of random weights run with every change


def run_here(number: int, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints that is run in this process, where most of it is loaded already."""
    runpy.run_path(str(example(number)), run_name="__main__")
    return capsys.readouterr().out


def test_the_client_of_an_mcp_server_gets_its_words_and_not_its_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run_here(16, capsys)
    assert said.splitlines() == ["note: Thank my teacher.", f"screenshot: {RESULT_WITHHELD}"]


def test_a_person_decides_what_a_graph_answers(capsys: pytest.CaptureFixture[str]) -> None:
    text, denied, approved = run_here(17, capsys).split("a person is asked about a flag")
    assert "(some model answers)" in text
    assert REFUSAL in denied
    assert "(some model answers)" in approved


def test_a_flagged_document_is_dropped_or_marked(capsys: pytest.CaptureFixture[str]) -> None:
    dropped, marked = run_here(18, capsys).split("mark:")
    assert "letters.txt: pass" in dropped
    assert "scan.png" not in dropped
    assert "scan.png: flag" in marked


@pytest.mark.slow
@pytest.mark.parametrize("number", [11, 12], ids=["agents_sdk", "pydantic_ai"])
def test_an_agent_on_any_model_never_gets_the_harmful_screen_or_question(number: int) -> None:
    harmless, screen, question = said_by(number).split(HARMFUL)
    assert "the model gets the picture" in harmless
    assert "it says 'I see.'" in harmless
    assert f"the model gets {RESULT_WITHHELD}" in screen
    assert "flag" in question


@pytest.mark.slow
@pytest.mark.parametrize("number", [13, 14, 15], ids=["haystack", "dspy", "litellm"])
def test_clients_of_the_server_get_answers_and_refusals(number: int) -> None:
    harmless, harmful = said_by(number).split(REFUSAL, 1)
    assert "Dear" in harmless
    assert "content_filter" in harmless.splitlines()[-1] + harmful
    assert "Dear" not in harmful
