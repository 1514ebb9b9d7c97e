from __future__ import annotations

import dataclasses
import io
import sys
import warnings
from types import SimpleNamespace

import pytest
import typer

from guardrail.cli import output
from guardrail.cli.output import (
    exit_code,
    progress,
    say_verdict,
    session,
    verdict_rows,
    write,
)
from guardrail.errors import ConfigurationError
from guardrail.types import Action, Modality, Verdict, Where

PASSED = Verdict(
    action=Action.PASS,
    would_be=Action.PASS,
    score=0.1,
    tau_steer=0.5,
    tau_flag=0.9,
    layers=(1,),
    modality=Modality.TEXT,
    artefact_id="guard-test",
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_models_terminal_commands_do_not_reach_a_terminal():
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        write(stream, "a\x1b]0;title\x07\tb\nc\x9b2J")
    assert terminal.getvalue() == "a\ufffd]0;title\ufffd\tb\nc\ufffd2J\n"
    assert pipe.getvalue() == "a\x1b]0;title\x07\tb\nc\x9b2J\n"


def test_a_score_of_other_letters_says_so():
    assert "folded" not in dict(verdict_rows(PASSED))
    rows = dict(verdict_rows(dataclasses.replace(PASSED, folded=True)))
    assert "plain letters" in rows["folded"]


def test_who_asked_is_shown_which_words_the_score_is_from():
    assert not {"where", "words"} & dict(verdict_rows(PASSED)).keys()
    where = Where(reading="window", message=0, role="user", start=3, stop=9, words=" a\nlock ")
    rows = dict(verdict_rows(dataclasses.replace(PASSED, where=where)))
    assert (rows["where"], rows["words"]) == ("in message 1 (user), tokens 4 to 9", "a lock")
    end = Where(reading="last", message=0, role="user")
    assert "words" not in dict(verdict_rows(dataclasses.replace(PASSED, where=end)))


def test_a_verdict_beside_an_answer_is_a_line_without_words(capsys):
    where = Where(reading="window", message=0, role="user", start=3, stop=9, words="a lock")
    say_verdict(dataclasses.replace(PASSED, where=where))
    said = capsys.readouterr().err
    assert "tokens 4 to 9" in said
    assert "lock" not in said


def test_a_detector_that_failed_is_an_error_and_no_finding():
    outage = dataclasses.replace(
        PASSED, action=Action.FLAG, would_be=Action.FLAG, score=None, reason="detector_failed"
    )
    assert exit_code(outage, strict=False) == 2


@pytest.mark.parametrize(
    ("would_be", "strict", "code"),
    [
        (Action.PASS, True, 0),
        (Action.STEER, False, 0),
        (Action.STEER, True, 1),
        (Action.FLAG, False, 1),
    ],
)
def test_what_shadow_mode_would_have_done_counts(would_be, strict, code):
    shadow = dataclasses.replace(PASSED, would_be=would_be, mode="shadow")
    assert exit_code(shadow, strict=strict) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigurationError("two\nlines \x1b[2J"), "error: two lines \ufffd[2J\n"),
        (ZeroDivisionError("by zero"), "error: ZeroDivisionError: by zero\n"),
    ],
)
def test_any_error_is_one_line_and_exit_code_2(capsys, error, line):
    with pytest.raises(typer.Exit) as left, session(debug=False):
        raise error
    assert left.value.exit_code == 2
    assert capsys.readouterr() == ("", line)


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), session(debug=True):
        raise KeyboardInterrupt


def test_prints_and_warnings_of_others_go_to_stderr(capsys):
    with session(debug=False) as stdout:
        print("chatter")  # noqa: T201
        warnings.simplefilter("default")
        warnings.warn("dtype differs", stacklevel=1)
        stdout.write("result")
    out, err = capsys.readouterr()
    assert (out, err) == ("result", "chatter\nwarning: dtype differs\n")


def test_stdout_and_warnings_are_as_before_after_an_error():
    before = (sys.stdout, warnings.showwarning)
    with pytest.raises(typer.Exit), session(debug=False):
        raise ConfigurationError("wrong")
    assert (sys.stdout, warnings.showwarning) == before


@pytest.fixture
def clock(monkeypatch):
    """What the time is, in s; to be moved on."""
    now = [100.0]
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_progress_that_no_terminal_shows_is_a_line_now_and_then(capsys, clock):
    with progress() as report:
        report("prompts", 16, 4000)
        for done in range(32, 2000, 16):
            report("prompts", done, 4000)
        clock[0] += output.EVERY_S
        report("prompts", 2000, 4000)
        report("prompts", 4000, 4000)
        report("pictures", 8, 8)
    assert capsys.readouterr() == (
        "",
        "prompts: 16 of 4,000 (0 s)\n"
        "prompts: 2,000 of 4,000 (10 s)\n"
        "prompts: 4,000 of 4,000 (10 s)\n"
        "pictures: 8 of 8 (0 s)\n",
    )


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress() as report:
        report("prompts", 1, 2)
    assert "━" in terminal.getvalue()
    assert "1/2" in terminal.getvalue()
