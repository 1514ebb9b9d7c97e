"""The robustness figures: what is asked, that it is scored as by the guard, and what is told."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guardrail.guard import Guard
from guardrail.model.load import wrap_model
from guardrail.policy import Policy, Thresholds
from guardrail.testing import tiny_artefact
from guardrail.types import Modality

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
REQUESTS = [("harmful", "how do I write"), ("harmless", "the cat"), ("harmless", "about a dog")]
TEXT_CONDITIONS = ("bare", "2 earlier turns", "system prompt, 3 sentences", "3 sentences after")


@pytest.fixture(scope="module")
def scripts() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import robustness
        import robustness_conditions
        import robustness_reading
        import tables
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(
        main=robustness,
        conditions={c.name: c for c in robustness_conditions.conditions()},
        module=robustness_conditions,
        reading=robustness_reading,
        tables=tables,
    )


@pytest.fixture(scope="module")
def measured(scripts: Any, llava: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = wrap_model(llava.model, llava.processor)
    artefact = tiny_artefact(llava.model, llava.processor)
    reader = scripts.reading.Reader(loaded, artefact, tmp_path_factory.mktemp("scores"))
    modalities = (Modality.TEXT, Modality.IMAGE)
    own = scripts.main.Points({m: artefact.thresholds(m, Policy()) for m in modalities})
    return scripts.main.Measured(reader, dict.fromkeys(scripts.main.DETECTORS, own), REQUESTS)


def words(chat: list[dict[str, Any]]) -> str:
    parts = [m["content"] for m in chat]
    return "\n".join(
        part if isinstance(part, str) else "\n".join(p.get("text", "") for p in part)
        for part in parts
    )


def test_every_condition_asks_the_request_once_and_is_compared_with_an_earlier_one(
    scripts: Any,
) -> None:
    seen: list[str] = []
    for name, condition in scripts.conditions.items():
        assert condition.base in [*seen, name]
        seen.append(name)
        for number in range(2):
            chat = condition.ask(number, "Where is the tower?")
            pictures = [
                part["image"]
                for message in chat
                if isinstance(message["content"], list)
                for part in message["content"]
                if part["type"] == "image"
            ]
            drawn = scripts.module.drawn(number, "Where is the tower?")
            sized = name.endswith("pixels a side")
            shown = sum(sized or picture == drawn for picture in pictures)
            asked = words(chat).lower().count("where is the tower?")
            assert asked + shown == 1, name
    assert seen


def test_the_request_is_the_picture_that_the_condition_names(scripts: Any) -> None:
    for count, place in ((1, 0), (2, 0), (2, 1), (4, 2)):
        named = "picture" if count == 1 else f"{count} pictures, the request is number {place + 1}"
        (message,) = scripts.conditions[named].ask(5, "Hello")
        pictures = [p["image"] for p in message["content"] if p["type"] == "image"]
        assert len(pictures) == count
        assert [p == scripts.module.drawn(5, "Hello") for p in pictures].index(True) == place


def test_words_around_come_in_two_versions(scripts: Any) -> None:
    for name in ("2 earlier turns", "system prompt, 20 sentences", "10 sentences before"):
        first, second, third = (scripts.conditions[name].ask(i, "Hello") for i in range(3))
        assert first == third
        assert words(first) != words(second)


@pytest.mark.parametrize(
    "name", [*TEXT_CONDITIONS, "picture", "2 pictures, the request is number 2"]
)
def test_requests_are_scored_as_the_guard_scores_them(
    scripts: Any, measured: Any, llava: Any, name: str
) -> None:
    condition = scripts.conditions[name]
    found = measured.under(condition)
    artefact = tiny_artefact(llava.model, llava.processor)
    with Guard((llava.model, llava.processor), artefact) as guard:
        for i, (_, text) in enumerate(REQUESTS):
            verdict = guard.check(condition.ask(i, text))
            assert found[i].score == pytest.approx(verdict.score, abs=1e-4)
            action = measured.points["guard"].action(found[i].score, found[i].kind)
            assert action is verdict.would_be
            assert found[i].reading == verdict.where.reading


def test_what_was_read_once_is_not_read_again(
    scripts: Any, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = scripts.conditions["1 earlier turn"]
    first = measured.under(condition)

    def broken(*_args: Any, **_options: Any) -> None:
        raise AssertionError("the model was asked again")

    monkeypatch.setattr(scripts.reading, "check_rows", broken)
    assert measured.under(condition) == first
    other = replace(measured, requests=[(label, f"{text}!") for label, text in REQUESTS])
    with pytest.raises(AssertionError, match="asked again"):
        other.under(condition)


def scores(scripts: Any, values: list[float], tokens: int) -> Any:
    return [scripts.reading.Read(v, v - 10, "text", "window", tokens) for v in values]


def test_a_row_holds_paired_shifts_rates_and_separation(scripts: Any) -> None:
    requests = [("harmful", ""), ("harmless", "")] * 3
    points = {
        name: scripts.main.Points({Modality.TEXT: Thresholds(steer=steer, flag=flag)})
        for name, steer, flag in (("guard", 0.9, 3.0), ("last position", -5.5, 9.0))
    }
    one = scripts.main.Measured(None, points, requests)
    base = scores(scripts, [1.0, 0.0, 2.0, 0.0, 3.0, 0.0], 10)
    found = scores(scripts, [0.5, 0.25, 2.5, 0.25, 5.0, 1.0], 17)
    row = one.figures("x", found, base)
    assert (row["tokens_added"], row["readings"]) == (7, {"window": 6})
    guard, last = row["guard"], row["last position"]
    assert guard["harmful"]["shift"] == {"median": 0.5, "low": 0.0, "high": 1.25}
    assert guard["harmless"]["shift"]["median"] == 0.25
    assert (guard["harmful"]["flag"]["rate"], guard["harmful"]["steer"]["hits"]) == (1 / 3, 1)
    assert guard["harmless"]["steer"]["n"] == 3
    assert (last["harmful"]["flag"]["hits"], last["harmful"]["steer"]["hits"]) == (0, 1)
    # of nine pairs only (0.5, 1.0) is in the wrong order
    assert guard["auroc"]["value"] == pytest.approx(8 / 9)
    assert guard["auroc"]["low"] < 8 / 9 < guard["auroc"]["high"]
    strings = {"where": "behind", "strings": 2}
    lost = strings | {name: {"n": 3, "lost": 1} for name in points}
    text = "\n".join(scripts.tables.robustness({"conditions": [row], "random_words": [lost]}))
    assert "| x | 3 + 3 | 7 | +0.50 (+0.00 to +1.25) | +0.25 (+0.25 to +0.62) | 0.889" in text
    assert "| 0.33, 0.33 | 0.00, 0.33 | 0.00, 0.33 | 0.00, 0.00 |" in text
    assert "2 strings of random words behind a harmful request: guard 1 of 3" in text


def test_both_versions_get_as_many_requests_of_each_label(scripts: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for label in ("harmful", "harmless"):
        rows = [json.dumps({"id": f"{i}", "text": f"other {i}", "label": label}) for i in range(9)]
        (tmp_path / f"text/{label}_test.jsonl").write_text("\n".join(rows), "utf-8")
    for data in (None, tmp_path):
        chosen = scripts.main.requests_of(8, data)
        for version in range(2):
            labels = [label for label, _ in chosen[version::2]]
            assert labels.count("harmful") == labels.count("harmless") == 4
        assert sum(text.startswith("other") for _, text in chosen) == (8 if data else 0)
        assert len(set(chosen)) == 16


def test_translations_are_compared_with_their_originals(scripts: Any, measured: Any) -> None:
    row = scripts.main.translated(measured)
    assert row["guard"]["harmful"]["n"] == row["guard"]["harmless"]["n"] == 6
    rows = scripts.module.texts()["translated"]
    asked = {(r["language"], r["label"]) for r in rows}
    assert len(asked) == len(rows)
    assert row["guard"]["harmful"]["shift"]["median"] != 0
