"""The evaluation as a page that a safety reviewer reads from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from guardrail.errors import InputError
from guardrail.policy import Limits, Policy
from guardrail.report import evaluation_figures as draw
from guardrail.report.controls import control_rows, summary
from guardrail.report.figures import png_data
from guardrail.report.page import render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from markupsafe import Markup
    from pydantic import JsonValue

    from guardrail.evaluation.schema import Controls, Group, ItemRow, Report
    from guardrail.report.controls import ControlRow


MOST, WORDS = 10, 700
_LIMITS = Limits(image_bytes=50_000_000, image_pixels=64_000_000)
_LONGEST = 300  # characters of one setting


@dataclass(frozen=True, kw_only=True)
class ScorePanel:
    """The figures of one modality's scores; `beyond` are thresholds that they cannot show."""

    modality: str
    counts: str
    drawn: dict[str, float]
    beyond: list[str]
    roc: Markup | None
    histogram: Markup

    @property
    def named_counts(self) -> str:
        """The counts with the modality before them."""
        return f"{self.modality}: {self.counts}"


@dataclass(frozen=True, kw_only=True)
class ControlPanel:
    """One modality's controls, each in words, all in a sentence and in a figure."""

    controls: Controls
    rows: list[ControlRow]
    summary: str
    figure: Markup


@dataclass(frozen=True, kw_only=True)
class Card:
    """An input as the page shows it: long texts cut short, its picture as a data URL."""

    item: ItemRow
    picture: str | None


def evaluation_page(
    report: Report,
    *,
    base: Path | None = None,
    explained: Mapping[str, Markup] | None = None,
) -> str:
    """A self-contained HTML page of an evaluation; `Report.from_json` reads one from a file.

    Args:
        report: of any evaluation.
        base: the folder that relative picture paths start from. Without it only absolute ones are
            opened. Small copies of the pictures shown become part of the page, so make pages only
            from reports whose paths you trust.
        explained: parts made by `explanation_html`, by the id of the input they belong to; they
            stand beside the worst mistakes.

    Raises:
        MissingExtraError: the extra `report` is not installed.
    """
    groups = {
        by: [group for group in report.groups if group.by == by]
        for by in ("modality", "source", "category")
    }
    trials = draw.shown_trials(report.strength)
    facts = {
        "artefact": report.artefact,
        "policy": report.policy,
        "settings": report.settings,
        "data": report.data,
    }
    return render(
        "evaluation.html.j2",
        report=report,
        groups=groups,
        scores=[_score_panel(found) for found in _in_order(report, groups["modality"])],
        actions=draw.action_bars(groups["modality"]),
        refusals=draw.refusal_dots(groups["modality"]),
        controls=[_control_panel(found) for found in report.controls],
        layer_map=draw.layer_map(report.layers),
        trials=trials,
        strength=draw.strength_curve(trials) if trials else None,
        divergence=draw.divergence_curve(trials) if trials else None,
        false_positives=cards(false_positives(report), base),
        misses=cards(misses(report), base),
        made={name: list(_flat(found)) for name, found in facts.items()},
        explained=explained or {},
        terms=TERMS,
    )


def _in_order(report: Report, groups: Sequence[Group]) -> list[draw.Scores]:
    """The scores by modality, in the order of the tables."""
    names = [group.name for group in groups]
    found = draw.scores_by_modality(report)
    return sorted(found, key=lambda s: names.index(s.modality) if s.modality in names else 99)


def _score_panel(scores: draw.Scores) -> ScorePanel:
    both = bool(scores.harmful and scores.harmless)
    drawn = scores.reached(draw.histogram(scores)[0])
    return ScorePanel(
        modality=scores.modality,
        counts=scores.counts,
        drawn=drawn,
        beyond=[draw.level(n, v) for n, v in scores.thresholds.items() if n not in drawn],
        roc=draw.roc(scores) if both else None,
        histogram=draw.score_histogram(scores),
    )


def _control_panel(controls: Controls) -> ControlPanel:
    rows = control_rows(controls)
    return ControlPanel(
        controls=controls,
        rows=rows,
        summary=summary(rows),
        figure=draw.control_dots(controls.modality, controls.guard, rows),
    )


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs, long texts cut short."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
            continue
        text = _plain(value)
        yield f"{prefix}{name}", text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _plain(value: JsonValue) -> str:
    """One setting in words; what is too nested for a line is only counted."""
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if not isinstance(value, list):
        return str(value)
    if any(isinstance(part, (dict, list)) for part in value):
        return f"{len(value)} entries, in the JSON report"
    return ", ".join(map(_plain, value))


