from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from guardrail.artefact import Artefact
from guardrail.cli.requests import benign_requests
from guardrail.errors import DatasetError


@pytest.fixture
def calibrated(monkeypatch):
    """A calibration that records its arguments and only renames the artefact's parent."""
    calls = []

    def calibrate(guard, values, **rates):
        calls.append(([guard.check(value) for value in values], rates))
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
    assert rates == {"steer_rate": 0.05, "flag_rate": 0.2}
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2
    parent = Artefact.load(saved.artefact["flag"]).artefact_id
    assert Artefact.load(out).header.parent == json.loads(done.stdout)["parent"] == parent


def _requests(tmp_path, *rows):
    path = tmp_path / "benign.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return list(benign_requests(path))


def test_every_form_of_line_is_read(tmp_path):
    chat = [{"role": "user", "content": "c"}]
    picture = {"type": "image", "image": str(tmp_path / "p.png")}
    text = {"type": "text", "text": "d"}
    assert _requests(
        tmp_path,
        '"a"',
        {"text": "b", "label": "harmless", "id": 7},
        chat,
        {"messages": chat},
        {"text": "d", "image": "p.png"},
        {"image": [str(Path(tmp_path) / "p.png"), "p.png"], "label": "benign"},
    ) == [
        "a",
        "b",
        chat,
        chat,
        [{"role": "user", "content": [picture, text]}],
        [{"role": "user", "content": [picture, picture]}],
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("3", "expected a string"),
        ({"prompt": "a"}, "expected a string"),
        ({"text": "a", "image": 3}, "expected a string"),
        ({"text": 3, "image": "p.png"}, "`text` is a string"),
        ({"text": "a", "label": "harmful"}, "only benign inputs calibrate"),
        ({"text": "a", "images": ["p.png"]}, "'images' beside image and text would not be read"),
        ({"image": "p.png", "prompt": "a"}, "'prompt' beside"),
        ({"messages": [{}], "image": "p.png"}, "'image' beside messages would not be read"),
        ({"messages": [{}], "text": "a", "system": "b"}, "'system', 'text' beside messages"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, row, reason):
    with pytest.raises(DatasetError, match=rf"benign\.jsonl, line 2: .*{reason}"):
        _requests(tmp_path, '"a"', row)


def test_paths_inside_a_chat_are_relative_to_the_file(tmp_path):
    def chat(path):
        content = [
            "words",
            {"type": "text", "text": "p.png"},
            {"type": "image", "image": path},
            {"type": "image", "path": path},
            {"type": "image_url", "image_url": path},
            {"type": "image_url", "image_url": {"url": path, "detail": "low"}},
            {"type": "image", "url": "https://example.org/p.png"},
            {"type": "image", "image": "data:image/png;base64,AAAA"},
            {"type": "image", "image": "iVBORw0KGgoAAAANSUhEUgAA"},
            {"type": "image", "image": "/absolute.png"},
        ]
        return [{"role": "system", "content": "p.png"}, {"role": "user", "content": content}]

    found = _requests(tmp_path, chat("p.png"), {"messages": chat("p.png"), "id": 1})
    assert found == [chat(str(tmp_path / "p.png"))] * 2
