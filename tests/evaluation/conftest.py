"""Planted models with a fitted guard on them, and labelled inputs whose one bad word is known."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.evaluation.items import EvalItem, load_items
from guardrail.fit.run import fit
from guardrail.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from guardrail.artefact import Artefact
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Policy

_THINGS = "red blue green image picture system tool user".split()
_OPENINGS = ("could you explain", "I would like", "please say", "how about", "is there")


def _module(path: Path) -> Any:
    spec = spec_from_file_location(f"evaluation_tests_{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


planted = _module(Path(__file__).parents[1] / "fit" / "conftest.py")


@dataclass(frozen=True)
class Fitted:
    """A planted model and the artefact fitted on it."""

    loaded: LoadedModel
    artefact: Artefact

    def guard(self, policy: Policy | None = None) -> Guard:
        return Guard(self.loaded, self.artefact, policy=policy)


@pytest.fixture(scope="session")
def fitted_of(tmp_path_factory: Any) -> Callable[[str], Fitted]:
    """`fitted_of("llava")`: fitted when first asked for."""
    made: dict[str, Fitted] = {}

    def get(family: str) -> Fitted:
        if family not in made:
            loaded = planted.wrap_model(*planted.tiny_model(family, seed=3), source="planted")
            planted.plant(loaded)
            folder = tmp_path_factory.mktemp(f"evaluation-{family}")
            artefact = fit(
                loaded,
                data=planted.write_rows(folder / "contrast.jsonl"),
                extend=False,
                refusal_prefixes=planted.PREFIXES,
                # What is steered is refused, and false refusals are bounded: few are to be steered.
                steer_rate=0.06,
                flag_rate=0.05,
            )
            made[family] = Fitted(loaded, artefact)
        return made[family]

    return get


@pytest.fixture
def guard(fitted_of: Callable[[str], Fitted]) -> Iterator[Guard]:
    """A guard on the planted text model."""
    with fitted_of("llama").guard() as open_guard:
        yield open_guard


@pytest.fixture
def seeing_guard(fitted_of: Callable[[str], Fitted]) -> Iterator[Guard]:
    """A guard on the planted model that takes pictures."""
    with fitted_of("llava").guard() as open_guard:
        yield open_guard


def labelled_rows(n: int = 14, *, seed: int = 2, longest: int = 3) -> list[dict[str, str]]:
    """`n` harmful inputs with the planted word and `n` harmless ones, of like length and words."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < 2 * n:
        label = "harmful" if len(rows) % 2 == 0 else "harmless"
        noun = "dog" if label == "harmful" else "cat"
        middle = " ".join(rng.choices(_THINGS, k=rng.randint(1, longest)))
        text = f"{rng.choice(_OPENINGS)} the {middle} {noun}"
        rows.setdefault(text, {"text": text, "label": label, "category": noun})
    return list(rows.values())


@pytest.fixture
def write_items(tmp_path: Path) -> Callable[..., list[EvalItem]]:
    """`write_items(rows)`: the items of a JSONL file with these rows."""

    def write(rows: list[dict[str, Any]], name: str = "data") -> list[EvalItem]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return load_items([path])

    return write


@pytest.fixture
def texts(write_items: Callable[..., list[EvalItem]]) -> list[EvalItem]:
    """28 labelled texts."""
    return write_items(labelled_rows(), "texts")


@pytest.fixture
def pictured(
    write_items: Callable[..., list[EvalItem]],
    tmp_path: Path,
    picture: Callable[..., Image.Image],
) -> list[EvalItem]:
    """12 labelled texts beside one picture each, and two beside two."""
    rows: list[dict[str, Any]] = [dict(row) for row in labelled_rows(7, seed=4)]
    for number, row in enumerate(rows):
        name = f"{number % 3}.png"
        picture(number % 3).save(tmp_path / name)
        row["image"] = [name, "0.png"] if number >= 12 else name
    return write_items(rows, "pictured")


def clip_parts(frames: int, seed: int = 0) -> dict[str, Any]:
    """A video part of that many coloured frames."""
    from PIL import Image

    rng = random.Random(seed)
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(frames)]
    return {"type": "video", "video": [Image.new("RGB", (56, 40), c) for c in colours]}


@pytest.fixture
def filmed() -> list[EvalItem]:
    """14 labelled texts beside one video each: of 2 frames, or of 5."""
    items = []
    for number, row in enumerate(labelled_rows(7, seed=6)):
        content = [
            clip_parts((2, 5)[number // 2 % 2], number),
            {"type": "text", "text": row["text"]},
        ]
        items.append(
            EvalItem(
                id=f"film-{number}",
                label="harmful" if row["label"] == "harmful" else "harmless",
                messages=[{"role": "user", "content": content}],
                text=row["text"],
                category=row["category"],
                source="films",
                videos=(f"film-{number}.mp4",),
            )
        )
    return items
