"""Measure a fitted guard on inputs that no setting was chosen on; write the README's table.

python examples/measure.py --model FOLDER --out FOLDER --data FOLDER

The data folder holds `text/*.jsonl` and `vision/*.jsonl` (id, text, label harmful or harmless;
vision: image, statement). Texts are also drawn as pictures, each with its own seed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from comparing import FOLLOW, LIST, Item, Row, compare, rates
from demo import FLAG_RATE, STEER_RATE, artefact_for
from PIL import Image

from guardrail import Guard, Policy
from guardrail.fit.calibrate import calibrate
from guardrail.metrics import auroc, auroc_interval, tpr_at_fpr
from guardrail.model.load import load_model

sys.path.insert(0, str(Path(__file__).parent / "tiny_vlm"))
from render import render

LONGEST = 110  # characters: what the tiny VLM's image slots hold with a margin


def texts(data: Path, count: int) -> list[Item]:
    """Harmful and ordinary texts of the test splits, each class shuffled on its own."""
    found = []
    for label in ("harmful", "harmless"):
        rows = _rows(data / f"text/{label}_test.jsonl")
        short = [row["text"] for row in rows if len(row["text"]) <= LONGEST]
        random.Random(20).shuffle(short)
        found += [Item(text=t, label=label, source="text", prompt=t) for t in short[:count]]
    return found


def drawn(items: Sequence[Item]) -> list[Item]:
    """The same texts as pictures."""
    return [
        replace(item, source="drawn", prompt=FOLLOW, image=render(item.text, seed=1000 + i))
        for i, item in enumerate(items)
    ]


def stored(data: Path, *names: str) -> list[Item]:
    """Pictures that come with the data."""
    return [
        Item(
            text=row["statement"],
            label=row["label"],
            source="figstep",
            prompt=LIST,
            image=Image.open(data / "vision" / row["image"]).convert("RGB"),
        )
        for name in names
        for row in _rows(data / "vision" / f"{name}.jsonl")
    ]


def matched(rows: Sequence[Row]) -> list[Row]:
    """Pairs of one harmful and one harmless input whose texts differ by at most 2 characters."""
    free = sorted((r for r in rows if not r.item.harmful), key=lambda r: len(r.item.text))
    kept: list[Row] = []
    for row in (r for r in rows if r.item.harmful):
        near = min(free, key=lambda r: abs(len(r.item.text) - len(row.item.text)), default=None)
        if near is not None and abs(len(near.item.text) - len(row.item.text)) <= 2:
            free.remove(near)
            kept += [row, near]
    return kept


def figures(rows: Sequence[Row]) -> dict[str, object]:
    """Every figure of one source, with its n and interval."""

    def split(chosen: Sequence[Row], by_length: bool = False) -> tuple[list[float], list[float]]:
        value = (lambda r: float(len(r.item.text))) if by_length else (lambda r: r.verdict.score)
        harmful = [value(r) for r in chosen if r.item.harmful]
        return harmful, [value(r) for r in chosen if not r.item.harmful]

    high, low = split(rows)
    pairs = matched(rows)
    lengths = auroc(*split(rows, by_length=True))
    found: dict[str, object] = {
        "n": {"harmful": len(high), "harmless": len(low)},
        "auroc": auroc(high, low),
        "auroc_interval": auroc_interval(high, low),
        "auroc_length_only": max(lengths, 1 - lengths),
        "tpr_at_5_fpr": tpr_at_fpr(high, low, 0.05).to_dict(),
        "rates": {name: rate.to_dict() for name, rate in rates(rows).items()},
    }
    if len(pairs) >= 20:
        found["length_matched"] = {
            "pairs": len(pairs) // 2,
            "auroc": auroc(*split(pairs)),
            "auroc_interval": auroc_interval(*split(pairs)),
        }
    return found


def table(results: dict[str, dict[str, object]]) -> Iterator[str]:
    """The figures as a Markdown table."""
    yield "| | " + " | ".join(results) + " |"
    yield "| --- |" + " --- |" * len(results)

    def line(name: str, cells: Iterator[str]) -> str:
        return f"| {name} | " + " | ".join(cells) + " |"

    every = list(results.values())
    yield line(
        "inputs (harmful + harmless)",
        (f"{r['n']['harmful']} + {r['n']['harmless']}" for r in every),
    )
    yield line("AUROC", (f"{r['auroc']:.3f} ({_span(r['auroc_interval'])})" for r in every))
    yield line("AUROC, length-matched pairs", (_pairs(r.get("length_matched")) for r in every))
    yield line("AUROC of the length alone", (f"{r['auroc_length_only']:.3f}" for r in every))
    yield line("TPR at 5 % FPR", (_rate(r["tpr_at_5_fpr"]) for r in every))
    for name in every[0]["rates"]:
        yield line(name, (_rate(r["rates"][name]) for r in every))


def timed(guard: Guard, name: str, items: Sequence[Item]) -> dict[str, object]:
    """The figures of one source; how long they took goes to the terminal."""
    started = time.monotonic()
    found = figures(compare(guard, items, new_tokens=16))
    typer.echo(f"{name}: {time.monotonic() - started:.0f} s", err=True)
    return found


def _rate(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.3f} ({rate['low']:.3f}-{rate['high']:.3f})"


def _pairs(found: dict[str, object] | None) -> str:
    if found is None:
        return "too few pairs"
    return f"{found['auroc']:.3f} ({_span(found['auroc_interval'])}), {found['pairs']} pairs"


def _span(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f}-{interval[1]:.3f}"


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    out: Annotated[Path, typer.Option(help="where the artefact and the figures go")],
    data: Annotated[Path, typer.Option(help="a folder with text/ and vision/")],
    count: Annotated[int, typer.Option(help="texts of each class")] = 75,
    only: Annotated[str, typer.Option(help="measure only sources that begin so")] = "",
) -> None:
    """Answer everything plainly and guarded, and print the table."""
    if not (data / "vision").is_dir():
        typer.echo(f"skipped: there is no evaluation data in {data}")
        raise typer.Exit
    loaded = load_model(model, trust_remote_code=True)
    artefact = artefact_for(loaded, out / "tiny_vlm.guard.safetensors", out / "work")
    words = texts(data, count)
    sources = {
        "text": words,
        "the same texts as pictures": drawn(words),
        "FigStep pictures": stored(data, "figstep_tiny", "own_benign"),
    }
    results = {}
    with Guard(loaded, artefact, policy=Policy()) as guard:
        for name, items in sources.items():
            if not only or name.startswith(only):
                results[name] = timed(guard, name, items)
        name, items = (
            "FigStep, calibrated on 30 of its benign pictures",
            sources["FigStep pictures"],
        )
        traffic = [item for item in items if not item.harmful][::2]
        rest = [item for item in items if item not in traffic]
        own = calibrate(
            guard,
            [item.messages for item in traffic],
            steer_rate=STEER_RATE,
            flag_rate=FLAG_RATE,
        )
    with Guard(loaded, own, policy=Policy()) as guard:
        results[name] = timed(guard, name, rest)
    saved = {"artefact": artefact.summary(), "results": results}
    (out / "measured.json").write_text(json.dumps(saved, indent=1))
    typer.echo("\n".join(table(results)))


if __name__ == "__main__":
    typer.run(main)
