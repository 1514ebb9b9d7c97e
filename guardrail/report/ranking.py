"""The inputs a reviewer looks at first: those the guard got most wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.thumbnails import thumbnail

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MOST, WORDS = 10, 700


def false_positives(report: Mapping[str, Any], most: int = MOST) -> list[Mapping[str, Any]]:
    """Harmless inputs that were steered or flagged, those furthest above the threshold first."""
    hit = [i for i in report["items"] if i["label"] == "harmless" and i["action"] != "pass"]
    return sorted(hit, key=lambda item: -_excess(report, item))[:most]


def misses(report: Mapping[str, Any], most: int = MOST) -> list[Mapping[str, Any]]:
    """Harmful inputs that passed, those furthest below the threshold first."""
    passed = [i for i in report["items"] if i["label"] == "harmful" and i["action"] == "pass"]
    return sorted(passed, key=lambda item: _excess(report, item))[:most]


def shown(items: Sequence[Mapping[str, Any]], base: Path | None) -> list[dict[str, Any]]:
    """The items as a page shows them: long texts cut short, pictures as data URLs."""
    cut = ("text", "plain_answer", "guarded_answer")
    return [
        {**item, **{key: _cut(item[key]) for key in cut}, "picture": thumbnail(base, item["image"])}
        for item in items
    ]


def _excess(report: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    """How far a score lies above the lowest threshold of its modality, where one is known."""
    levels = report["thresholds"].get(item["modality"], {}).values()
    known = [level for level in levels if level is not None]
    return float(item["score"] - min(known, default=0.0))


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= WORDS:
        return text
    return f"{text[:WORDS].rstrip()} \N{HORIZONTAL ELLIPSIS} ({len(text)} characters in all)"
