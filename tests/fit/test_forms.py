"""The same request bare, with words around it, and beside a picture."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt, neutral_prompts
from guardrail.fit.forms import Sample, formed, plain, spread
from guardrail.fit.recentre import meaningless_images

LIMITS = {"fit": 8, "select": 4, "calibrate": 20}


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(
        tuple(
            Prompt(text=f"TEXT {split} {label} {i}", label=label, split=split)
            for split in SPLITS
            for i in range(16)
            for label in ("unsafe", "safe")
        )
    )


def words(sample: Sample) -> str:
    (message,) = sample.request.messages
    assert message.role == "user"
    return str(message.parts[-1].text)


def test_plain_requests_are_the_prompts_that_some_decision_needs(contrast: ContrastSet) -> None:
    samples = plain(contrast)
    needed = [
        i
        for i, p in enumerate(contrast.prompts)
        if (p.split, p.label) != ("calibrate", "unsafe")  # thresholds come from safe ones
    ]
    assert sorted(s.index for s in samples) == needed
    assert all(words(s) == contrast.prompts[s.index].text for s in samples)
    assert {s.form for s in samples} == {"plain"}


def test_a_limit_thins_fit_and_select_but_never_what_thresholds_need(
    contrast: ContrastSet,
) -> None:
    every, some = plain(contrast), plain(contrast, 4)

    def count(samples: list[Sample], split: str) -> Counter[str]:
        chosen = [contrast.prompts[s.index] for s in samples]
        return Counter(p.kind for p in chosen if p.split == split)

    assert set(count(some, "fit").values()) == {4}
    assert set(count(some, "select").values()) == {2}
    assert count(some, "calibrate") == count(every, "calibrate")


def test_fewer_of_a_sample_are_all_out_of_it(contrast: ContrastSet) -> None:
    of_the_fit = {s.index for s in plain(contrast, 11)}
    fewer = {s.index for s in plain(contrast, 11, of_these=7)}
    assert fewer < of_the_fit
    assert len(fewer) == len({s.index for s in plain(contrast, 7)})
    assert not {s.index for s in plain(contrast, 7)} <= of_the_fit  # drawn anew they would not be
    assert {s.index for s in plain(contrast, 11, of_these=50)} == of_the_fit


def test_every_kind_of_a_split_gives_its_limit_or_all_it_has(contrast: ContrastSet) -> None:
    samples = formed(contrast, "carried", limits=LIMITS)
    chosen = [contrast.prompts[s.index] for s in samples]
    counts = Counter((p.split, p.kind) for p in chosen)
    for split, wanted in (("fit", 8), ("select", 4), ("calibrate", 16)):
        assert counts[split, "unsafe"] == counts[split, "ordinary"] == wanted
    assert len({s.index for s in samples}) == len(samples)


def test_carried_requests_hold_the_prompt_and_a_neutral_one(contrast: ContrastSet) -> None:
    samples = formed(contrast, "carried", limits=LIMITS)
    cases = Counter()
    for sample in samples:
        prompt, neutral = words(sample).split("\n")
        text = contrast.prompts[sample.index].text
        assert prompt in (text, text.lower())
        cases[prompt == text] += 1
        fitted = contrast.prompts[sample.index].split == "fit"
        assert neutral in neutral_prompts("fit" if fitted else "held out")
        assert not sample.request.images
    assert min(cases.values()) > len(samples) / 5


def test_pictured_requests_have_one_picture_before_the_words(contrast: ContrastSet) -> None:
    pictures = meaningless_images(4)
    samples = formed(contrast, "pictured", pictures, limits=LIMITS)
    assert all(len(s.request.images) == 1 for s in samples)
    assert {s.request.offset_kind for s in samples} == {"image"}
    assert {id(s.request.images[0]) for s in samples} == set(map(id, pictures))
    assert {s.form for s in samples} == {"pictured"}


def test_what_judges_a_fit_has_other_words_around_it(contrast: ContrastSet) -> None:
    assert len(neutral_prompts("fit")) >= 8
    assert len(neutral_prompts("held out")) >= 8
    assert not set(neutral_prompts("fit")) & set(neutral_prompts("held out"))


def test_a_limit_of_nothing_leaves_a_split_out(contrast: ContrastSet) -> None:
    samples = formed(contrast, "carried", limits=LIMITS | {"fit": 0})
    assert {contrast.prompts[s.index].split for s in samples} == {"select", "calibrate"}


def test_forms_repeat(contrast: ContrastSet) -> None:
    first, again = (formed(contrast, "carried", limits=LIMITS) for _ in range(2))
    assert [(s.index, words(s)) for s in first] == [(s.index, words(s)) for s in again]


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 30])
def test_items_are_spread_evenly(limit: int) -> None:
    found = spread(range(10), limit)
    assert len(found) == min(limit, 10)
    assert found == sorted(set(found))
    gaps = {b - a for a, b in pairwise(found)}
    assert len(gaps) <= 2
    assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_every_kind_has_the_same_words_around_it(contrast: ContrastSet) -> None:
    samples = formed(contrast, "carried", limits={"fit": 6, "select": 4, "calibrate": 0})
    around: dict[tuple[str, str], list[str]] = {}
    for sample in samples:
        prompt = contrast.prompts[sample.index]
        around.setdefault((str(prompt.split), prompt.kind), []).append(words(sample).split("\n")[1])
    for split in ("fit", "select"):
        by_kind = [found for (s, _), found in around.items() if s == split]
        assert len(by_kind) > 1
        assert all(found == by_kind[0] for found in by_kind)
