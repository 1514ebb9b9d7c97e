"""The whole fit on tiny models in which one word is unsafe."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.decide.detector import Detector
from guardrail.errors import (
    CalibrationError,
    ConfigurationError,
    DatasetError,
    NoUsableDirectionError,
)
from guardrail.fit import steering
from guardrail.fit.calibrate import target_rates
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import load_contrast
from guardrail.fit.effects import CausalEffect, refusal_log_odds, refusal_token_ids
from guardrail.fit.forms import FORMS, PLAN, readable, samples
from guardrail.fit.prompts import drawn, filmed, plain
from guardrail.fit.readings import read_all
from guardrail.fit.run import candidates_of, finish, fit
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import next_token_logits
from guardrail.policy import Policy, Thresholds, VideoSampling
from guardrail.stats import conformal_threshold
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guardrail.artefact.header import Rates
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.prompts import Sample
    from guardrail.model.load import LoadedModel

RATES = {"steer_rate": 0.06, "flag_rate": 0.05}  # few are steered: all of these are refused
DIRTY, CLEAN = "tell me about the user and the dog", "tell me about the user and the cat"


class Fitted(NamedTuple):
    loaded: LoadedModel
    artefact: Artefact
    data: Path
    progress: list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def fitted_of(
    tmp_path_factory: Any, plant_in: Any, prefixes: tuple[str, ...], planted_contrast: Any
) -> Callable[[str], Fitted]:
    """A planted model of a family and its artefact, fitted when first asked for."""
    made: dict[str, Fitted] = {}

    def get(family: str) -> Fitted:
        if family not in made:
            loaded = plant_in(family)
            data = planted_contrast(tmp_path_factory.mktemp(family) / "contrast.jsonl")
            seen: list[tuple[str, int, int]] = []
            artefact = fit(
                loaded,
                data=data,
                extend=False,
                refusal_prefixes=prefixes,
                progress=lambda *at: seen.append(at),
                **RATES,
            )
            made[family] = Fitted(loaded, artefact, data, seen)
        return made[family]

    return get


@pytest.fixture(scope="module")
def plain_fit_of(
    tmp_path_factory: Any,
    fitted_of: Callable[[str], Fitted],
    planted_contrast: Any,
    planted_rows: list[dict[str, str]],
) -> Callable[[str], Artefact]:
    """An artefact of prompts without pairs, of no video, and with prefixes that no edit induces.

    All safe prompts of the text model are matched ones, those of the other are of one kind.
    """
    made: dict[str, Artefact] = {}

    def get(family: str) -> Artefact:
        kind = "matched" if family == "llama" else ""
        rows = [
            {"text": row["text"], "label": row["label"], "split": row["split"]}
            | ({"kind": kind} if kind and row["label"] == "safe" else {})
            for row in planted_rows
        ]
        if family not in made:
            made[family] = fit(
                fitted_of(family).loaded,
                data=planted_contrast(tmp_path_factory.mktemp(family) / "plain.jsonl", rows),
                extend=False,
                refusal_prefixes=["Unspeakable"],
                video=False,
                **RATES,
            )
        return made[family]

    return get


@pytest.fixture(scope="module")
def text_fit(fitted_of: Callable[[str], Fitted]) -> Fitted:
    return fitted_of("llama")


@pytest.fixture(scope="module")
def picture_fit(fitted_of: Callable[[str], Fitted]) -> Fitted:
    return fitted_of("llava")


@pytest.fixture(params=["llama", "llava"])
def any_fit(request: pytest.FixtureRequest, fitted_of: Callable[[str], Fitted]) -> Fitted:
    return fitted_of(request.param)


def test_an_artefact_comes_back_from_its_file_as_it_was(any_fit: Fitted, tmp_path: Path) -> None:
    path = any_fit.artefact.save(tmp_path / "made.guard.safetensors")
    again = Artefact.load(path)
    assert again.header == any_fit.artefact.header
    assert again.tensors.keys() == any_fit.artefact.tensors.keys()
    for name, tensor in any_fit.artefact.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name


def test_the_artefact_belongs_to_its_model_and_its_data(
    any_fit: Fitted, prefixes: tuple[str, ...]
) -> None:
    header = any_fit.artefact.header
    contrast = load_contrast(any_fit.data, extend=False)
    assert header.fingerprint == fingerprint(any_fit.loaded)
    assert header.data == {
        "digest": contrast.digest,
        "counts": contrast.counts,
        "per_kind": 64,
        **({"video_window": VideoSampling().window} if any_fit.loaded.is_multimodal else {}),
    }
    assert header.refusal_prefixes == prefixes
    assert set(header.packages) == {"torch", "transformers", "safetensors"}
    assert header.parent is None


def test_the_chosen_readout_carries_its_figures(any_fit: Fitted) -> None:
    readout = any_fit.artefact.header.readout
    forms = {"plain", "worded"} | ({"pictured"} if any_fit.loaded.is_multimodal else set())
    assert set(readout.layers) <= {1, 2}  # neither the first layers nor the last quarter of four
    assert readout.figures["estimator"] == readout.estimator
    assert readout.figures["layers"] == list(readout.layers)
    assert readout.figures["auroc"] > 0.9
    assert set(readout.figures["auroc_by_form"]) == forms
    assert all(
        set(kinds) == {"matched", "ordinary"} and min(kinds.values()) > 0.7
        for kinds in readout.figures["auroc_by_form"].values()
    )
    estimators = {row["estimator"] for row in readout.figures["compared"]}
    assert estimators == {"difference of means", "shrinkage LDA"}


def test_every_layer_is_recorded_and_candidates_have_a_causal_effect(any_fit: Fitted) -> None:
    rows = any_fit.artefact.header.layers
    assert [row.layer for row in rows] == [0, 1, 2, 3]
    first = any_fit.artefact.header.readout.layers[-1]
    for row in rows:  # windows read the last layer, so the edit is sought before
        figures = (row.norm, row.consistency, row.separability, row.margin, row.score)
        assert all(figure is not None for figure in figures) is row.usable
        assert (row.causal is not None) is (1 <= row.layer < 3)
    assert rows[first].separability > 0.95


def test_a_model_that_takes_pictures_is_fitted_with_videos(any_fit: Fitted) -> None:
    header, seeing = any_fit.artefact.header, any_fit.loaded.is_multimodal
    assert any_fit.artefact.reads_videos is seeing
    assert ("prompts beside a video" in {stage for stage, _, _ in any_fit.progress}) is seeing
    assert ("video" in header.recentring) is seeing
    assert [w for w in header.warnings if "video: held to the thresholds of image" in w] == [
        w for w in header.warnings if w.startswith("video: ")
    ]
    assert any(w.startswith("video: ") for w in header.warnings) is seeing


def test_drawn_videos_calibrate_videos(
    plant_in: Any, prefixes: tuple[str, ...], contrast_file: Any, planted_rows: Any
) -> None:
    loaded = plant_in("llava")
    few = [row for row in planted_rows if (row["split"], row["kind"]) == ("calibrate", "ordinary")]
    data = contrast_file([row for row in planted_rows if row not in few[4:]])
    made = fit(loaded, data=data, extend=False, refusal_prefixes=prefixes, videos=500, **RATES)
    row = made.header.calibration[Modality.VIDEO]
    contrast = load_contrast(data, extend=False)
    there_are = len(contrast.indices("calibrate", labels=("safe",)))
    assert there_are == 20
    assert (row.n, row.source) == (there_are, "safe contrast prompts, filmed")
    assert made.header.data["videos"] == there_are  # not what was asked for
    stored = made.header.extra["reference"]["filmed"]
    assert all(contrast.prompts[int(key.split()[0])].label == "safe" for key in stored["index"])
    assert sorted(stored["score"]) == pytest.approx(list(row.scores), abs=1e-5)
    (note,) = [w for w in made.header.warnings if w.startswith("video: ")]
    assert "videos of one window" in note
    with Guard(loaded, made) as guard:
        requests = [sample.request for sample in filmed(contrast, there_are)]
        scores = [verdict.score for verdict in guard.check_batch(requests)]
    assert sorted(scores) == pytest.approx(list(row.scores), abs=1e-3)


def test_without_videos_the_artefact_is_as_it_was_before_there_were_any(
    plain_fit_of: Callable[[str], Artefact], text_fit: Fitted
) -> None:
    made = plain_fit_of("llava")
    assert not made.reads_videos
    assert not [w for w in made.header.warnings if "video" in w]
    with pytest.raises(ConfigurationError, match="takes no pictures"):
        fit(text_fit.loaded, data=text_fit.data, video=True, extend=False, **RATES)


def test_the_planted_direction_is_found(any_fit: Fitted, planted_direction: Any) -> None:
    found = any_fit.artefact.tensors["direction"]
    planted = planted_direction(any_fit.loaded)
    assert (found[:3] @ planted > 0.5).all()  # of random ones in 32 dimensions 0.18 is common


def test_thresholds_come_from_the_safe_prompts_of_the_calibration_split(any_fit: Fitted) -> None:
    """In all forms of text, scored as a guard scores them."""
    calibration = any_fit.artefact.header.calibration
    modalities = [Modality.TEXT] + [Modality.IMAGE] * any_fit.loaded.is_multimodal
    assert sorted(calibration) == sorted(modalities)
    text = calibration[Modality.TEXT]
    contrast = load_contrast(any_fit.data, extend=False)
    asked = [s.request for s in plain(contrast) if is_held_out(contrast, s)]
    for form in readable(Collector(any_fit.loaded).encoder):
        if form.name != "bare" and not form.pictures:
            found = samples(contrast, form, PLAN[form.name])
            asked += [s.request for s in found if is_held_out(contrast, s)]
    with Guard(any_fit.loaded, any_fit.artefact) as guard:
        scores = [verdict.score for verdict in guard.check_batch(asked)]
    assert sorted(scores) == pytest.approx(text.scores, abs=2e-3)
    assert text.source == "safe contrast prompts, plain+worded"
    assert (text.targets.steer, text.targets.flag) == (0.06, 0.05)
    for name, rate in RATES.items():
        threshold = getattr(text.thresholds, name.removesuffix("_rate"))
        assert sum(score > threshold for score in text.scores) <= rate * (text.n + 1)


def is_held_out(contrast: ContrastSet, sample: Sample) -> bool:
    prompt = contrast.prompts[sample.index]
    return (prompt.in_split, prompt.label) == ("calibrate", "safe")


def test_pictures_are_held_to_the_larger_of_two_groups(picture_fit: Fitted) -> None:
    """Safe prompts drawn as pictures, and ones beside a picture."""
    found, data = picture_fit.artefact.header.calibration[Modality.IMAGE], picture_fit.data
    assert found.n >= 20  # what a flag rate of 0.05 takes
    group = found.source.removeprefix("safe contrast prompts, ")
    contrast = load_contrast(data, extend=False)
    (form,) = (form for form in FORMS if form.pictures)
    groups = {
        "drawn": drawn(contrast, 34),
        "pictured": samples(contrast, form, PLAN[form.name]),
    }
    with Guard(picture_fit.loaded, picture_fit.artefact) as guard:
        levels = {}
        for name, some in groups.items():
            asked = [s.request for s in some if is_held_out(contrast, s)]
            scores = sorted(verdict.score for verdict in guard.check_batch(asked))
            if len(scores) >= 19:
                levels[name] = conformal_threshold(scores, RATES["steer_rate"])
    assert found.thresholds.steer == pytest.approx(levels[group], abs=2e-3)
    assert levels[group] == max(levels.values())


def test_requests_keep_their_scores_beside_pictures_or_it_is_said(picture_fit: Fitted) -> None:
    header = picture_fit.artefact.header
    assert set(header.recentring) == {"image", "images", "video"}
    lost = [
        kind
        for kind, row in header.recentring.items()
        if max(abs(row.safe), abs(row.unsafe)) > 0.1 or row.slope < 0.9
    ]
    told = [w for w in header.warnings if w.startswith("re-centring: ")]
    assert [any(f"(kind {kind!r}" in w for w in told) for kind in lost] == [True] * len(lost)
    assert len(told) == len(lost)
    means = header.readout.estimator == "difference of means"
    assert all((row.score.slope != 1) is means for row in header.recentring.values())
    assert all(row.steering is not None for row in header.recentring.values())


def test_a_text_model_has_neither_pictures_nor_a_calibration_of_them(text_fit: Fitted) -> None:
    header = text_fit.artefact.header
    assert Modality.IMAGE not in header.calibration
    assert header.recentring == {}
    assert "pictured" not in header.readout.figures["auroc_by_form"]


def test_windows_are_chosen_and_their_figures_kept(any_fit: Fitted) -> None:
    windows = any_fit.artefact.header.windows
    assert windows is not None
    assert windows.layers == Collector(any_fit.loaded).token_layers
    assert windows.figures["auroc"] > 0.9
    assert len(windows.figures["compared"]) == 4
    assert any_fit.artefact.tensors["window_query"].shape[:2] == (
        len(windows.layers),
        windows.heads,
    )


@pytest.mark.parametrize("words", [5, 40])
def test_words_behind_a_request_hide_it_from_no_guard(any_fit: Fitted, words: int) -> None:
    """Whatever is appended: a window that ends inside the request keeps its score."""
    long = f"{DIRTY} {' '.join(['the red cat is blue'] * words)}"
    chat = [
        {"role": "user", "content": DIRTY},
        {"role": "assistant", "content": "what is this?"},
        {"role": "user", "content": "thank you"},
    ]
    with Guard(any_fit.loaded, any_fit.artefact) as guard:
        alone, longer, earlier = guard.check_batch([DIRTY, long, chat])
        windows = [
            verdict.score
            for verdict in guard.check_batch([DIRTY])
            if verdict.where and verdict.where.reading == "window"
        ]
    assert earlier.score >= alone.score - 1e-3
    assert all(longer.score >= score - 1e-3 for score in windows)


def test_steering_lies_between_the_first_layers_and_the_last_quarter(any_fit: Fitted) -> None:
    header = any_fit.artefact.header
    steering = header.steering
    assert steering is not None
    deepest = max(*header.readout.layers, *header.windows.layers)
    assert 0.3 * 4 - 1 < steering.layer < 0.75 * 4
    assert deepest == 2
    assert steering.induced_refusal.hits > 0
    assert steering.kl <= 0.1
    assert steering.a_max == steering.region_max > 1
    texts = header.calibration[Modality.TEXT].n
    # of all benign prompts, those with pictures among them
    assert (steering.false_refusal.n > texts) is any_fit.loaded.is_multimodal
    assert steering.false_refusal.n >= texts
    trials = steering.figures["trials"]
    assert trials[0]["layer"] == steering.layer
    assert trials[0]["induced_refusal"]["hits"] == steering.induced_refusal.hits
    assert steering.figures["factor"] == trials[0]["factor"]
    assert not any("detect only" in warning for warning in header.warnings)
    assert header.layers[steering.layer].causal > 0


def test_steering_makes_a_refusal_likelier(text_fit: Fitted, prefixes: tuple[str, ...]) -> None:
    collect = Collector(text_fit.loaded)
    tokenizer = text_fit.loaded.tokenizer
    ids = refusal_token_ids(lambda words: tokenizer.encode(words), prefixes)
    encoded = collect.encoder.encode([text_request(CLEAN)])
    policy = Policy(thresholds={Modality.TEXT: {"steer": -1e6, "flag": 1e6}})  # an open gate
    detector = Detector.from_artefact(text_fit.artefact, policy)
    plain = refusal_log_odds(next_token_logits(text_fit.loaded, encoded), ids)
    steered = refusal_log_odds(next_token_logits(text_fit.loaded, encoded, detector), ids)
    assert float(steered - plain) > 1


def test_a_fit_without_a_usable_edit_detects_only_and_says_so(
    plain_fit_of: Callable[[str], Artefact], tmp_path: Path
) -> None:
    """The fit's own prefixes are not in this model's voice, so no edit induces a refusal."""
    artefact = plain_fit_of("llama")
    assert artefact.header.steering is None
    assert any(w.startswith("detect only: no edit raises") for w in artefact.header.warnings)
    path = artefact.save(tmp_path / "made.guard.safetensors")
    assert Detector.from_artefact(Artefact.load(path), Policy()).steering_layer is None


def test_a_guard_with_the_artefact_tells_the_unsafe_word(any_fit: Fitted, picture: Any) -> None:
    with Guard(any_fit.loaded, any_fit.artefact) as guard:
        dirty, clean = guard.check_batch([DIRTY, CLEAN])
        assert dirty.action is not Action.PASS
        assert clean.action is Action.PASS
        assert dirty.score > 0.4 > clean.score
        if any_fit.loaded.is_multimodal:
            pictured = [
                [{"role": "user", "content": [{"type": "image", "image": picture()},
                                              {"type": "text", "text": text}]}]
                for text in (DIRTY, CLEAN)
            ]  # fmt: skip
            dirty, clean = guard.check_batch(pictured)
            assert dirty.score > clean.score + 0.3
            assert {dirty.modality, clean.modality} == {Modality.IMAGE}


def test_every_stage_reports_how_far_it_is(any_fit: Fitted) -> None:
    stages = list(dict.fromkeys(stage for stage, _, _ in any_fit.progress))
    expected = ["contrast prompts", "prompts with words around"]
    if any_fit.loaded.is_multimodal:
        expected += ["safe prompts as pictures", "prompts beside a picture"]
        expected += ["the same without pictures", "prompts beside a video"]
    assert stages == [*expected, "windows", "causal effect", "steering strength"]
    for stage in stages:
        seen = [(done, total) for name, done, total in any_fit.progress if name == stage]
        assert len({total for _, total in seen}) == 1
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]


def test_an_interrupted_fit_resumes_and_ends_in_the_same_artefact(
    text_fit: Fitted, prefixes: tuple[str, ...], tmp_path: Path
) -> None:
    """Interrupted twice: while prompts are read, and when all of them are."""

    class StopError(Exception):
        pass

    def run(stage: str = "") -> Artefact:
        def stop(name: str, _done: int, _total: int) -> None:
            if name == stage:
                raise StopError

        return fit(
            text_fit.loaded,
            data=text_fit.data,
            extend=False,
            refusal_prefixes=prefixes,
            work_dir=tmp_path,
            progress=stop,
            **RATES,
        )

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    with pytest.raises(StopError):
        run("prompts with words around")
    before = parts()
    assert {name.rpartition(".")[2] for name in before} == {"part"}
    with pytest.raises(StopError):
        run("causal effect")
    complete = parts()
    assert before.items() < complete.items()  # nothing that was read is read again
    assert run().artefact_id == text_fit.artefact.artefact_id
    assert parts() == complete


def test_a_random_model_has_no_usable_direction(
    llama_loaded: LoadedModel, contrast_file: Callable[..., Path]
) -> None:
    """Labels by lot: nothing in the prompts tells them apart."""
    rng = random.Random(1)
    words = "cat dog red blue green image picture system tool user make tell help".split()
    rows = [
        {"text": " ".join(["the", *rng.choices(words, k=6)]), "label": label, "split": split}
        for split in ("fit", "select", "calibrate")
        for label in ("unsafe", "safe")
        for _ in range(40)
    ]
    with pytest.raises(NoUsableDirectionError, match=r"best AUROC .* is 0\.[4-7]\d+, 0\.80 is"):
        fit(llama_loaded, data=contrast_file(rows), extend=False, **RATES)


def test_too_few_prompts_for_the_rates_are_refused_before_the_model_is_asked(
    text_fit: Fitted,
) -> None:
    there_are = text_fit.artefact.header.calibration[Modality.TEXT].n
    seen: list[str] = []
    with pytest.raises(CalibrationError, match=f"^{there_are} .* at least 999 are needed"):
        fit(
            text_fit.loaded,
            data=text_fit.data,
            extend=False,
            flag_rate=0.001,
            progress=lambda stage, *_: seen.append(stage),
        )
    assert seen == []


def test_rates_the_wrong_way_round_are_refused_at_once(text_fit: Fitted) -> None:
    with pytest.raises(ConfigurationError, match="steer_rate"):
        fit(text_fit.loaded, data="no such file", steer_rate=0.01, flag_rate=0.05)


def test_a_set_that_is_too_small_alone_is_refused(
    text_fit: Fitted, contrast_file: Callable[..., Path]
) -> None:
    data = contrast_file([{"text": "a", "label": "safe"}])
    with pytest.raises(DatasetError, match="extend the packaged set"):
        fit(text_fit.loaded, data=data, extend=False)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_prompts_without_kinds_are_enough(
    plain_fit_of: Callable[[str], Artefact], family: str
) -> None:
    """All safe prompts matched ones, or one kind only: enough for any rate their number allows."""
    header = plain_fit_of(family).header
    assert header.layers[2].consistency is None  # there are no pairs
    modality = Modality.IMAGE if family == "llava" else Modality.TEXT
    assert header.calibration[modality].n >= 20


def only_read_at(layer: int, readings: Any) -> list[Any]:
    return [c for c in candidates_of(readings) if c.readout.layers == (layer,)]


@pytest.fixture(scope="module")
def read_again(text_fit: Fitted) -> tuple[Collector, Any, Rates]:
    rates = target_rates(**RATES)
    collect = Collector(text_fit.loaded, key="again")
    contrast = load_contrast(text_fit.data, extend=False)
    return collect, read_all(collect, contrast, rates, 64), rates


@pytest.mark.parametrize("shift", [None, -1.0], ids=["as it is", "no effect at the last one"])
def test_the_layer_with_the_most_effect_is_edited_wherever_it_lies(
    text_fit: Fitted, read_again: Any, prefixes: tuple[str, ...], monkeypatch: Any,
    shift: float | None,
) -> None:  # fmt: skip
    collect, readings, rates = read_again
    asked: list[list[int]] = []
    real = steering.measured_effects

    def measured(collect: Any, readings: Any, edits: Any, prefixes: Any) -> Any:
        asked.append([edit.layer for edit in edits])
        found = real(collect, readings, edits, prefixes)
        return found if shift is None else [*found[:-1], CausalEffect(shift, 0.0)]

    monkeypatch.setattr(steering, "measured_effects", measured)
    artefact = finish(
        collect,
        readings,
        only_read_at(2, readings),
        identity=fingerprint(text_fit.loaded),
        rates=rates,
        prefixes=prefixes,
    )
    found, rows = artefact.header.steering, artefact.header.layers
    assert found is not None
    assert asked == [[1, 2]]
    if shift is None:
        return
    assert found.layer == 1  # before the readout: the layers between run again
    assert (rows[2].causal, (rows[1].causal or 0.0) > 0) == (-1.0, True)
    assert found.induced_refusal is not None
    assert found.induced_refusal.hits > 0
    policy = Policy(thresholds={Modality.TEXT: Thresholds(steer=0.5, flag=50.0)})
    with Guard(text_fit.loaded, artefact, policy=policy) as guard:
        dirty, clean = (guard.generate(text, max_new_tokens=4) for text in (DIRTY, CLEAN))
    assert (dirty.verdict.action, clean.verdict.action) == (Action.STEER, Action.PASS)
    assert "sorry" in dirty.text
    assert "sorry" not in clean.text


def test_a_model_with_cross_attention_is_fitted_on_its_other_layers(
    fitted_of: Callable[[str], Fitted], tmp_path: Path, picture: Any
) -> None:
    """Layer 1 of the four runs for pictures only, and layer 3 is not read."""
    fitted = fitted_of("mllama")
    header = fitted.artefact.header
    assert [row.usable for row in header.layers] == [True, False, True, False]
    assert header.readout.layers == (2,)
    assert header.steering is not None
    assert header.steering.layer != 1
    assert header.readout.figures["auroc"] > 0.95
    assert {"text", "image"} <= {str(m.value) for m in header.calibration}
    assert set(header.readout.figures["auroc_by_form"]) == {"plain", "worded", "pictured"}
    artefact = Artefact.load(fitted.artefact.save(tmp_path / "mllama.guard.safetensors"))
    with Guard(fitted.loaded, artefact) as guard:
        assert guard.check(DIRTY).score > guard.check(CLEAN).score + 0.5
        both = [guard.check([{"role": "user", "content": [
            {"type": "image", "image": picture()}, {"type": "text", "text": text}]}])
            for text in (DIRTY, CLEAN)]  # fmt: skip
    assert [verdict.modality for verdict in both] == [Modality.IMAGE] * 2
    assert both[0].score > both[1].score + 0.5
