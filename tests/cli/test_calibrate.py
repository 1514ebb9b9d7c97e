from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest

from guardrail.artefact import Artefact
from guardrail.cli.calibrate import benign_lines, count_benign
from guardrail.errors import ConfigurationError, DatasetError


@pytest.fixture
def calibrated(monkeypatch):
    """A calibration that records its arguments and only renames the artefact's parent."""
    calls = []

    def calibrate(guard, values, **rates):
        calls.append(([guard.check(placed.value) for placed in values], rates))
        return guard.artefact.revised(warnings=())

    module = ModuleType("guardrail.fit.calibrate")
    module.calibrate = calibrate
    monkeypatch.setitem(sys.modules, "guardrail.fit.calibrate", module)
    return calls


def test_a_new_artefact_is_made_from_the_benign_requests(run, saved, calibrated, tmp_path):
    benign, out = saved.folder / "benign.jsonl", tmp_path / "new.safetensors"
    benign.write_text('"Hello"\n\n{"text": "What is this?", "image": "red.png"}\n')
    done = run(
        "calibrate",
        saved.artefact["flag"],
        "--model",
        saved.model,
        "--benign",
        str(benign),
        "-o",
        str(out),
        "--flag-rate",
        "0.2",
        "--audit",
        str(tmp_path / "audit.jsonl"),
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    ((verdicts, rates),) = calibrated
    assert [verdict.modality for verdict in verdicts] == ["text", "image"]
    assert rates == {
        "steer_rate": 0.05,
        "flag_rate": 0.2,
        "keep": 10_000,
        "seed": 0,
        "skip_errors": False,
    }
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2
    parent = Artefact.load(saved.artefact["flag"]).artefact_id
    assert Artefact.load(out).header.parent == json.loads(done.stdout)["parent"] == parent


def _requests(tmp_path, *rows):
    path = tmp_path / "benign.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return [request for _, request in benign_lines(path)]


def test_every_form_of_line_is_read(tmp_path):
    chat = [{"role": "user", "content": "c"}]
    picture = {"type": "image", "path": str(tmp_path / "p.png")}
    video = {"type": "video", "path": str(tmp_path / "v.mp4")}
    text = {"type": "text", "text": "d"}
    assert _requests(
        tmp_path,
        '"a"',
        {"text": "b", "label": "harmless", "id": 7},
        chat,
        {"messages": chat},
        {"text": "d", "image": "p.png"},
        {"image": [str(Path(tmp_path) / "p.png"), "p.png"], "label": "benign"},
        {"text": "d", "video": "v.mp4", "image": "p.png"},
        {"video": ["v.mp4", "v.mp4"], "label": "benign"},
    ) == [
        "a",
        "b",
        chat,
        chat,
        [{"role": "user", "content": [picture, text]}],
        [{"role": "user", "content": [picture, picture]}],
        [{"role": "user", "content": [picture, video, text]}],
        [{"role": "user", "content": [video, video]}],
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "a row is a string, a list of messages or an object"),
        ({"prompt": "a"}, "'prompt' would be lost: a row has `text`, `image` or `video`"),
        ({"text": "a", "image": 3}, "`image`: Input should be a valid list"),
        ({"text": 3, "image": "p.png"}, "`text`: Input should be a valid string"),
        ({"text": 3, "video": "v.mp4"}, "`text`: Input should be a valid string"),
        ({"text": "a", "label": "harmful"}, "only benign inputs calibrate"),
        ({"text": "a", "label": ["benign"]}, "only benign inputs calibrate"),
        ({"image": []}, "a row has `text`, `image` or `video`"),
        ({"video": []}, "a row has `text`, `image` or `video`"),
        ({"text": "a", "video": 3}, "`video`: Input should be a valid list"),
        ({"text": "a", "videos": ["v.mp4"]}, "'videos' would be lost"),
        ('{"text": "a", "text": "b"}', "stands twice"),
        ('{"text": "a", "id": NaN}', "not JSON"),
        ({"text": "a", "images": ["p.png"]}, "'images' would be lost"),
        ({"image": "p.png", "prompt": "a"}, "'prompt' would be lost"),
        ({"messages": [{}], "image": "p.png"}, "leave `text`, `image` and `video` out"),
        ({"messages": [{}], "system": "b", "user": "c"}, "'system', 'user' would be lost"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, row, reason):
    with pytest.raises(DatasetError, match=rf"benign\.jsonl, line 2: .*{reason}"):
        _requests(tmp_path, '"a"', row)


def test_paths_inside_a_chat_are_relative_to_the_file(tmp_path):
    before = ["words", {"type": "text", "text": "p.png"}]
    files = [
        {"type": "image", "image": "p.png"},
        {"type": "image", "path": "p.png"},
        {"type": "image_url", "image_url": "p.png"},
        {"type": "image_url", "image_url": {"url": "p.png", "detail": "low"}},
    ]
    others = [
        {"type": "image", "url": "https://example.org/p.png"},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image", "image": "iVBORw0KGgoAAAANSUhEUgAA"},
    ]

    def chat(pictures):
        system = {"role": "system", "content": "p.png"}
        return [system, {"role": "user", "content": [*before, *pictures, *others]}]

    placed = [{"type": "image", "path": str(tmp_path / "p.png")}] * len(files)
    found = _requests(tmp_path, chat(files), {"messages": chat(files), "id": 1})
    assert found == [chat(placed)] * 2


def _calibrate(run, saved, tmp_path, rows, *options):
    benign, out = tmp_path / "benign.jsonl", tmp_path / "new.safetensors"
    benign.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = saved.artefact["pass"]
    done = run(
        "calibrate",
        start,
        "--model",
        saved.model,
        "--benign",
        str(benign),
        "-o",
        str(out),
        *options,
    )
    return done, out


def _words(n):
    nouns = "red blue green image picture system tool user dog cat".split()
    return [f"{nouns[i % 10]} {nouns[i // 10 % 10]}" for i in range(n)]


def test_old_and_new_thresholds_stand_side_by_side(run, saved, tmp_path):
    done, out = _calibrate(run, saved, tmp_path, _words(99))
    assert done.exit_code == 0, done.stderr
    made, old = Artefact.load(out), Artefact.load(saved.artefact["pass"])
    now, before = (a.header.calibration["text"].thresholds for a in (made, old))
    (steer, flag) = [line.split() for line in done.stdout.splitlines() if "text " in line][-2:]
    assert steer[:5] == ["text", "steer", f"{before.steer:.3f}", f"{now.steer:.3f}", "5.0%"]
    assert flag[:5] == ["text", "flag", f"{before.flag:.3f}", f"{now.flag:.3f}", "1.0%"]
    assert steer[-1] == "99"
    assert "99 requests in" in done.stderr
    assert "this traffic scores differently" in done.stderr
    shown = run("info", str(out)).stdout
    assert f"text before      steer at {before.steer:.3f}" in shown
    assert "made up for tests" in shown


def test_a_sample_is_told_from_the_whole(run, saved, tmp_path):
    options = ("--keep", "19", "--flag-rate", "0.05")
    done, out = _calibrate(run, saved, tmp_path, _words(50), *options)
    assert done.exit_code == 0, done.stderr
    assert "19 of 50" in done.stdout
    assert Artefact.load(out).header.calibration["text"].n == 19


def test_a_request_the_guard_refuses_is_named_by_its_line(run, saved, tmp_path):
    chat = [{"role": "user", "content": [{"type": "smell", "smell": "roses"}]}]
    rows = [*_words(60), chat, *_words(60)]
    done, out = _calibrate(run, saved, tmp_path, rows)
    assert done.exit_code == 2
    assert "benign.jsonl, line 61: cannot be scored" in done.stderr.replace("\n", "")
    assert not out.exists()
    done, out = _calibrate(run, saved, tmp_path, rows, "--skip-errors")
    assert done.exit_code == 0, done.stderr
    assert "1 of 121 requests could not be scored" in done.stderr
    done, _ = _calibrate(run, saved, tmp_path, [*rows, chat], "--skip-errors")
    assert done.exit_code == 2
    assert "2 of 122" in done.stderr


def test_too_small_a_sample_is_refused_with_the_way_out(run, saved, tmp_path):
    done, _ = _calibrate(run, saved, tmp_path, _words(120), "--keep", "50")
    assert done.exit_code == 2
    assert "raise keep (--keep) to 99" in done.stderr


@pytest.mark.parametrize(
    "row",
    [
        {"image": "gone.png"},
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gone.png"}}]}],
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "gone.png"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x" * 5000}]}]},
    ],
)
def test_a_picture_that_is_not_there_is_found_before_a_model_loads(run, tmp_path, row):
    benign = tmp_path / "benign.jsonl"
    benign.write_text('"a"\n' + json.dumps(row))
    with pytest.raises(DatasetError, match=r"line 2: there is no picture file"):
        count_benign(benign)


def test_requests_are_counted_without_blank_lines_or_remote_pictures(tmp_path):
    remote = {"type": "image", "url": "https://example.org/p.png"}
    data = {"type": "image", "image": "data:image/png;base64,AAAA"}
    rows = ["a", [{"role": "user", "content": [remote, data]}]]
    path = tmp_path / "benign.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n\n")
    assert count_benign(path) == 2


