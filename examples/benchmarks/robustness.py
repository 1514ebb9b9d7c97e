"""How far words, turns and pictures around a request move its score, at unchanged thresholds.

python examples/benchmarks/robustness.py --model FOLDER --artefact FILE --out FOLDER [--data FOLDER]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Annotated, Any

import tables
import typer
from benchmark_data import test_texts
from rich.progress import track
from robustness_conditions import VERSIONS, Condition, conditions, texts
from robustness_reading import Read, Reader

from guardrail import Artefact, Policy
from guardrail.decide.detector import Detector
from guardrail.fit.select import readout_layers
from guardrail.model.load import load_model
from guardrail.stats import Rate, auroc, auroc_interval
from guardrail.types import Action

LABELS = ("harmful", "harmless")


@dataclass(frozen=True)
class Scores:
    """What the guard would say of every request under one condition."""

    scores: list[float]
    actions: list[Action]
    tokens: list[int]


@dataclass(frozen=True)
class Measured:
    """The scorer and the labelled requests: what every condition is measured with."""

    reader: Reader
    detector: Detector
    requests: Sequence[tuple[str, str]]  # label, text

    def under(self, condition: Condition) -> Scores:
        """Ask every request under a condition; versions apart, as each begins in its own way."""
        every: list[tuple[int, float, Action, int]] = []
        for version in range(VERSIONS):
            numbers = range(version, len(self.requests), VERSIONS)
            asks = [partial(condition.ask, i, self.requests[i][1]) for i in numbers]
            every += zip(numbers, *self._judged(self.reader(asks)), strict=True)
        _, scores, actions, tokens = zip(*sorted(every), strict=True)
        return Scores(list(scores), list(actions), list(tokens))

    def _judged(self, read: Read) -> tuple[list[float], list[Action], list[int]]:
        places = [self.reader.layers.index(layer) for layer in self.detector.layers]
        decision = self.detector.decide(read.residuals[:, places], read.kinds)
        if any(decision.failed):
            raise SystemExit("some requests have no finite score; is this the artefact's model?")
        return decision.scores.tolist(), decision.actions, read.tokens.tolist()

    def figures(self, name: str, found: Scores, base: Scores) -> dict[str, Any]:
        """One row: shifts against `base`, pair by pair; separation and rates as they are."""
        rows: dict[str, Any] = {"name": name}
        added = [a - b for a, b in zip(found.tokens, base.tokens, strict=True)]
        rows["tokens_added"] = sum(added) / len(added)
        of = {label: [i for i, r in enumerate(self.requests) if r[0] == label] for label in LABELS}
        for label, places in of.items():
            rows[label] = {
                "n": len(places),
                "shift": spread([found.scores[i] - base.scores[i] for i in places]),
                **{
                    action.value: Rate.of([found.actions[i] is action for i in places]).to_dict()
                    for action in (Action.FLAG, Action.STEER)
                },
            }
        harmful, harmless = ([found.scores[i] for i in places] for places in of.values())
        low, high = auroc_interval(harmful, harmless)
        rows["auroc"] = {"value": auroc(harmful, harmless), "low": low, "high": high}
        return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def requests_of(per_label: int, data: Path | None) -> list[tuple[str, str]]:
    """Requests, labels in turn: our own, and with `data` half of each label from there."""
    chosen: dict[str, list[str]] = {}
    for label in LABELS:
        own = texts()[label]
        other = [] if data is None else [r["text"] for r in test_texts(data) if r["label"] == label]
        half = min(len(other), per_label // 2)
        chosen[label] = own[: per_label - half] + other[:half]
    # Labels by twos: every version of the words around meets as many of either.
    pairs = [[(label, chosen[label][i]) for label in LABELS] for i in range(len(chosen["harmful"]))]
    return [pair[(i + j) % 2] for i, pair in enumerate(pairs) for j in range(2)]


def translated(measured: Measured) -> dict[str, Any]:
    """Translations against their English originals."""
    rows = texts()["translated"]
    labels = [row["label"] for row in rows]

    def scores(column: str) -> tuple[Measured, Scores]:
        asked = [(label, row[column]) for label, row in zip(labels, rows, strict=True)]
        one = Measured(measured.reader, measured.detector, asked)
        return one, one.under(conditions()[0])

    _, english = scores("english")
    one, found = scores("text")
    return one.figures("other languages", found, english) | {"base": "the same in English"}


def measure(measured: Measured) -> list[dict[str, Any]]:
    """Every condition's row."""
    found: dict[str, Scores] = {}
    rows = []
    for condition in track(conditions(), "conditions"):
        found[condition.name] = measured.under(condition)
        base = found[condition.base]
        rows.append(
            measured.figures(condition.name, found[condition.name], base) | {"base": condition.base}
        )
    return [*rows, translated(measured)]


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    artefact: Annotated[Path, typer.Option(help="what was fitted on it")],
    out: Annotated[Path, typer.Option(help="where the figures go")],
    data: Annotated[Path | None, typer.Option(help="a folder with text/, for half of it")] = None,
    per_label: Annotated[int, typer.Option(min=4, max=40, help="requests of each label")] = 40,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
) -> None:
    """Measure, and write what was measured."""
    loaded, fitted = load_model(model, trust_remote_code=True), Artefact.load(artefact)
    layers = readout_layers(loaded.layer_count, range(loaded.layer_count))
    reader = Reader(loaded, sorted({*layers, *fitted.header.readout.layers}), out / "residuals")
    detector = Detector.from_artefact(fitted, Policy())
    rows = measure(Measured(reader, detector, requests_of(per_label, data)))
    out.mkdir(parents=True, exist_ok=True)
    report = {"artefact": fitted.artefact_id, "per_label": per_label, "conditions": rows}
    (out / "robustness.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    lines = list(tables.robustness(report))
    (out / "robustness.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")
    if readme is not None:
        tables.put(readme, "robustness", lines)


if __name__ == "__main__":
    typer.run(main)
