"""What the layout of the product is like, in figures, with the bounds it is held to.

    python -m tests.house

prints every figure beside its bound and leaves with 1 where one is broken. The walks run the
product: they count the files whose functions a request, a fit and a chat over HTTP pass.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "guardrail",
    "guardrail_agents",
    "guardrail_langchain",
    "guardrail_llamaindex",
    "guardrail_pydantic_ai",
)
SMALL = 80  # lines; a module below it belongs into its importer where it has only one
DOORS = ("__init__.py", "__main__.py")  # as small as they like


@dataclass(frozen=True)
class Figure:
    """One figure of the layout; `broken` if it lies beyond its bound."""

    name: str
    value: float
    least: float = 0
    most: float = float("inf")
    details: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        return not self.least <= self.value <= self.most

    def __str__(self) -> str:
        bounds = [f">= {self.least:g}"] * (self.least > 0)
        bounds += [f"<= {self.most:g}"] * (self.most < float("inf"))
        mark = "BROKEN " if self.broken else ""
        lines = [f"{self.name:44} {self.value:>7g}   {mark}{', '.join(bounds)}"]
        return "\n".join([*lines, *(f"    {detail}" for detail in self.details)])


def modules() -> dict[str, Path]:
    """The product's modules by their dotted names."""
    roots = (ROOT / "guardrail", *sorted((ROOT / "integrations").glob("guardrail_*")))
    return {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for root in roots
        for path in sorted(root.rglob("*.py"))
    }


def figures() -> list[Figure]:
    """Everything that is counted without running the product."""
    known = modules()
    lines = {name: len(path.read_text().splitlines()) for name, path in known.items()}
    sizes = [
        n for name, n in lines.items() if known[name].name not in ("__init__.py", "__main__.py")
    ]
    largest = max(lines, key=lambda name: lines[name])
    rooms = {path.parent for path in known.values()}
    circles = found_circles()
    lonely = found_lonely(known, lines)
    return [
        Figure("modules", len(known), most=296),
        Figure("rooms", len(rooms), most=33),
        Figure("lines of the product", sum(lines.values())),
        Figure("median lines of a module", statistics.median(sizes), least=190),
        Figure("lines of the largest module", lines[largest], most=500, details=(largest,)),
        Figure(
            f"modules under {SMALL} lines with one importer", len(lonely), most=5, details=lonely
        ),
        Figure("circles of imports", len(circles), most=0, details=circles),
    ]


def walked() -> list[Figure]:
    """What the product's readers have to open, counted by running it on a tiny model."""
    from tests import walks

    generate, fit, chat = walks.generate_walk(), walks.fit_walk(), walks.chat_walk()
    return [
        Figure("files from Guard.generate to the hook", len(generate), most=31),
        Figure("files from the command line to a fit", len(fit), most=46),
        Figure("files from a chat over HTTP to the guard", len(chat), most=16),
    ]


def found_lonely(known: dict[str, Path], lines: dict[str, int]) -> tuple[str, ...]:
    """Small modules that one other module imports, type checkers' imports included."""
    graph = grimp.build_graph(*PACKAGES)
    return tuple(
        f"{name} ({lines[name]}) for {next(iter(importers))}"
        for name, path in known.items()
        if path.name not in DOORS and lines[name] < SMALL
        if len(importers := graph.find_modules_that_directly_import(name)) == 1
    )


def found_circles() -> tuple[str, ...]:
    """Groups of modules that import each other when the product runs."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True)
    imports = networkx.DiGraph()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            imports.add_edge(module, imported)
    groups = networkx.strongly_connected_components(imports)
    return tuple(sorted(" <-> ".join(sorted(group)) for group in groups if len(group) > 1))


def main() -> int:
    """Print every figure; 1 where a bound is broken."""
    found = [*figures(), *walked()]
    for figure in found:
        print(figure)  # noqa: T201
    return int(any(figure.broken for figure in found))


if __name__ == "__main__":
    sys.exit(main())
