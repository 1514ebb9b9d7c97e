"""The joint score: a fit's own is what a guard gives the same requests, and how it is laid out.

Whatever is chosen offline, thresholds above all, is chosen on these scores.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Rates
from guardrail.decide.windows import WindowReadout
from guardrail.drift.fitted import Fitted
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import load_contrast
from guardrail.fit.forms import readable, samples
from guardrail.fit.joint import (
    FIRSTS,
    SHARP,
    TAIL,
    WIDTHS,
    JointReadout,
    fit_windows,
    highest_windows,
    token_rows,
)
from guardrail.fit.prompts import Sample, clip_request, drawn, meaningless_clips
from guardrail.fit.readings import FormResiduals
from guardrail.fit.run import calibrations
from guardrail.fit.select import MEANS, LinearReadout, is_safe, is_unsafe, readout, separation
from guardrail.guard import Guard
from guardrail.model.load import wrap_model
from guardrail.stats import conformal_threshold
from guardrail.testing import tiny_artefact
from guardrail.types import ImagePart, Message, Modality, Request, TextPart
from tests.fit.residuals import read_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact import Artefact
    from guardrail.fit.collect import Read
    from guardrail.model.load import LoadedModel

ONE_OF_A_KIND = {"fit": 1, "select": 1, "calibrate": 0}


def form_of(requests: Sequence[Request], reads: Sequence[Read]) -> FormResiduals:
    last = [Sample(i, "made up", r, len(r.messages) - 1) for i, r in enumerate(requests)]
    return FormResiduals(last, reads, ["select"] * len(last), ["unsafe"] * len(last))


def said(role: str, text: str, *pictures: Any) -> Message:
    return Message(role=role, parts=(*map(ImagePart, pictures), TextPart(text)))


def in_every_form(loaded: LoadedModel) -> list[Request]:
    contrast = load_contrast()
    collect = Collector(loaded)
    forms = readable(collect.encoder)
    found = [s.request for form in forms for s in samples(contrast, form, ONE_OF_A_KIND)[::3]]
    if loaded.is_multimodal:
        found += [sample.request for sample in drawn(contrast, 1)]
        found += [clip_request("what is this?", clip) for clip in meaningless_clips(1)]
    return found


def chats(picture: Callable[..., Any] | None) -> list[Request]:
    """Chats whose earlier turns are of another kind than the last one."""
    ask, answer = "tell me about the red dog", "I can make a picture"
    shown = ([], [], []) if picture is None else ([], [picture()], [picture(1), picture(2)])
    return [
        Request(
            (
                said("user", ask, *first),
                said("assistant", answer),
                said("user", "what is the user?", *then),
                said("assistant", "it is red"),
                said("user", "please help me with that"),
            )
        )
        for first in shown
        for then in shown
    ]


def evenly_matched(artefact: Artefact, reads: Sequence[Read], **changes: Any) -> Artefact:
    """With windows that are highest about as often as the ends of turns are."""
    joint, windows = Fitted.of(artefact).joint, artefact.header.windows
    assert joint.windows is not None
    ends = joint.readout.scores(torch.stack([read.last for read in reads]))
    apart = highest_windows(joint.windows, reads) - ends
    zero = windows.zero + windows.gap * float(apart.median())
    return artefact.revised(windows=windows.model_copy(update={"zero": zero, **changes}))


@pytest.fixture(scope="module")
def asked_of(tiny_of: Any, picture: Any) -> Callable[[str], tuple[LoadedModel, Any, Any]]:
    """A model of a family, requests of every form, and what is read of them, asked once."""

    @functools.cache
    def get(name: str) -> tuple[LoadedModel, Any, Any]:
        made = tiny_of(name)
        loaded = wrap_model(made.model, made.processor)
        requests = in_every_form(loaded) + chats(picture if loaded.is_multimodal else None)
        return loaded, requests, Collector(loaded, batch_size=4).read(requests, "")

    return get


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(
            family,
            changes,
            id=f"{family}-{'alone' if changes else 'joint'}",
            # how a family places pictures is the same to windows that suffice
            marks=pytest.mark.slow if changes and family in ("qwen2_5_vl", "gemma3") else (),
        )
        for family in ("llama", "llava", "qwen2_5_vl", "gemma3")
        for changes in ({}, {"alone": True, "first": 24})
    ],
)
def test_offline_scores_are_those_of_a_guard_with_the_same_artefact(
    asked_of: Any, tiny_of: Any, family: str, changes: dict[str, Any]
) -> None:
    made = tiny_of(family)
    loaded, requests, reads = asked_of(family)
    artefact = evenly_matched(tiny_artefact(made.model, made.processor), reads, **changes)
    joint = Fitted.of(artefact).joint
    offline = joint.scores(form_of(requests, reads)).tolist()
    with Guard(loaded, artefact) as guard:
        verdicts = guard.check_batch(requests)
    assert offline == pytest.approx([v.score for v in verdicts], abs=2e-3)
    assert {v.where.reading for v in verdicts if v.where} == {"last", "turn", "window"}


@pytest.mark.parametrize("windows", [True, False])
def test_an_earlier_turn_counts_as_what_it_was_when_it_was_the_last(
    llava: Any, picture: Any, windows: bool
) -> None:
    """Its kind of pictures, too: those that came later are none of its own."""
    loaded = wrap_model(llava.model, llava.processor)
    joint = Fitted.of(tiny_artefact(llava.model, llava.processor, windows=windows)).joint
    collect = Collector(loaded)
    for chat in chats(picture):
        (read,) = collect.read([chat], "")
        alone = [Request(chat.messages[:n]) for n in (1, 3)]
        turns = collect.read(alone, "")
        assert read.kinds == tuple(request.offset_kind for request in alone)
        torch.testing.assert_close(
            joint.readout.scores(read.headers, read.kinds),
            joint.readout.scores(
                torch.stack([turn.last for turn in turns]), [r.offset_kind for r in alone]
            ),
            atol=1e-4,
            rtol=1e-4,
        )


WIDTH, LAYERS = 8, (1,)


def synthetic(unsafe: bool, draw: torch.Generator, *, turns: int = 0, end: float = 1.0) -> Read:
    """A made-up prompt: `end` says how far its last position tells the class apart.

    Earlier turns, which are harmless, have tokens and ends of their own, so a chat of more turns
    has more that could be highest.
    """
    last, *headers = torch.randn(1 + turns, 2, WIDTH, generator=draw)
    last[:, 0] += end * 3 * unsafe
    parts = []
    for turn in range(1 + turns):
        size = int(torch.randint(5, 30, (), generator=draw))
        tokens = torch.randn(size, 1, WIDTH, generator=draw)
        if unsafe and turn == turns:
            tokens[:4, :, 1] += 3
        parts.append(tokens)
    earlier = torch.stack(headers) if headers else None
    return read_of(last, *parts, layers=LAYERS, headers=earlier)


def group(n: int, seed: int, *, split: str = "", end: float = 1.0, turns: int = 0) -> FormResiduals:
    """`n` prompts, half of them unsafe, in chats of up to so many earlier turns."""
    draw = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, turns + 1, (n,), generator=draw).tolist()
    reads = [synthetic(i % 2 == 0, draw, turns=count, end=end) for i, count in enumerate(counts)]
    some = [Sample(i, "made up", text_request("x")) for i in range(n)]
    splits = [split or ("fit", "fit", "select", "select")[i % 4] for i in range(n)]
    kinds = [("unsafe", "matched", "unsafe", "ordinary")[i % 4] for i in range(n)]
    kinds = ["matched" if k == "ordinary" and i % 8 < 4 else k for i, k in enumerate(kinds)]
    return FormResiduals(some, reads, splits, kinds)


def ends_of(forms: dict[str, FormResiduals]) -> LinearReadout:
    made = [[f.rows("fit", keep) for f in forms.values()] for keep in (is_unsafe, is_safe)]
    found = readout(MEANS, 1, *made)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def laid() -> tuple[dict[str, FormResiduals], LinearReadout, WindowReadout, dict[str, Any]]:
    forms = {"plain": group(240, 0), "worded": group(240, 1, end=0.2)}
    found = ends_of(forms)
    return forms, found, *fit_windows(forms, found, LAYERS)


def test_width_and_first_end_are_those_that_separate_best_over_the_groups(laid: Any) -> None:
    forms, _, windows, figures = laid
    tried = {(row["width"], row["first"]): row["auroc"] for row in figures["compared"]}
    assert set(tried) == {(w, f) for w in WIDTHS for f in FIRSTS}
    assert tried[windows.width, windows.first] == max(tried.values()) == figures["auroc"]
    assert set(figures["auroc_by_form"]) == set(forms)
    for name, form in forms.items():
        held = form.of("select")
        scores = highest_windows(windows, held.reads)
        assert figures["auroc_by_form"][name] == pytest.approx(separation(scores, held.kinds).mean)


def test_windows_and_ends_agree_at_the_tail_of_the_safe_prompts(laid: Any) -> None:
    forms, ends, windows, _ = laid
    held = [form.of("select") for form in forms.values()]
    safe = torch.tensor([is_safe(kind) for form in held for kind in form.kinds])
    own = torch.cat([highest_windows(windows, form.reads) for form in held])
    other = torch.cat([ends.scores(form.residuals) for form in held])
    tails = [float(x[safe].quantile(TAIL)) for x in (own, other)]
    assert tails[0] == pytest.approx(tails[1], abs=1e-5)
    means = [float(x[~safe].mean()) for x in (own, other)]
    assert means[0] == pytest.approx(means[1], abs=1e-5)


def test_windows_that_tell_look_alikes_apart_suffice(laid: Any) -> None:
    forms, ends, windows, figures = laid
    assert windows.alone
    joint = JointReadout(ends, windows)
    worded = forms["worded"].of("select")
    together = separation(joint.scores(worded), worded.kinds).mean
    assert together > separation(ends.scores(worded.residuals), worded.kinds).mean + 0.1
    bare = forms["plain"].of("select")
    alone, kept = (
        separation(scores, bare.kinds).by_kind["matched"]
        for scores in (ends.scores(bare.residuals), joint.scores(bare))
    )
    assert (figures["lookalikes_at_ends"], figures["lookalikes"]) == pytest.approx((alone, kept))
    assert kept >= alone - SHARP


def test_ends_count_where_windows_cost_look_alikes() -> None:
    """Tokens of both classes alike: what windows say is noise."""
    draw = torch.Generator().manual_seed(3)
    forms = {"plain": group(240, 3, end=2.0)}
    reads = [
        read_of(read.last, torch.randn(12, 1, WIDTH, generator=draw), layers=LAYERS)
        for read in forms["plain"].reads
    ]
    forms["plain"] = replace(forms["plain"], reads=reads)
    ends = ends_of(forms)
    windows, figures = fit_windows(forms, ends, LAYERS)
    assert figures["lookalikes"] < figures["lookalikes_at_ends"] - SHARP
    assert not windows.alone
    held = forms["plain"].of("select")
    joint = JointReadout(ends, windows).scores(held)
    assert joint.equal(
        torch.maximum(ends.scores(held.residuals), highest_windows(windows, held.reads))
    )
    assert separation(joint, held.kinds).mean > 0.8


def test_only_tokens_of_the_fit_split_are_trained_on() -> None:
    forms = {"plain": group(80, 4)}
    rows = token_rows(forms, LAYERS)
    of_fit = [read for read, s in zip(forms["plain"].reads, forms["plain"].splits) if s == "fit"]  # noqa: B905
    assert [len(tokens) for tokens in rows.tokens] == [len(read.tokens) for read in of_fit]
    assert sum(rows.unsafe) == len(rows) / 2


def test_a_prompt_too_short_for_a_window_is_judged_at_its_end() -> None:
    draw = torch.Generator().manual_seed(5)
    windows = WindowReadout(
        LAYERS, *torch.randn(2, 1, 2, WIDTH, generator=draw), torch.zeros(1), 16, 4
    )
    read = read_of(torch.randn(2, WIDTH, generator=draw), torch.ones(3, 1, WIDTH), layers=LAYERS)
    form = form_with([read])
    ends = ends_of({"plain": group(40, 6)})
    assert highest_windows(windows, [read]).tolist() == [-torch.inf]
    assert JointReadout(ends, windows).scores(form).equal(ends.scores(read.last[None]))


@pytest.mark.parametrize("broken", ["last", "headers", "tokens"])
def test_a_reading_that_failed_is_no_low_score(broken: str) -> None:
    draw = torch.Generator().manual_seed(7)
    windows = WindowReadout(
        LAYERS, *torch.randn(2, 1, 2, WIDTH, generator=draw), torch.zeros(1), 16, 4
    )
    read = synthetic(True, draw, turns=1)
    getattr(read, broken)[:] = torch.nan
    assert (
        JointReadout(ends_of({"plain": group(40, 6)}), windows)
        .scores(form_with([read]))
        .isnan()
        .all()
    )


def test_a_later_part_that_was_not_read_is_no_low_score() -> None:
    draw = torch.Generator().manual_seed(9)
    windows = WindowReadout(
        LAYERS, *torch.randn(2, 1, 2, WIDTH, generator=draw), torch.zeros(1), 16, 4
    )
    tokens = torch.randn(12, 1, WIDTH, generator=draw)
    tokens[8:] = torch.nan
    last = torch.randn(2, WIDTH, generator=draw)
    read = read_of(last, tokens[:6], tokens[6:], layers=LAYERS)
    assert highest_windows(windows, [read]).isnan().all()


def test_with_windows_alone_ends_count_where_a_message_has_none() -> None:
    draw = torch.Generator().manual_seed(11)
    windows = WindowReadout(
        LAYERS, *torch.randn(2, 1, 2, WIDTH, generator=draw), torch.zeros(1), 16, 8
    )
    ends = ends_of({"plain": group(40, 6)})
    high = torch.full((2, WIDTH), 100.0) * ends.weight.sign()
    for before, last in ((3, 9), (9, 3), (9, 9), (3, 3)):
        parts = (torch.randn(before, 1, WIDTH, generator=draw), torch.randn(last, 1, WIDTH))
        earlier, now = 2 * high, high
        read = read_of(now, *parts, layers=LAYERS, headers=earlier[None])
        found = float(JointReadout(ends, replace(windows, alone=True)).scores(form_with([read])))
        at_ends = [float(ends.scores(at[None])) for at in (earlier, now)]
        counted = [score for score, size in zip(at_ends, (before, last), strict=True) if size < 8]
        assert found == pytest.approx(max([float(highest_windows(windows, [read])), *counted]))
        assert float(JointReadout(ends, windows).scores(form_with([read]))) == max(at_ends)


def form_with(reads: list[Read]) -> FormResiduals:
    some = [Sample(i, "made up", text_request("x")) for i in range(len(reads))]
    return FormResiduals(some, reads, ["select"] * len(reads), ["unsafe"] * len(reads))


def test_rates_hold_on_traffic_of_many_turns(laid: Any) -> None:
    """Thresholds are conformal in the joint score, however many readings a request has."""
    _, ends, windows, _ = laid
    joint, rates = JointReadout(ends, windows), Rates(steer=0.1, flag=0.05)
    beyond, naive = [], []
    for seed in range(12):
        safe = group(2 * 79, 100 + seed, split="calibrate", turns=4).of("calibrate", is_safe)
        readings: Any = SimpleNamespace(forms={"plain": safe})
        limits = calibrations(readings, joint, rates)[Modality.TEXT].thresholds
        alone = conformal_threshold(sorted(ends.scores(safe.residuals).tolist()), 0.1)
        fresh = group(2 * 100, 500 + seed, split="calibrate", turns=4).of("calibrate", is_safe)
        scores = joint.scores(fresh)
        beyond.append([float((scores > t).double().mean()) for t in (limits.steer, limits.flag)])
        naive.append(float((scores > alone).double().mean()))
    steer, flag = torch.tensor(beyond).mean(0).tolist()
    # 12 thresholds of 79 scores each, 1200 requests: three standard errors
    assert steer == pytest.approx(0.1, abs=3 * (0.033**2 / 12 + 0.1 * 0.9 / 1200) ** 0.5)
    assert flag == pytest.approx(0.05, abs=3 * (0.024**2 / 12 + 0.05 * 0.95 / 1200) ** 0.5)
    assert sum(naive) / 12 > 0.2  # thresholds of the last position alone would not hold