def test_a_pipe_is_refused_since_the_file_is_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="read twice"):
        count_benign(tmp_path / "pipe")


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "benign.jsonl"
    path.write_bytes(b'"a"\n"\xff\xfe"\n')
    with pytest.raises(DatasetError, match="line 2: not JSON"):
        count_benign(path)


def test_the_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "benign.jsonl"
    path.write_text('"hello there"\n' * 40_000)
    tracemalloc.start()
    assert count_benign(path) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000  # the file has 0.56 MB


def test_videos_calibrate_too_and_must_be_there(run, saved, calibrated, tmp_path):
    benign, out = saved.folder / "films.jsonl", tmp_path / "new.safetensors"
    benign.write_text('{"text": "What is this?", "video": "film.gif"}\n')
    words = ("--model", saved.model, "--benign", str(benign), "-o", str(out), "--window", "2")
    done = run("calibrate", saved.artefact["pass"], *words)
    assert done.exit_code == 0, done.stderr
    ((verdicts, _),) = calibrated
    assert [verdict.modality for verdict in verdicts] == ["video"]
    assert verdicts[0].window.of in (3, 4)
    benign.write_text('{"text": "What is this?", "video": "gone.mp4"}\n')
    with pytest.raises(DatasetError, match=r"line 1: there is no video file '.*gone\.mp4'"):
        count_benign(benign)