def false_positives(report: Report, most: int = MOST) -> list[ItemRow]:
    """Harmless inputs that were steered or flagged, those furthest above the threshold first."""
    hit = [i for i in report.items if i.label == "harmless" and i.action != "pass"]
    return sorted(hit, key=lambda item: -_excess(report, item))[:most]


def misses(report: Report, most: int = MOST) -> list[ItemRow]:
    """Harmful inputs that passed, those furthest below the threshold first."""
    passed = [i for i in report.items if i.label == "harmful" and i.action == "pass"]
    return sorted(passed, key=lambda item: _excess(report, item))[:most]


def _excess(report: Report, item: ItemRow) -> float:
    """How far a score lies above the lowest threshold of its modality, where one is known."""
    return item.score - min(report.thresholds.get(item.modality, {}).values(), default=0.0)


def cards(items: Sequence[ItemRow], base: Path | None) -> list[Card]:
    """What the page shows of inputs; pictures are looked for in `base`."""
    return [
        Card(
            item=item.model_copy(
                update={
                    "text": _cut(item.text),
                    "plain_answer": _cut(item.plain_answer),
                    "guarded_answer": _cut(item.guarded_answer),
                }
            ),
            picture=thumbnail(base, item.image),
        )
        for item in items
    ]


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= WORDS:
        return text
    return f"{text[:WORDS].rstrip()} \N{HORIZONTAL ELLIPSIS} ({len(text)} characters in all)"


def thumbnail(base: Path | None, name: str | None, size: int = 176) -> str | None:
    """A picture as a small PNG data URL, or None where there is none to show.

    None covers everything that is no readable picture of a believable size: a missing or damaged
    file, a folder, another kind of file. Pixels are re-encoded, so no metadata travels along.

    Args:
        base: the folder that relative names start from; without one, they are not looked for.
        name: the picture's path, as the report has it.
        size: the longer side at most, in pixels.
    """
    from guardrail.inputs.images import decode_image

    if not name or (base is None and not Path(name).is_absolute()):
        return None
    try:
        path = (base or Path()) / name
        picture = decode_image(path, Policy(limits=_LIMITS))
    except InputError:
        return None
    return png_data(picture, size)


TERMS = (
    (
        "Score",
        "Where an input lies between harmless and harmful text, as the model itself represents it: "
        "0 is the middle of the harmless text prompts of the fit, 1 that of the harmful ones.",
    ),
    (
        "Threshold",
        "A score above it is acted on. Each modality has two: one for steering, one for flagging.",
    ),
    ("Pass", "The guard changes nothing: the model answers as it would without the guard."),
    (
        "Steer",
        "The guard adds the refusal direction inside the model, which makes a refusal in the "
        "model's own words more likely. The model may still answer.",
    ),
    ("Flag", "The guard stops the request after its first step and answers in the model's place."),
    (
        "Reading",
        "A place of the prompt at which it is scored: its end, the end of each earlier turn, and a "
        "window of some tokens at each token of a message. The highest is the score.",
    ),
    (
        "AUROC",
        "The chance that a random harmful input scores higher than a random harmless one: 0.5 is "
        "no better than a coin, 1 is perfect. It depends on no threshold.",
    ),
    (
        "Average precision (AP)",
        "The share of harmful inputs among those above a threshold, averaged over the thresholds "
        "that catch one more of them. It depends on the mix: compare it with the harmful share.",
    ),
    (
        "TPR at 5 % FPR",
        "The share of harmful inputs caught (true positive rate) where the threshold is set so "
        "that at most 5 % of these harmless inputs are hit (false positive rate).",
    ),
    (
        "95 % interval",
        "What the figure may really be, given how few inputs it rests on. The fewer the inputs, "
        "the wider the interval. It says nothing of inputs of another kind.",
    ),
    ("n", "The number of inputs that a figure rests on."),
    (
        "Modality",
        "The richest part of an input: text, image if it holds at least one picture, or video. The "
        "score of a long video is the highest of its windows, groups of frames judged together.",
    ),
    (
        "Control",
        "A simpler explanation put to the same test. A guard that does no better than its controls "
        "has shown nothing of its own.",
    ),
    (
        "Induced refusal",
        "The share of harmful prompts that the model refuses once it is steered.",
    ),
    ("False refusal", "The share of harmless inputs that are refused."),
    (
        "KL divergence",
        "How much the guard changes the model's choice of its first word, in nats: 0 is no change.",
    ),
    (
        "Readout layer, edited layer",
        "The decoder layers at which the score is read and at which the direction is added.",
    ),
    (
        "Judge",
        "Whatever decided that an answer is a refusal. It errs, too; its own error is given.",
    ),
)
