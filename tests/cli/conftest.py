from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from PIL import Image
from typer.testing import CliRunner

from guardrail.cli.main import app
from guardrail.testing import tiny_artefact, tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

THRESHOLDS = {"pass": (1e6, 2e6), "steer": (-1e6, 1e6), "flag": (-2e6, -1e6)}


class Saved(NamedTuple):
    """A folder with a tiny model, an artefact per action, a picture and a video, all as paths.

    The video is an animated GIF of 6 frames in 3 s.
    """

    model: str
    artefact: dict[str, str]
    picture: str
    video: str
    folder: Path


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("cli")
    model, processor = tiny_model("llava")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    artefacts = {}
    for action, (steer, flag) in THRESHOLDS.items():
        artefact = tiny_artefact(model, processor, tau_steer=steer, tau_flag=flag)
        artefacts[action] = str(artefact.save(folder / f"{action}.guard.safetensors"))
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    first, *others = (Image.new("RGB", (40, 40), (40 * i, 90, 200)) for i in range(6))
    film = folder / "film.gif"
    first.save(film, save_all=True, append_images=others, duration=500)
    picture = str(folder / "red.png")
    return Saved(str(folder / "model"), artefacts, picture, str(film), folder)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line: `run("check", model, ..., input="")`; stdout and stderr apart."""
    for name in [n for n in os.environ if n == "COLUMNS" or n.startswith("GUARDRAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(words), input=stdin, catch_exceptions=False)

    return invoke
