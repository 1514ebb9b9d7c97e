"""What a picture that means nothing does to the scores of held-out requests, on any model.

python examples/benchmarks/recentring.py --model FOLDER --out FOLDER [--artefact FILE] [--readme F]

Requests are packaged contrast prompts of the calibration split, of which the fit sees the safe ones
for its thresholds alone. Each is read by itself and beside one picture of every kind: as it is,
with a constant taken off that neutral prompts gave (MARS, arXiv 2606.31876), and as the product
re-centres it. Layers and directions are those of the artefact, or of the fit split. Nothing is
chosen on what is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import tables
import torch
import typer
from PIL import Image
from recentring_figures import CONSTANT, HOW, READ, RECENTRED, Scores, figures, table

EXAMPLES = Path(__file__).parents[1]
sys.path.insert(0, str(EXAMPLES / "tiny_vlm"))
from render import KINDS, Kind, plain_picture

from guardrail import Artefact, Policy
from guardrail.cli.output import progress
from guardrail.decide.detector import Detector
from guardrail.decide.linear import UNMOVED, Readout, Recentring
from guardrail.fit.collect import LAST_DEPTH, Collector, text_request
from guardrail.fit.dataset import ContrastSet, load_contrast, neutral_prompts
from guardrail.fit.directions import Directions, difference_of_means
from guardrail.fit.forms import FORMS, PLAN, samples
from guardrail.fit.prompts import meaningless_images, spread
from guardrail.fit.recentring import Beside, lines, without_pictures
from guardrail.fit.select import readout_layers
from guardrail.model.fingerprint import fingerprint, require_fitted_on
from guardrail.model.load import LoadedModel, load_model
from guardrail.types import Request

PHOTOGRAPH = "photograph"
SHOWN = ("colour", "noise", "gradient", "shapes", PHOTOGRAPH)
LAYERS = 3  # of the difference of means, where nobody names any
PROMPTS, COLOURS = 8, 4  # neutral prompts, and the pictures beside each, that give the constant
KINDS_OF = {READ: "text", CONSTANT: CONSTANT, RECENTRED: "image"}  # in a readout's `recentring`
Collect = Callable[[Sequence[Request], str], torch.Tensor]


def picture(kind: str, number: int) -> Image.Image:
    """Picture number so and so of a kind; there are a few photographs, which come in turn."""
    if kind == PHOTOGRAPH:
        paths = sorted((EXAMPLES / "photographs").glob("*.jpg"))
        return Image.open(paths[number % len(paths)]).convert("RGB")
    return plain_picture(number, cast(Kind, kind))


def held_out(contrast: ContrastSet, per_class: int) -> tuple[list[int], list[int]]:
    """Places of safe and unsafe prompts of the calibration split, the kinds of either alike."""
    found = []
    for label in ("safe", "unsafe"):
        places = contrast.indices("calibrate", labels=(label,))
        kinds = sorted({contrast.prompts[i].kind for i in places})
        of = [contrast.indices("calibrate", kinds=(kind,)) for kind in kinds]
        sizes = [(per_class + turn) // len(kinds) for turn in range(len(kinds))]
        found.append([i for part, n in zip(of, sizes, strict=True) for i in spread(part, n)])
    safe, unsafe = found
    return safe, unsafe


def measure(
    collect: Collect,
    contrast: ContrastSet,
    readouts: dict[str, Readout],
    *,
    per_class: int,
    kinds: Sequence[str],
) -> dict[str, Any]:
    """Ask every request alone and beside each kind of picture; every readout's figures.

    The first safe request and the first unsafe one see the same pictures, and so on.
    """
    safe, unsafe = held_out(contrast, per_class)
    texts = [contrast.prompts[i].text for i in (*safe, *unsafe)]
    numbers = [*range(len(safe)), *range(len(unsafe))]
    benign = contrast.indices("calibrate", labels=("safe",))
    read = collect([text_request(contrast.prompts[i].text) for i in benign], "safe texts")
    alone = collect([text_request(text) for text in texts], "requests alone")
    beside = [
        collect(
            [
                text_request(text, images=[picture(kind, number)])
                for text, number in zip(texts, numbers, strict=True)
            ],
            f"requests beside a picture, {kind}",
        )
        for kind in kinds
    ]

    found = {}
    for name, readout in readouts.items():
        scores = Scores(
            unsafe=np.arange(len(texts)) >= len(safe),
            text=scored(readout, alone, "text"),
            beside={
                how: np.stack([scored(readout, rows, KINDS_OF[how]) for rows in beside], axis=1)
                for how in HOW
            },
            benign=scored(readout, read, "text"),
        )
        kept = {"text": scores.text.tolist(), "picture": scores.beside[READ].tolist()}
        found[name] = figures(scores, kinds) | {"scores": kept}
    return {
        "n": {"safe": len(safe), "unsafe": len(unsafe), "benign": len(benign)},
        "kinds": list(kinds),
        "requests": [contrast.prompts[i].id for i in (*safe, *unsafe)],
        "readouts": found,
    }


def scored(readout: Readout, residuals: torch.Tensor, kind: str) -> np.ndarray[Any, Any]:
    """(n, L, d_model) -> (n,), re-centred as its `recentring` says for a kind."""
    found = readout.scores(residuals[:, list(readout.layers)], [kind] * len(residuals)).numpy()
    if not np.isfinite(found).all():
        raise SystemExit("some requests have no finite score: try another dtype, or other layers")
    return found


def fitted(collect: Collect, contrast: ContrastSet, per_kind: int) -> Directions:
    """Differences of means of the fit split, at most `per_kind` prompts of a kind."""

    def read(*kinds: str) -> torch.Tensor:
        of = [spread(contrast.indices("fit", kinds=(kind,)), per_kind) for kind in kinds]
        requests = [text_request(contrast.prompts[i].text) for part in of for i in part]
        return collect(requests, f"fit split, {' and '.join(kinds)}")

    kinds = sorted({p.kind for p in contrast.prompts} - {"unsafe"})
    return difference_of_means(read("unsafe"), read(*kinds))


def kept(artefact: Artefact) -> Directions:
    """The differences of means that an artefact holds."""
    made = {name: artefact.tensors[name] for name in ("direction", "mu_safe", "mu_unsafe")}
    return Directions(**made, usable=torch.tensor([row.usable for row in artefact.header.layers]))


def layers_of(
    directions: Directions, artefact: Artefact | None, wanted: Sequence[int]
) -> Sequence[int]:
    """Those wanted; else the steering layer and one to either side, or some of the fit's range."""
    count = len(directions.usable)
    read = max(int(LAST_DEPTH * count), 1)  # a fit reads none behind
    usable = directions.usable[:read].nonzero()[:, 0].tolist()
    layers = list(wanted)
    if not wanted and artefact is not None and artefact.header.steering is not None:
        at, step = artefact.header.steering.layer, max(1, count // 10)
        layers = [layer for layer in (at - step, at, at + step) if layer in usable]
    layers = layers or spread(readout_layers(count, usable), LAYERS)
    if not layers or not set(layers) <= set(usable):
        raise SystemExit(f"no direction at {layers or 'any layer'}; layers that have one: {usable}")
    return layers


def constant_of(collect: Collect) -> torch.Tensor:
    """What a picture of one colour adds to the residuals of neutral prompts, (L, d_model)."""
    texts = neutral_prompts("fit")[:PROMPTS]
    shown = [(text, image) for text in texts for image in meaningless_images(COLOURS)]
    beside = collect([text_request(t, images=[image]) for t, image in shown], "neutral, pictured")
    alone = collect([text_request(text) for text in texts], "neutral prompts")
    return beside.double().mean(0) - alone.double().mean(0)


def pictured(collect: Collect, contrast: ContrastSet) -> Beside:
    """The fit's own prompts of both classes, alone and beside one picture of one colour."""
    (form,) = (form for form in FORMS if form.pictures)
    some = [
        sample
        for sample in samples(contrast, form, PLAN[form.name] | {"select": 0, "calibrate": 0})
        if sample.request.offset_kind == "image"
    ]
    requests = [sample.request for sample in some]
    return Beside(
        ["fit"] * len(some),
        [contrast.prompts[sample.index].label == "unsafe" for sample in some],
        collect([without_pictures(request) for request in requests], "fit split, the same alone"),
        collect(requests, "fit split, beside a picture"),
    )


def means_readout(directions: Directions, layer: int, beside: Beside) -> Readout:
    """The difference of means at one layer, with the line that the product takes back."""
    unit = directions.direction[layer : layer + 1]
    made = Readout(
        layers=(layer,),
        weight=unit,
        zero=(unit.double() @ directions.mu_safe[layer].double()),
        gap=directions.norms[layer : layer + 1],
        recentring={"text": UNMOVED},
    )

    def scores(residuals: torch.Tensor) -> torch.Tensor:
        return made.scores(residuals[:, [layer]], ["text"] * len(residuals))

    line = lines({"image": beside}, scores)["image"]
    return replace(made, recentring={"text": UNMOVED, "image": line})


def with_constant(readout: Readout, added: torch.Tensor) -> Readout:
    """The readout with a constant for a further kind: that of `added` (L, d_model) residuals."""
    both = torch.stack([added, torch.zeros_like(added)])[:, list(readout.layers)]
    moved, nothing = readout.scores(both, ["text"] * 2).tolist()
    constant: Recentring = (moved - nothing, 1.0)
    return replace(readout, recentring={**readout.recentring, CONSTANT: constant})


def readouts_of(
    collect: Collect,
    contrast: ContrastSet,
    directions: Directions,
    layers: Sequence[int],
    artefact: Artefact | None,
) -> dict[str, Readout]:
    """The difference of means at each layer, and what the guard reads at the ends of turns."""
    beside = pictured(collect, contrast)
    made = {f"means, layer {i}": means_readout(directions, i, beside) for i in layers}
    if artefact is not None:
        own, layers = artefact.header.readout.estimator, artefact.header.readout.layers
        name = f"the guard's ({own}, layers {', '.join(map(str, layers))})"
        made[name] = Detector.from_artefact(artefact, Policy()).readout
    added = constant_of(collect)
    return {name: with_constant(readout, added) for name, readout in made.items()}


def measured(
    loaded: LoadedModel,
    artefact: Artefact | None,
    *,
    per_class: int,
    per_kind: int,
    kinds: Sequence[str],
    layers: Sequence[int],
    work_dir: Path | None,
) -> dict[str, Any]:
    """The report on one model."""
    if not loaded.is_multimodal:
        raise SystemExit(f"{loaded.name} takes no pictures")
    if artefact is not None:
        require_fitted_on(artefact, loaded)
    contrast = load_contrast()
    with progress() as told:
        key = fingerprint(loaded).model_dump_json()
        collect = Collector(loaded, work_dir=work_dir, key=key, progress=told)
        found = kept(artefact) if artefact else fitted(collect, contrast, per_kind)
        chosen = layers_of(found, artefact, layers)
        readouts = readouts_of(collect, contrast, found, chosen, artefact)
        report = measure(collect, contrast, readouts, per_class=per_class, kinds=kinds)
    about = {"per_kind": None if artefact else per_kind, "model": loaded.name}
    return about | {"artefact": artefact and artefact.artefact_id} | report


def main(
    model: Annotated[Path, typer.Option(help="a folder with a vision-language model")],
    out: Annotated[Path, typer.Option(help="where the figures and what was read go")],
    artefact: Annotated[Path | None, typer.Option(help="what was fitted on the model")] = None,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
    per_class: Annotated[int, typer.Option(min=6, help="requests of each class")] = 48,
    per_kind: Annotated[int, typer.Option(min=4, help="prompts a kind, without artefact")] = 64,
    kind: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(KINDS)}, {PHOTOGRAPH}; repeatable")
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="of the means; repeatable")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
) -> None:
    """Measure, print the tables, and write them down."""
    kinds = kind or list(SHOWN)
    if unknown := set(kinds) - {*KINDS, PHOTOGRAPH}:
        raise typer.BadParameter(f"no such kind of picture: {', '.join(sorted(unknown))}")
    loaded = load_model(model, trust_remote_code=trust_remote_code)
    report = measured(
        loaded,
        None if artefact is None else Artefact.load(artefact),
        per_class=per_class,
        per_kind=per_kind,
        kinds=kinds,
        layers=layer or (),
        work_dir=out / "work",
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "recentring.json").write_text(json.dumps(report, indent=1), "utf-8")
    lines = list(table(report))
    print(*lines, sep="\n")
    if readme is not None:
        tables.put(readme, "recentring", lines)


if __name__ == "__main__":
    typer.run(main)
