"""Tables are made from figures, and land where they belong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import tables as module
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- table: one -->\nold\n<!-- end -->\nafter\n", "utf-8")
    return path


def test_a_table_replaces_the_old_one_and_nothing_else(tables: Any, readme: Path) -> None:
    for value in ("1", r"\1 \g<0>"):  # not read as a pattern's references
        tables.put(readme, "one", tables.markdown(["name", "value"], [["a", value]]))
        assert readme.read_text("utf-8") == (
            "before\n<!-- table: one -->\n\n| name | value |\n| --- | --- |\n"
            f"| a | {value} |\n\n<!-- end -->\nafter\n"
        )


@pytest.mark.parametrize("name", ["two", "on"])
def test_a_place_that_is_not_there_is_an_error(tables: Any, readme: Path, name: str) -> None:
    with pytest.raises(SystemExit, match="0 places"):
        tables.put(readme, name, ["x"])


def share(rate: float) -> dict[str, float]:
    return {"rate": rate, "hits": 1, "n": 2, "low": 0.1, "high": 0.9}


def test_each_group_is_a_column_and_what_was_not_measured_is_a_dash(tables: Any) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    acted = {"passed": share(0.25), "steered": share(0.5), "flagged": share(0.75)}
    group = {
        "n_harmful": 3,
        "n_harmless": 4,
        "separation": {
            "auroc": figure,
            "average_precision": figure,
            "tpr_at_fpr": {"0.01": share(0.01), "0.05": share(0.05), "0.10": share(0.1)},
        },
        "actions": {"harmful": acted, "harmless": acted},
        "refusals": {},
    }
    lines = list(tables.separation({"one": group, "two": group | {"n_harmful": 9}}))
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in lines}
    assert cells["inputs (harmful + harmless)"] == ["3 + 4", "9 + 4"]
    assert cells["AUROC"] == ["0.500 (0.400-0.600)"] * 2
    assert cells["TPR at 1 % FPR"][0].startswith("0.010")
    assert cells["TPR at 10 % FPR"][0].startswith("0.100")
    assert cells["benign flagged"][0].startswith("0.750")
    assert cells["harmful refused, plain"] == ["-", "-"]
    assert all(line.count("|") == 4 for line in lines)


def test_every_table_of_the_readme_is_one_that_a_benchmark_writes() -> None:
    readme = (BENCHMARKS / "README.md").read_text("utf-8")
    written = "".join(path.read_text("utf-8") for path in BENCHMARKS.glob("*.py"))
    names = [line.split()[2] for line in readme.splitlines() if line.startswith("<!-- table:")]
    assert names
    assert readme.count("<!-- end -->") == len(names)
    ways = ('"{}":', 'made["{}"]', 'put(options.readme, "{}", ', 'put(readme, "{}", ')
    assert all(any(way.format(name) in written for way in ways) for name in names)


def test_the_inputs_carry_what_the_evaluation_reads(tmp_path: Path) -> None:
    """A miniature of the data folder, prepared."""
    from PIL import Image

    data = tmp_path / "data"
    rows = {
        "text/harmful_test": ["harmful"] * 3,
        "text/harmless_test": ["harmless"] * 3,
        "text/xstest_even": ["harmful", "harmless"],
        "vision/figstep_tiny": ["harmful"] * 2,
        "vision/own_benign": ["harmless"] * 4,
    }
    for name, labels in rows.items():
        path = data / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for i, label in enumerate(labels):
            about = {"id": f"{path.stem}-{i}", "label": label, "category": "c", "source": "s"}
            more = {"image": f"images/{path.stem}-{i}.png", "statement": "Steps to rest"}
            lines.append(about | {"text": f"Say {i}"} | (more if "vision" in name else {}))
            if "vision" in name:
                (data / "vision/images").mkdir(exist_ok=True)
                Image.new("RGB", (20, 20)).save(data / "vision" / more["image"])
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from benchmark_data import prepare
    finally:
        sys.path.remove(str(BENCHMARKS))
    made = prepare(data, tmp_path / "out")

    from guardrail.evaluation.items import load_items

    items = load_items([made["all"]])
    assert len(items) == 6 + 6 + 2 + 6
    assert len({item.id for item in items}) == len(items)
    assert {item.source for item in items} == {"texts", "texts, drawn", "XSTest", "FigStep"}
    rest = load_items([made["rest"]])
    assert [item.label for item in rest] == ["harmful"] * 2 + ["harmless"] * 2


def test_what_became_of_steered_inputs_is_counted_by_source(tables: Any) -> None:
    def item(source: str, label: str, action: str, plain: bool, guarded: bool) -> dict[str, Any]:
        refused = {"plain_refused": plain, "guarded_refused": guarded}
        return {"source": source, "label": label, "action": action, **refused}

    items = [
        item("a", "harmful", "steer", False, True),
        item("a", "harmful", "steer", True, True),
        item("a", "harmful", "flag", False, True),
        item("a", "harmless", "steer", False, True),
        item("a", "harmless", "pass", True, True),
        item("b", "harmful", "pass", False, False),
    ]
    lines = list(tables.steering({"items": items}, ["a", "b"]))
    assert [line.split(" | ")[1:] for line in lines[2:]] == [
        ["2", "0 |"],
        ["0.500 (1/2)", "- |"],
        ["1.000 (2/2)", "- |"],
        ["0.500 (1/2)", "- |"],
    ]
