"""What `guardrail evaluate` writes: the report as JSON and as a page, with mistakes explained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from guardrail.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from guardrail.evaluation.items import EvalItem
    from guardrail.evaluation.schema import Report
    from guardrail.guard import Guard


def explained_mistakes(
    guard: Guard, items: Sequence[EvalItem], report: Report, most: int
) -> dict[str, Markup]:
    """The `most` worst false positives and misses, position by position, by their ids.

    One that cannot be explained is named on stderr and left out: the report must not be lost.
    """
    from guardrail.evaluation.inputs import INPUT_ERRORS
    from guardrail.explain.page import explanation_html
    from guardrail.explain.run import explain
    from guardrail.report.ranking import false_positives, misses

    found = report.model_dump(mode="json")
    worst = {row["id"] for row in [*false_positives(found, most), *misses(found, most)]}
    parts = {}
    for item in items:
        if item.id in worst:
            try:
                explained = explain(guard, item.request(guard.policy))
                parts[item.id] = explanation_html(explained, heading="h4", brief=True)
            except INPUT_ERRORS as error:
                say(f"warning: input {item.id!r} cannot be explained: {error}", style="yellow")
    return parts


def write_reports(
    report: Report, out: Path | None, html: Path | None, explained: Mapping[str, Markup]
) -> None:
    """Each file in one step; picture paths in the page start from the current folder."""
    from guardrail.artefact.file import write_atomically

    if out is not None:
        write_atomically(out, report.model_dump_json(indent=2).encode() + b"\n")
    if html is not None:
        from guardrail.report import evaluation_page
        from guardrail.report.page import write_page

        found = report.model_dump(mode="json")
        write_page(html, evaluation_page(found, base=Path.cwd(), explained=explained))
    for path in (out, html):
        if path is not None:
            say(f"written: {path}")
