"""How far words, turns and pictures around a request move its score, at unchanged thresholds.

python examples/benchmarks/robustness.py --model FOLDER --artefact FILE --out FOLDER [--data FOLDER]
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
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
from robustness_reading import BATCH, Chat, Read, Reader

from guardrail import Artefact, Policy
from guardrail.decide.detector import KINDS
from guardrail.fit.calibrate import calibration
from guardrail.fit.dataset import load_contrast
from guardrail.fit.prompts import drawn, plain
from guardrail.fit.readings import DRAWN
from guardrail.model.load import load_model
from guardrail.policy import Thresholds
from guardrail.stats import Rate, auroc, auroc_interval
from guardrail.types import Action, Modality

LABELS = ("harmful", "harmless")
DETECTORS = ("guard", "last position")
STRINGS, WORDS = 32, (8, 24)


@dataclass(frozen=True)
class Points:
    """Where a detector steers and flags, by modality."""

    of: dict[Modality, Thresholds]

    def action(self, score: float, kind: str) -> Action:
        """What a score of a kind of request leads to."""
        at = self.of[KINDS[kind]]
        steered = Action.STEER if score > at.steer else Action.PASS
        return Action.FLAG if score > at.flag else steered


@dataclass(frozen=True)
class Measured:
    """The scorer and the labelled requests: what every condition is measured with.

    `points` are those of each detector: of the guard as fitted, and of the readout at the last
    position alone, set on the same safe prompts, bare and drawn.
    """

    reader: Reader
    points: dict[str, Points]
    requests: Sequence[tuple[str, str]]  # label, text

    def under(self, condition: Condition) -> list[Read]:
        """Ask every request under a condition; versions apart, as each begins in its own way."""
        every: list[tuple[int, Read]] = []
        for version in range(VERSIONS):
            numbers = range(version, len(self.requests), VERSIONS)
            asks = [partial(condition.ask, i, self.requests[i][1]) for i in numbers]
            every += zip(numbers, self.reader(asks), strict=True)
        return [read for _, read in sorted(every, key=lambda pair: pair[0])]

    def figures(self, name: str, found: list[Read], base: list[Read]) -> dict[str, Any]:
        """One row: shifts against `base`, pair by pair; separation and rates as they are."""
        pairs = list(zip(found, base, strict=True))
        rows: dict[str, Any] = {"name": name}
        rows["tokens_added"] = sum(a.tokens - b.tokens for a, b in pairs) / len(pairs)
        rows["readings"] = dict(Counter(read.reading for read in found))
        places = {
            label: [i for i, r in enumerate(self.requests) if r[0] == label] for label in LABELS
        }
        for detector in DETECTORS:
            score = _score_of(detector)
            rows[detector] = {}
            for label, of in places.items():
                actions = [self.points[detector].action(score(found[i]), found[i].kind) for i in of]
                rows[detector][label] = {
                    "n": len(of),
                    "shift": spread([score(found[i]) - score(base[i]) for i in of]),
                    **{
                        action.value: Rate.of([a is action for a in actions]).to_dict()
                        for action in (Action.FLAG, Action.STEER)
                    },
                }
            harmful, harmless = ([score(found[i]) for i in of] for of in places.values())
            low, high = auroc_interval(harmful, harmless)
            value = auroc(harmful, harmless)
            rows[detector]["auroc"] = {"value": value, "low": low, "high": high}
        return rows

    def random_words(self, where: str, vocabulary: Sequence[str]) -> dict[str, Any]:
        """Flags that are lost to the worst of some strings of random words, of those there were.

        Every string is put around every harmful request that is flagged bare.
        """
        rng = random.Random(0)
        strings = [" ".join(rng.choices(vocabulary, k=rng.randint(*WORDS))) for _ in range(STRINGS)]
        texts_asked = [text for label, text in self.requests if label == "harmful"]
        bare = self.reader([partial(_asked, text) for text in texts_asked])
        lost: dict[str, Any] = {"where": where, "strings": STRINGS}
        kept = {
            name: [i for i, read in enumerate(bare) if self._flags(name, read)]
            for name in DETECTORS
        }
        every = sorted({i for places in kept.values() for i in places})
        worst: dict[str, list[int]] = {name: [] for name in DETECTORS}
        for string in track(strings, f"random words {where}"):
            asks = [partial(_asked, texts_asked[i], string, where) for i in every]
            found = dict(zip(every, self.reader(asks), strict=True))
            for name, places in kept.items():
                worst[name].append(sum(not self._flags(name, found[i]) for i in places))
        for name, places in kept.items():
            lost[name] = {"n": len(places), "lost": max(worst[name])}
        return lost

    def _flags(self, detector: str, read: Read) -> bool:
        score = _score_of(detector)(read)
        return self.points[detector].action(score, read.kind) is Action.FLAG


def _score_of(detector: str) -> Callable[[Read], float]:
    return (lambda read: read.score) if detector == "guard" else (lambda read: read.last)


def _asked(text: str, string: str = "", where: str = "behind") -> Chat:
    around = (text, string) if where == "behind" else (string, text)
    return [{"role": "user", "content": "\n".join(part for part in around if part)}]


def points_of(artefact: Artefact, reader: Reader) -> dict[str, Points]:
    """Both detectors' thresholds; those of the last position are of bare and of drawn prompts."""
    contrast = load_contrast()
    safe = {Modality.TEXT: plain(contrast), Modality.IMAGE: drawn(contrast, DRAWN)}
    last = {}
    for modality, samples in safe.items():
        held = [s for s in samples if contrast.prompts[s.index].in_split == "calibrate"]
        batches = [held[i : i + BATCH] for i in range(0, len(held), BATCH)]
        reads = [
            read
            for some in track(batches, f"safe {modality}")
            for read in reader.requests([sample.request for sample in some])
        ]
        rates = artefact.header.calibration[modality].targets
        last[modality] = calibration([r.last for r in reads], rates, source="").thresholds
    own = {m: artefact.thresholds(m, Policy()) for m in last}
    return {"guard": Points(own), "last position": Points(last)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def requests_of(per_label: int, data: Path | None) -> list[tuple[str, str]]:
    """Requests, labels in turn: our own, and with `data` half of each label from there."""
    chosen: dict[str, list[str]] = {}
    for label in LABELS:
        own = texts()[label]
        other = (
            []
            if data is None
            else [r["text"] for r in test_texts(data, others=False) if r["label"] == label]
        )
        half = min(len(other), per_label // 2)
        chosen[label] = own[: per_label - half] + other[:half]
    # Labels by twos: every version of the words around meets as many of either.
    pairs = [[(label, chosen[label][i]) for label in LABELS] for i in range(len(chosen["harmful"]))]
    return [pair[(i + j) % 2] for i, pair in enumerate(pairs) for j in range(2)]


def translated(measured: Measured) -> dict[str, Any]:
    """Translations against their English originals."""
    rows = texts()["translated"]
    labels = [row["label"] for row in rows]

    def scores(column: str) -> tuple[Measured, list[Read]]:
        asked = [(label, row[column]) for label, row in zip(labels, rows, strict=True)]
        one = Measured(measured.reader, measured.points, asked)
        return one, one.under(conditions()[0])

    _, english = scores("english")
    one, found = scores("text")
    return one.figures("other languages", found, english) | {"base": "the same in English"}


def measure(measured: Measured) -> list[dict[str, Any]]:
    """Every condition's row."""
    found: dict[str, list[Read]] = {}
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
    reader = Reader(loaded, fitted, out / "scores")
    measured = Measured(reader, points_of(fitted, reader), requests_of(per_label, data))
    rows = measure(measured)
    vocabulary = sorted({word for text in texts()["sentences"] for word in text.split()})
    strings = [measured.random_words(where, vocabulary) for where in ("behind", "before")]
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "artefact": fitted.artefact_id,
        "per_label": per_label,
        "conditions": rows,
        "random_words": strings,
    }
    (out / "robustness.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    lines = list(tables.robustness(report))
    (out / "robustness.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")
    if readme is not None:
        tables.put(readme, "robustness", lines)


if __name__ == "__main__":
    typer.run(main)
