"""Rules that stand in one place of the product, and are called from everywhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def users(*calls: str) -> set[str]:
    """The modules that call `module.function`, or a method of any object as `.method`."""
    found = set()
    for folder in ("guardrail", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            names = {
                ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)
            }
            names |= {f".{name.rpartition('.')[2]}" for name in names}
            if names & set(calls):
                found.add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize(
    ("calls", "place"),
    [
        (("os.replace", "os.rename", "os.link", ".rename", "shutil.move"), "artefact/file.py"),
        (("inspect.isawaitable", "isawaitable"), "front/consequences.py"),
    ],
)
def test_what_is_to_stand_once_is_called_in_one_module(calls, place):
    assert users(*calls) == {f"guardrail/{place}"}
