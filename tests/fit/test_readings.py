"""What a fit asks of the model before it decides."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Rates
from guardrail.fit import readings
from guardrail.fit.collect import Collector
from guardrail.fit.dataset import SPLITS, ContrastSet, Prompt
from guardrail.fit.forms import FORMS, PLAN, samples
from guardrail.fit.prompts import drawn, filmed, plain
from guardrail.fit.select import is_safe, is_unsafe
from guardrail.types import Request
from tests.fit.residuals import form_of

if TYPE_CHECKING:
    from guardrail.model.load import LoadedModel

BY_NAME = {form.name: form for form in FORMS}


def contrast(*kinds: str, n: int = 60) -> ContrastSet:
    return ContrastSet(
        tuple(
            Prompt(text=f"{kind} {split} {i}", split=split, kind=kind, label=label)
            for split in SPLITS
            for label, kind in (("unsafe", "unsafe"), *(("safe", kind) for kind in kinds))
            for i in range(n)
        )
    )


def test_rows_are_narrowed_to_a_split_and_kinds() -> None:
    prompts = contrast("near", "ordinary", n=16)
    some = plain(prompts, None)
    of = [prompts.prompts[s.index] for s in some]
    residuals = torch.arange(len(some) * 2.0).view(-1, 1, 2)
    one = form_of(residuals, [p.in_split for p in of], [p.kind for p in of], some)
    assert one.rows("fit", is_unsafe).shape == (16, 1, 2)
    assert one.rows("fit", is_safe).shape == (32, 1, 2)
    assert one.rows("select").shape == (48, 1, 2)
    assert one.rows("held out").shape == (0, 1, 2)
    asked = one.samples_of("fit", is_unsafe)
    wanted = [2.0 * some.index(s) for s in asked]
    assert one.rows("fit", is_unsafe)[:, 0, 0].tolist() == wanted
    assert one.of("fit", is_unsafe).residuals[:, 0, 0].tolist() == wanted
    assert one.kinds_of("select") == [p.kind for p in of if p.in_split == "select"]


@pytest.mark.parametrize("name", ["system", "turns", "earlier", "tool", "carried"])
def test_a_prompt_is_read_where_its_own_turn_ends(llava_loaded: LoadedModel, name: str) -> None:
    """What is said after the turn is not in that residual: it is that of the chat up to there."""
    prompts, collect = contrast("near", n=16), Collector(llava_loaded)
    some = samples(prompts, BY_NAME[name], {"fit": 1, "select": 0, "calibrate": 0})
    found = readings.read_form(collect, prompts, "worded", some)
    until = [Request(s.request.messages[: s.message + 1], s.request.tools) for s in some]
    ends, alone, whole = (
        residuals[:, :-1]  # the last quarter of the layers is not run
        for residuals in (
            found.residuals,
            collect(until, ""),
            collect([s.request for s in some], ""),
        )
    )
    torch.testing.assert_close(ends, alone, atol=1e-4, rtol=1e-4)
    moved = float((ends - whole).abs().max())
    assert (moved > 0.1) is (name == "earlier")


@pytest.mark.parametrize("kinds", [("near",), ("near", "matched", "ordinary")])
def test_there_are_enough_drawn_prompts_for_the_rates(
    kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few kinds of safe prompts there are, as long as there are enough prompts."""
    monkeypatch.setattr(readings, "DRAWN", 4)
    prompts = contrast(*kinds)
    each = readings._drawn_of_a_kind(prompts, Rates(steer=0.1, flag=1 / 50))
    found = [prompts.prompts[s.index] for s in drawn(prompts, each)]
    counts = Counter(p.kind for p in found)
    assert {p.in_split for p in found} == {"calibrate"}
    assert set(counts) == set(kinds)
    assert 50 <= sum(counts.values()) <= 50 + len(kinds)


def test_no_more_prompts_are_drawn_than_there_are() -> None:
    prompts = contrast("near")
    each = readings._drawn_of_a_kind(prompts, Rates(steer=0.1, flag=0.001))
    assert len({s.index for s in drawn(prompts, each)}) == 60


def test_only_safe_prompts_are_filmed() -> None:
    prompts = contrast("near", "ordinary")
    some = filmed(prompts, 10)
    assert {s.request.offset_kind for s in some} == {"video"}
    assert {prompts.prompts[s.index].kind for s in some} == {"near", "ordinary"}
    assert {prompts.prompts[s.index].in_split for s in some} == {"calibrate"}
    assert len({s.index for s in some}) == 10


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One prompt of a kind in each form, so that everything is read within seconds."""
    one = {"fit": 1, "select": 1, "calibrate": 1}
    monkeypatch.setattr(readings, "PLAN", dict.fromkeys(PLAN, one))
    monkeypatch.setattr(readings, "DRAWN", 2)


@pytest.mark.usefixtures("few")
def test_everything_is_read_in_its_group(llava_loaded: LoadedModel) -> None:
    prompts, collect = contrast("near", n=16), Collector(llava_loaded)
    found = readings.read_all(collect, prompts, Rates(steer=0.5, flag=0.5), 4, video=True, videos=3)
    assert set(found.forms) == set(readings.STAGES)
    worded = {s.form for s in found.forms["worded"].samples}
    assert worded == {form.name for form in FORMS} - {"bare", "pictured"}
    assert {s.request.offset_kind for s in found.forms["worded"].samples} == {"text"}
    assert set(found.forms["drawn"].splits) == set(found.forms["filmed"].splits) == {"calibrate"}
    assert not any(map(is_unsafe, found.forms["drawn"].kinds + found.forms["filmed"].kinds))
    assert (found.videos, found.per_kind) == (3, 4)
    assert set(found.beside) >= {"video"}
    assert found.token_layers == collect.token_layers
    bare = found.forms["plain"]
    mean = bare.rows("fit", is_unsafe).double().mean(0).float()
    torch.testing.assert_close(found.directions.mu_unsafe[:-1], mean[:-1])


@pytest.mark.usefixtures("few")
def test_a_model_that_reads_text_alone_is_shown_nothing(llama_loaded: LoadedModel) -> None:
    found = readings.read_all(
        Collector(llama_loaded), contrast("near", n=16), Rates(steer=0.5, flag=0.5), 4
    )
    assert (set(found.forms), found.beside) == ({"plain", "worded"}, {})
