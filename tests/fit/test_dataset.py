"""Contrast prompts of one's own, and how prompts are split."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import DatasetError
from guardrail.fit import dataset
from guardrail.fit.dataset import ContrastSet, Prompt, load_contrast, packaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def prompts(n: int = 16, **fields: Any) -> list[Prompt]:
    return [
        Prompt(text=f"{label} {split} {i}", label=label, split=split, **fields)
        for split in dataset.SPLITS
        for label in ("unsafe", "safe")
        for i in range(n)
    ]


def test_text_and_label_are_enough() -> None:
    one, other = Prompt(text="a", label="unsafe"), Prompt(text="b", label="safe")
    assert (one.kind, other.kind) == ("unsafe", "ordinary")
    assert {one.split, other.split} <= set(dataset.SPLITS)


@pytest.mark.parametrize(("name", "label"), [("harmful", "unsafe"), ("harmless", "safe")])
def test_other_common_labels_are_understood(name: str, label: str) -> None:
    assert Prompt.model_validate({"text": "a", "label": name}).label == label


def test_splits_depend_on_the_pair_alone_and_have_their_shares() -> None:
    members = [Prompt(text=f"text {i}", label="safe", pair="p7") for i in range(20)]
    assert len({p.split for p in members}) == 1
    counts = Counter(Prompt(text="same", label="safe", pair=f"p{i}").split for i in range(4000))
    assert counts["fit"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert counts["select"] / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_split_that_is_given_is_kept() -> None:
    given = [Prompt(text="x", label="safe", split=split).split for split in dataset.SPLITS]
    assert given == list(dataset.SPLITS)


@pytest.mark.parametrize("n", [0, 15])
def test_too_few_prompts_are_refused_with_the_split_and_label(n: int) -> None:
    rows = [p for p in prompts() if (p.split, p.label) != ("select", "unsafe")]
    rows += [Prompt(text=f"u{i}", label="unsafe", split="select") for i in range(n)]
    with pytest.raises(DatasetError, match=f"split 'select' has {n} unsafe prompts; at least 16"):
        ContrastSet(tuple(rows))


def test_indices_narrow_to_labels_and_kinds() -> None:
    contrast = ContrastSet(tuple(prompts()))
    assert len(contrast) == 96
    assert len(contrast.indices("fit")) == 32
    unsafe = contrast.indices("fit", labels=("unsafe",))
    assert {contrast.prompts[i].text.split()[0] for i in unsafe} == {"unsafe"}
    assert contrast.indices("fit", kinds=("matched",)) == []
    assert contrast.counts["calibrate/ordinary"] == 16


def test_pairs_join_unsafe_and_matched_prompts_of_a_split() -> None:
    extra = [
        Prompt(text="u", label="unsafe", pair="p", split="select"),
        Prompt(text="near", label="safe", kind="near", pair="p", split="select"),
        Prompt(text="m", label="safe", kind="matched", pair="p", split="select"),
        Prompt(text="lonely", label="unsafe", pair="q", split="select"),
    ]
    contrast = ContrastSet((*prompts(), *extra))
    found = [
        (contrast.prompts[i].text, contrast.prompts[j].text) for i, j in contrast.pairs("select")
    ]
    assert found == [("u", "m")]
    assert contrast.pairs("fit") == []


def test_prompts_without_a_pair_are_never_joined() -> None:
    matched = Prompt(text="m", label="safe", kind="matched", split="select")
    assert ContrastSet((*prompts(), matched)).pairs("select") == []


@pytest.mark.parametrize("changed", ["text", "label", "split", "pair", "order"])
def test_the_digest_changes_with_what_was_used(changed: str) -> None:
    rows = prompts(17)
    other = list(rows)
    if changed == "order":
        other.reverse()
    else:
        values = {"text": "new", "label": "safe", "split": "select", "pair": "p"}
        fields = rows[0].model_dump(exclude={"kind"}) | {changed: values[changed]}
        other[0] = Prompt.model_validate(fields)
    assert ContrastSet(tuple(other)).digest != ContrastSet(tuple(rows)).digest
    assert ContrastSet(tuple(prompts(17))).digest == ContrastSet(tuple(rows)).digest


def test_own_prompts_extend_or_replace_the_packaged_ones(
    contrast_file: Callable[..., Path],
) -> None:
    path = contrast_file()
    alone, both = load_contrast(path, extend=False), load_contrast(path)
    assert len(both) == len(alone) + len(packaged())
    assert both.prompts[-len(alone) :] == alone.prompts
    assert load_contrast().prompts == tuple(packaged())


def test_blank_lines_and_unknown_fields_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('\n{"text": "own", "label": "safe", "note": 1}\n\n', "utf-8")
    assert load_contrast(path).prompts[-1].text == "own"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"text": "a"}', "line 2: label"),
        ('{"text": "", "label": "safe"}', "line 2: text"),
        ('{"text": "a", "label": "bad"}', "line 2: label"),
        ('{"text": "a", "label": "safe", "split": "test"}', "line 2: split"),
        ('["a"]', "line 2"),
        ('{"text": "a", "label": "unsafe", "kind": "jailbreak"}', "contradicts label 'unsafe'"),
        ('{"text": "a", "label": "safe", "kind": "unsafe"}', "contradicts label 'safe'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"text": "a", "label": "safe"}) + f"\n{line}\n", "utf-8")
    with pytest.raises(DatasetError, match=message) as caught:
        load_contrast(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot read"):
        load_contrast(tmp_path / "missing.jsonl")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot read"):
        load_contrast(binary)
