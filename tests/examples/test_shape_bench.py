"""The benchmark on shapes measures what it says, and its table says what was measured."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import pairing
        import shape_bench
        import shapes

        yield shape_bench, shapes, pairing
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def bench(modules: Any) -> Iterator[Any]:
    shape_bench, shapes, _ = modules
    made = shape_bench.ShapeBench(shapes.SHAPES["tiny"], device="cpu", dtype=torch.float32)
    yield made
    made.close()


@pytest.mark.parametrize(("name", "low", "high"), [("7b", 6.9e9, 7.2e9), ("300m", 2.7e8, 3.3e8)])
def test_shapes_have_the_size_they_are_named_after(
    modules: Any, name: str, low: float, high: float
) -> None:
    _, shapes, _ = modules
    shape = shapes.SHAPES[name]
    with torch.device("meta"):  # no memory: only counted
        config = shapes._config(shape, shapes.tiny_model("llava")[1])
        model: Any = shapes.AutoModelForImageTextToText.from_config(config)
    assert low < sum(p.numel() for p in model.parameters()) < high
    assert shape.picture_tokens == {"7b": 576, "300m": 196}[name]


def test_every_picture_takes_its_tokens_and_the_text_about_as_many_as_words(
    modules: Any, bench: Any
) -> None:
    _, shapes, _ = modules
    lengths = [bench.encoded(1, pictures).prompt_len for pictures in (0, 1, 4)]
    each = bench.shape.picture_tokens
    assert lengths[1] - lengths[0] in (each, each + 1)  # a line break goes with a picture
    assert lengths[2] - lengths[0] == 4 * (lengths[1] - lengths[0])
    assert 45 <= len(shapes.PROMPT.split()) <= 60
    assert lengths[0] < 2 * len(shapes.PROMPT.split())


def test_a_model_is_the_same_for_the_same_seed_and_rows_differ(modules: Any, bench: Any) -> None:
    _, shapes, _ = modules
    again = shapes.build(bench.shape, device="cpu", dtype=torch.float32)
    mine = bench.loaded.model.state_dict()
    assert all(torch.equal(v, mine[k]) for k, v in again.model.state_dict().items())
    scores = bench.scores(bench.encoded(3, 1))
    assert len(set(scores)) == 3


def test_both_sides_write_as_many_tokens_as_asked_for_and_the_same(bench: Any) -> None:
    encoded = bench.encoded(2, 1)
    plain = bench.plain(encoded, 7)
    assert [len(row) for row in plain] == [7, 7]
    assert bench.guarded(encoded, 7) == plain
    assert bench.compiled(encoded, 7) == plain
    first, second = bench.whole(1, 5)
    assert first().text == second()[0]


def test_answers_that_differ_end_the_run(
    modules: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape_bench, _, _ = modules
    monkeypatch.setattr(bench, "guarded", lambda *_: [(0,)])
    with pytest.raises(SystemExit, match="answers differ"):
        list(shape_bench.measure(bench, batches=(1,), pictures=(1,), repeats=1))


def test_a_batch_that_does_not_fit_is_a_row_and_not_the_end(
    modules: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape_bench, _, _ = modules
    held: list[Any] = []
    freed: list[bool] = []

    def full(*_: Any) -> None:
        big = type("Big", (), {})()
        held.append(weakref.ref(big))
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(bench, "plain", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(held[-1]() is None))
    rows = list(shape_bench.measure(bench, batches=(1, 2), pictures=(1,), repeats=1))
    assert freed == [True, True]  # an error that is being handled keeps everything alive
    assert [row["what"] for row in rows] == ["does not fit into memory"] * 2
    run = {"shape": "x", "parameters": 1e9, "dtype": "float32", "device": "y", "rows": rows}
    assert sum("does not fit" in line for line in shape_bench.table([run])) == 2


def test_ratios_are_paired_and_their_order_changes(modules: Any) -> None:
    _, _, pairing = modules
    order: list[str] = []
    jobs = (lambda: order.append("a"), lambda: order.append("b"))
    found = pairing.paired(*jobs, repeats=3, device="cpu")
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert set(found) == {"first_s", "second_s", "wall", "processor", "repeats"}
    assert pairing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"ratio": 3.0, "low": 2.0, "high": 4.0}
    assert pairing.spread([2.0]) == {"ratio": 2.0, "low": 2.0, "high": 2.0}


def test_the_script_writes_figures_and_the_readmes_table(
    modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape_bench, _, _ = modules
    readme = tmp_path / "README.md"
    readme.write_text("x\n<!-- table: shapes -->\nold\n<!-- end -->\n", "utf-8")
    monkeypatch.setattr(shape_bench, "TOKENS", 2)
    shape_bench.main(
        out=tmp_path,
        shape="tiny",
        dtype=["float32"],
        batch=[2],
        repeats=2,
        readme=readme,
        device="cpu",
        pictures=None,
    )
    (run,) = json.loads((tmp_path / "shape_tiny.json").read_text("utf-8"))
    assert (run["dtype"], len(run["rows"])) == ("float32", 3)
    text = readme.read_text("utf-8")
    assert "old" not in text
    shown = f"{run['rows'][1]['wall']['ratio']:.3f}"
    assert "guarded / plain, 2 tokens | " in text
    assert shown in text
