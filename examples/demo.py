"""Guard the tiny VLM: fit from text, then answer pictures and chats with and without the guard.

python examples/demo.py --model FOLDER --out FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from comparing import FOLLOW, LIST, Item, Row, compare, rates
from demo_picture import draw
from PIL import Image
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.datasets import load_sample_image

from guardrail import Artefact, Guard
from guardrail.cli.output import progress
from guardrail.errors import ArtefactError
from guardrail.fit.dataset import load_contrast
from guardrail.fit.run import fit
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import LoadedModel, load_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "tiny_vlm"))
from render import on_photograph, render
from signs import note, phone, search, sign

# Shares of safe calibration prompts, two thirds of which are hard look-alikes of unsafe ones;
# ordinary inputs are hit far less often, as the rates at the end of a run show.
STEER_RATE, FLAG_RATE = 0.05, 0.01
# What stands beside pictures that ask by what is written in them.
PROMPTS = {form: FOLLOW for form in ("caption", "sign", "note", "phone", "search", "page")}
PROMPTS["list"] = LIST
SHARES = {"input": 5, "plain answer": 4, "guarded answer": 3}  # of what the others leave
console = Console(width=120)


def items() -> list[Item]:
    """The inputs, pictures drawn here and now: harmful ones, each followed by a harmless twin."""
    lines = (HERE / "demo_items.jsonl").read_text("utf-8").splitlines()
    return [item(number // 2, **json.loads(line)) for number, line in enumerate(lines)]


def item(
    seed: int,
    *,
    text: str,
    label: str,
    form: str,
    photograph: str = "",
    before: Sequence[str] = (),
) -> Item:
    """One input in its form; `photograph` names the one that is asked about or written on."""
    image = picture(text, form, _photograph(photograph) if photograph else None, seed)
    prompt = PROMPTS.get(form, text)
    return Item(text=text, label=label, form=form, prompt=prompt, image=image, before=tuple(before))


def picture(text: str, form: str, photograph: Image.Image | None, seed: int) -> Image.Image | None:
    """What is shown beside the prompt; None where all is said in words."""
    match form, photograph:
        case "chat", None:
            return None
        case "photograph", Image.Image():
            return photograph
        case "caption", Image.Image():
            return on_photograph(text, photograph, seed=seed)
        case "sign", Image.Image():
            return sign(text, photograph)
        case "note", Image.Image():
            return note(text, photograph)
        case "phone", None:
            return phone(text)
        case "search", None:
            return search(text)
        case "list", None:
            return render(text, style="figstep")
        case "page", None:
            return render(text, seed=seed)
    raise ValueError(f"an item of form {form!r} with photograph {photograph} is not known")


def _photograph(name: str) -> Image.Image:
    """One of `examples/photographs`, or of the two that come with scikit-learn."""
    path = HERE / "photographs" / name
    if not path.exists():
        return Image.fromarray(load_sample_image(name))
    with Image.open(path) as opened:
        return opened.convert("RGB")


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
            loaded,
            steer_rate=STEER_RATE,
            flag_rate=FLAG_RATE,
            work_dir=work_dir,
            progress=report,
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


def show(rows: Sequence[Row]) -> None:
    """The table, one line a row: what went in, what was found, what came out."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, expand=True)
    for name in ("", "form", "input", "score", "verdict", "plain answer", "guarded answer"):
        table.add_column(name, no_wrap=True, ratio=SHARES.get(name))
    for number, row in enumerate(rows, start=1):
        plain, guarded = (" ".join(text.split()) for text in (row.plain, row.guarded.text))
        cells = (
            f"{number:02}",
            row.item.shown,
            row.item.text,
            "-" if row.verdict.score is None else f"{row.verdict.score:.2f}",
            row.verdict.action.value,
            plain,
            "(the same)" if guarded == plain else guarded,
        )
        table.add_row(*map(escape, cells), style="red" if row.item.harmful else "")
    console.print(table)


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
