"""What a page shows is a field of a model: one that is renamed is an error before it is a page."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass
from inspect import isclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jinja2 import nodes
from pydantic import BaseModel

import guardrail.report
from guardrail import stats
from guardrail.drift import schema as drift_schema
from guardrail.evaluation import schema as evaluation_schema
from guardrail.report import controls, evaluation, page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOM = Path(guardrail.report.__file__).parent
_LOOSE = {"Any", "object"}
_FACTS = {"artefact_id", "id", "steering", "mode", "estimator"}  # of free settings and readouts
_LOOP = {"first", "index0", "items"}


def parameters(source: str) -> Iterator[tuple[str, str]]:
    """Function and type of every parameter that takes a mapping of anything."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        given = node.args
        for one in (*given.posonlyargs, *given.args, *given.kwonlyargs):
            for part in ast.walk(one.annotation) if one.annotation is not None else ():
                match part:
                    case ast.Subscript(
                        value=ast.Name("dict" | "Mapping"),
                        slice=ast.Tuple(elts=[_, ast.Name(value)]),
                    ) if value in _LOOSE:
                        yield node.name, ast.unparse(part)


def test_no_function_of_the_reports_takes_a_mapping_of_anything():
    files = sorted(ROOM.glob("*.py"))
    assert len(files) > 5
    found = {file.name: list(parameters(file.read_text())) for file in files}
    assert {name: loose for name, loose in found.items() if loose} == {}


def test_a_mapping_of_anything_is_found():
    source = "def f(a: int, *, b: Sequence[Mapping[str, Any]], c: dict[str, object] | None): ..."
    assert [kind for _, kind in parameters(source)] == ["Mapping[str, Any]", "dict[str, object]"]


def test_every_control_that_is_explained_is_a_field_of_the_report():
    assert set(controls.MEANINGS) <= set(evaluation_schema.Controls.model_fields)


def names_of(*modules: ModuleType) -> set[str]:
    """Fields and properties of all models and views that are defined in these modules."""
    found = set()
    for module in modules:
        for kind in vars(module).values():
            if not isclass(kind) or kind.__module__ != module.__name__:
                continue
            if issubclass(kind, BaseModel):
                found |= set(kind.model_fields)
            elif is_dataclass(kind):
                found |= {field.name for field in fields(kind)}
            found |= {name for name, value in vars(kind).items() if isinstance(value, property)}
    return found


@pytest.mark.parametrize(
    ("template", "modules"),
    [
        ("evaluation.html.j2", (evaluation_schema, evaluation, controls)),
        ("drift.html.j2", (drift_schema,)),
    ],
)
def test_a_template_reads_nothing_that_no_model_has(template, modules):
    environment = page._environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, template)
    read = set()
    for node in environment.parse(source).find_all(nodes.Getattr):
        if isinstance(node.node, nodes.Name) and node.node.name in ("ui", "groups"):
            continue  # macros, and the groups by what they are of
        read.add(node.attr)
    assert len(read) > 30
    labels = {"harmful", "harmless"}
    assert read - names_of(stats, *modules) - _FACTS - _LOOP - labels == set()
