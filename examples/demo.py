"""Guard the tiny reading VLM: fit from text, then answer real pictures with and without the guard.

python examples/demo.py --model FOLDER --out FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from comparing import FOLLOW, LIST, LOOK, Item, Row, compare, rates
from demo_picture import draw
from rich.console import Console
from rich.table import Table

from guardrail import Artefact, Guard
from guardrail.cli.output import progress
from guardrail.errors import ArtefactError
from guardrail.fit.dataset import load_contrast
from guardrail.fit.run import fit
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import LoadedModel, load_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "tiny_vlm"))
from render import plain_picture, render

# Shares of safe calibration prompts, two thirds of which are hard look-alikes of unsafe ones;
# ordinary inputs are hit far less often, as the rates at the end of a run show.
STEER_RATE, FLAG_RATE = 0.20, 0.10
console = Console(width=150)


def items() -> list[Item]:
    """The inputs, pictures drawn here and now."""
    lines = (HERE / "demo_items.jsonl").read_text("utf-8").splitlines()
    return [item(seed, **json.loads(line)) for seed, line in enumerate(lines)]


def item(seed: int, *, text: str, label: str, show: str) -> Item:
    """One input in the form it is shown in."""
    if show == "text":
        return Item(text=text, label=label, source="text", prompt=text)
    if show in ("figstep", "plain"):
        image, prompt = render(text, seed=seed, style=show), LIST if show == "figstep" else FOLLOW
    else:
        image, prompt = plain_picture(seed, show), LOOK
    return Item(text=text or f"({show})", label=label, source=show, prompt=prompt, image=image)


def fits(artefact: Artefact, loaded: LoadedModel) -> bool:
    """Whether an artefact is what a fit of this model would be made from today."""
    header = artefact.header
    targets = {(c.targets.steer, c.targets.flag) for c in header.calibration.values()}
    return (
        not header.fingerprint.differences(fingerprint(loaded))
        and header.data["digest"] == load_contrast().digest
        and targets == {(STEER_RATE, FLAG_RATE)}
    )


def artefact_for(loaded: LoadedModel, path: Path, work_dir: Path) -> Artefact:
    """The artefact of an earlier run if it still fits this model, else a new one."""
    if path.exists():
        try:
            found = Artefact.load(path)
            if fits(found, loaded):
                console.print(f"reusing {path} ({found.artefact_id})")
                return found
            console.print(f"{path} is of another model, data set or target; fitting again")
        except ArtefactError as error:
            console.print(f"{error}; fitting again")
    started = time.monotonic()
    with progress() as report:
        made = fit(
            loaded, steer_rate=STEER_RATE, flag_rate=FLAG_RATE, work_dir=work_dir, progress=report
        )
    made.save(path)
    console.print(f"fitted {made.artefact_id} in {time.monotonic() - started:.0f} s: {path}")
    return made


def save_pictures(inputs: list[Item], folder: Path) -> None:
    """The drawn inputs as PNG files, numbered as in `demo_items.jsonl`."""
    folder.mkdir(exist_ok=True)
    for number, one in enumerate(inputs, start=1):
        if one.image is not None:
            one.image.save(folder / f"{number:02}.png")


def show(rows: list[Row]) -> None:
    """The table: what went in, what was found, what came out."""
    table = Table("input", "as", "score", "verdict", "plain answer", "guarded answer")
    for row in rows:
        table.add_row(
            row.item.text,
            row.item.source,
            "-" if row.verdict.score is None else f"{row.verdict.score:.2f}",
            row.verdict.action.value,
            _short(row.plain),
            _short(row.guarded.text),
            style="red" if row.item.harmful else "",
        )
    console.print(table)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 60 else line[:57] + "..."


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    out: Annotated[Path, typer.Option(help="where the artefact and the picture go")],
) -> None:
    """Fit or reuse, compare, print and draw."""
    out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, trust_remote_code=True)
    artefact = artefact_for(loaded, out / "tiny_vlm.guard.safetensors", out / "work")
    inputs = items()
    save_pictures(inputs, out / "pictures")
    with Guard(loaded, artefact) as guard:
        rows = compare(guard, inputs, new_tokens=24)
        show(rows)
        for warning in artefact.header.warnings:
            console.print(f"note: {warning}")
        picture = draw(rows, artefact, out / "demo.png")
        console.print(f"picture: {picture}")
    summary = "; ".join(f"{name} {rate}" for name, rate in rates(rows).items())
    console.print(f"n={len(rows)}: {summary}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
