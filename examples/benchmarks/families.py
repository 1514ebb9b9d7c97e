"""Run the conformance checks on a tiny model of every family and write its table.

python examples/benchmarks/families.py [--readme FILE] [--only FAMILY ...]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from tables import markdown, put

from guardrail.conformance import Check, Outcome, Report
from guardrail.testing import tiny_model

sys.path.insert(0, str(next(p for p in Path(__file__).parents if (p / "tests").is_dir())))
from tests.conformance.every_check import EVERY_CHECK, check_everything
from tests.families.catalogue import FAMILIES

HEADS = {
    "layers": "layers",
    "score": "score",
    "unsteered": "pass",
    "steering": "steer",
    "batch": "batch",
    "turns": "turns",
    "flag": "flag",
    "prefill": "one prefill",
    "early_edit": "early edit",
    "check": "check",
    "static": "static cache",
    "compiled": "compiled",
    "beams": "beams",
    "sequences": "several answers",
    "assisted": "prompt lookup",
    "chunked": "chunks",
    "stream": "stream",
    "video": "video",
    "concurrency": "threads",
}


class Notes:
    """Reasons in the order in which they are first met, each with a number."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def cell(self, check: Check, architecture: str) -> str:
        """What stands in the table for a check; the number is that of its reason."""
        text = str(check.outcome)
        if check.outcome is Outcome.YES and check.figures.get("shown") == "frames":
            text = "frames"
        if check.reason is None:
            return text
        reason = check.reason.replace(architecture, "the model's class").replace("|", "/")
        return f"{text} [{self.reasons.setdefault(reason, len(self.reasons) + 1)}]"


def table(reports: Mapping[str, Report]) -> Iterator[str]:
    """The table, the versions it was made with, and the reasons behind its numbers."""
    notes = Notes()
    rows = [
        [
            name,
            f"`{report.architecture}`",
            *(notes.cell(c, report.architecture) for c in report.checks),
        ]
        for name, report in reports.items()
    ]
    yield from markdown(["family", "class", *(HEADS[check.name] for check in EVERY_CHECK)], rows)
    packages = next(iter(reports.values())).packages
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers"))
    yield ""
    yield f"Written by `make families` with {versions}. What the numbers stand for:"
    yield ""
    for reason, number in notes.reasons.items():
        yield f"{number}. {reason}"


def reports(families: Iterable[str]) -> Iterator[tuple[str, Report]]:
    """Each family's name and report, as soon as it is made."""
    for name in families:
        yield name, check_everything(*tiny_model(name))


def main() -> int:
    """Run the checks; 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", type=Path, help="whose table is replaced")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY")
    options = parser.parse_args()
    if options.readme is not None and options.only:
        parser.error("a table in a README has all families; leave --only out")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made: dict[str, Report] = {}
    for name, report in reports(options.only or FAMILIES):
        made[name] = report
        failed = [f"{check.name}: {check.reason}" for check in report.failed]
        print(f"{name}: {'; '.join(failed) or 'nothing failed'}", file=sys.stderr, flush=True)
    lines = list(table(made))
    print("\n".join(lines))
    if options.readme is not None:
        put(options.readme, "families", lines)
    return 0 if all(report.ok for report in made.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
