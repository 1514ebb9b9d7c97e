"""The packaged contrast set keeps what its description promises."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from guardrail.fit.dataset import (
    SPLITS,
    Frame,
    Prompt,
    frames,
    load_contrast,
    neutral_prompts,
    packaged,
    surroundings,
)

ROBUSTNESS = Path(__file__).parents[2] / "examples/benchmarks/robustness_texts.json"

FORMS = {"question", "imperative", "statement", "chat"}
LENGTHS = range(15, 218)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return packaged()


@pytest.fixture(scope="module")
def pairs(prompts: list[Prompt]) -> dict[str, dict[str, Prompt]]:
    """Every prompt but the ordinary ones, by pair and kind."""
    found: dict[str, dict[str, Prompt]] = defaultdict(dict)
    for prompt in prompts:
        if prompt.kind != "ordinary":
            assert prompt.kind not in found[prompt.pair], prompt.id
            found[prompt.pair][prompt.kind] = prompt
    return found


def test_there_are_enough_of_every_kind(prompts: list[Prompt]) -> None:
    counts = Counter(p.kind for p in prompts)
    assert counts == {"unsafe": 384, "matched": 384, "near": 384, "ordinary": 420}
    assert min(counts.values()) >= 240


def test_labels_follow_from_kinds(prompts: list[Prompt]) -> None:
    assert {p.kind for p in prompts if p.label == "unsafe"} == {"unsafe"}


def test_every_pair_is_complete_and_of_one_split_and_category(
    pairs: dict[str, dict[str, Prompt]],
) -> None:
    assert len(pairs) == 384
    for pair, members in pairs.items():
        assert set(members) == {"unsafe", "matched", "near"}, pair
        assert len({p.split for p in members.values()}) == 1, pair
        assert len({p.category for p in members.values()}) == 1, pair
        assert members["unsafe"].form == members["matched"].form, pair


def test_matched_prompts_are_about_as_long_as_their_unsafe_ones(
    pairs: dict[str, dict[str, Prompt]],
) -> None:
    ratios = [len(m["matched"].text) / len(m["unsafe"].text) for m in pairs.values()]
    assert min(ratios) >= 0.8
    assert max(ratios) <= 1.25
    assert abs(sum(ratios) / len(ratios) - 1) < 0.02  # length tells nothing on average


def test_matched_prompts_share_a_key_word(pairs: dict[str, dict[str, Prompt]]) -> None:
    def stems(text: str) -> set[str]:
        letters = "".join(c if c.isalpha() else " " for c in text.lower())
        return {word[:4] for word in letters.split() if len(word) > 2}

    for pair, members in pairs.items():
        assert stems(members["unsafe"].text) & stems(members["matched"].text), pair


def test_no_text_is_there_twice(prompts: list[Prompt]) -> None:
    texts = Counter(" ".join(p.text.lower().split()) for p in prompts)
    assert [text for text, n in texts.items() if n > 1] == []
    assert len({p.id for p in prompts}) == len(prompts)


def test_texts_are_ascii_trimmed_and_short(prompts: list[Prompt]) -> None:
    for prompt in prompts:
        assert prompt.text.isascii(), prompt.id
        assert prompt.text == prompt.text.strip(), prompt.id
        assert "\n" not in prompt.text, prompt.id
        assert len(prompt.text) in LENGTHS, prompt.id


def test_splits_hold_a_half_and_two_quarters(prompts: list[Prompt]) -> None:
    contrast = load_contrast()
    for kind in ("unsafe", "matched", "near", "ordinary"):
        sizes = [len(contrast.indices(split, kinds=(kind,))) for split in SPLITS]
        shares = [size / sum(sizes) for size in sizes]
        assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.05), kind
    places = [set(contrast.indices(split)) for split in SPLITS]
    assert sum(map(len, places)) == len(set.union(*places)) == len(prompts)


def test_no_pair_is_divided_between_splits(prompts: list[Prompt]) -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        homes[prompt.pair].add(str(prompt.split))
    assert all(len(home) == 1 for home in homes.values())


@pytest.mark.parametrize("kind", ["unsafe", "matched", "near", "ordinary"])
def test_every_split_has_every_form_and_category(prompts: list[Prompt], kind: str) -> None:
    chosen = [p for p in prompts if p.kind == kind]
    categories = {p.category for p in chosen}
    assert len(categories) >= 12
    for split in SPLITS:
        here = [p for p in chosen if p.split == split]
        assert {p.form for p in here} == FORMS, split
        assert {p.category for p in here} == categories, split


def test_pairs_are_found_in_every_split() -> None:
    contrast = load_contrast()
    assert [len(contrast.pairs(split)) for split in SPLITS] == [192, 96, 96]


def test_the_default_rates_can_be_calibrated_on_it() -> None:
    assert len(load_contrast().indices("calibrate", labels=("safe",))) >= 99


def test_lines_hold_nothing_but_known_fields() -> None:
    lines = files("guardrail.data").joinpath("contrast.jsonl").read_text("utf-8").splitlines()
    assert {key for line in lines for key in json.loads(line)} == set(Prompt.model_fields)


def test_neutral_prompts_ask_for_nothing_twice() -> None:
    both = [p.lower() for split in ("fit", "held out") for p in neutral_prompts(split)]
    assert len(both) == len(set(both)) >= 16
    assert all(text.isascii() and text == text.strip() for text in both)
    assert not set(both) & {p.text.lower() for p in packaged()}


def sentences(split: Any) -> list[str]:
    return [text for texts in surroundings(split).values() for text in texts]


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def test_there_are_enough_surroundings_in_registers_of_their_own() -> None:
    fitted, held_out = surroundings("fit"), surroundings("held out")
    assert not set(fitted) & set(held_out)
    assert len(fitted) >= 6
    assert len(held_out) == 3
    assert len(sentences("fit")) >= 300
    assert len(sentences("held out")) >= 60
    assert min(map(len, [*fitted.values(), *held_out.values()])) >= 20


def test_surroundings_are_plain_sentences() -> None:
    for text in sentences("fit") + sentences("held out"):
        assert 6 <= len(text.split()) <= 30, text
        assert text.isascii(), text
        assert text == text.strip(), text
        assert "\n" not in text, text


def test_no_sentence_is_there_twice_or_nearly_so() -> None:
    known = {text: set(words(text)) for text in sentences("fit") + sentences("held out")}
    assert len(known) == len(sentences("fit")) + len(sentences("held out"))
    close = [
        (one, other)
        for one, other in combinations(known, 2)
        if len(known[one] & known[other]) > 0.4 * len(known[one] | known[other])
    ]
    assert close == []


def test_surroundings_share_nothing_with_other_texts() -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inside = value.values() if isinstance(value, dict) else value
        return [text for each in inside for text in strings(each)]

    others = [p.text for p in packaged()]
    others += [text for split in ("fit", "held out") for text in neutral_prompts(split)]
    others += strings(json.loads(ROBUSTNESS.read_text("utf-8")))
    plain = "\n".join(" ".join(words(text)) for text in others)
    both = sentences("fit") + sentences("held out")
    assert [text for text in both if " ".join(words(text)) in plain] == []


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("surroundings", {"register", "split", "text"}),
        ("frames", {"use", "split", "text", "answer", "call"}),
    ],
)
def test_rows_hold_nothing_but_known_fields_and_are_counted_in_the_readme(
    name: str, fields: set[str]
) -> None:
    folder = files("guardrail.data")
    rows = [*map(json.loads, folder.joinpath(f"{name}.jsonl").read_text("utf-8").splitlines())]
    assert {key for row in rows for key in row} == fields
    assert {row["split"] for row in rows} == {"fit", "held out"}
    assert f"`{name}.jsonl` holds {len(rows)} " in folder.joinpath("README.md").read_text("utf-8")


HOLDERS = ("quoted", "json", "code", "fiction", "restated")


@pytest.mark.parametrize("split", ["fit", "held out"])
def test_frames_have_one_place_for_a_prompt_where_they_hold_one(split: Any) -> None:
    found = frames(split)
    assert set(found) == {
        *HOLDERS,
        *("refusal", "start", "follow-up", "exchange", "tool", "skeleton"),
    }
    for use, rows in found.items():
        assert len(rows) >= 6, use
        for row in rows:
            assert row.text.count("{text}") == (use in HOLDERS), row
            assert row.answer.count("{text}") == (use == "tool"), row
            assert bool(row.answer) == (use in ("exchange", "tool")), row
            assert bool(row.call) == (use == "tool"), row


def test_no_frame_is_in_both_splits_or_twice() -> None:
    def said(row: Frame) -> list[str]:
        return [" ".join(words(text)) for text in (row.text, row.answer) if text]

    both = [
        text
        for split in ("fit", "held out")
        for rows in frames(split).values()
        for row in rows
        for text in said(row)
    ]
    assert [text for text, n in Counter(both).items() if n > 1] == []
