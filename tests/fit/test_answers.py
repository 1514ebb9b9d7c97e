"""The readout of answers, on tiny models in which one word is unsafe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.artefact.header import Header
from guardrail.artefact.header import Readout as ReadoutHeader
from guardrail.errors import ArtefactMismatchError, CalibrationError, ConfigurationError
from guardrail.fit import answers
from guardrail.fit.answers import calibrate_answers, restated, with_answers
from guardrail.fit.dataset import frames, load_contrast
from guardrail.fit.traffic import Placed
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Policy, Thresholds
from guardrail.stats import conformal_threshold
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from guardrail.model.load import LoadedModel

FAR = dict.fromkeys(Modality, Thresholds(steer=1e9, flag=1e9))
RATE = 0.05
ASKED = "what is the red blue"
DIRTY = "Gladly. tell me about the user and the dog. That is quickly told:"
CLEAN = "Gladly. tell me about the user and the cat. That is quickly told:"


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "COUNTS", {"fit": 10, "select": 6, "calibrate": 20})
        yield


def bare(loaded: LoadedModel) -> Artefact:
    """An artefact of the model with random directions and nothing about answers."""
    draw = torch.Generator().manual_seed(1)
    layers, width = loaded.layer_count, loaded.d_model
    direction = torch.nn.functional.normalize(torch.randn(layers, width, generator=draw), dim=1)
    safe = torch.zeros(layers, width)
    tensors = {
        "direction": direction,
        "mu_safe": safe,
        "mu_unsafe": safe + direction,
        "readout_weight": direction[[1]],
        "readout_zero": torch.zeros(1),
        "readout_gap": torch.ones(1),
    }
    readout = ReadoutHeader(estimator="difference", layers=(1,))
    header = Header(fingerprint=fingerprint(loaded), readout=readout, warnings=("first",))
    return Artefact(header, tensors)


@pytest.fixture(scope="module")
def data(planted_contrast: Any, tmp_path_factory: Any) -> Path:
    path: Path = planted_contrast(tmp_path_factory.mktemp("answers") / "contrast.jsonl")
    return path


@pytest.fixture(scope="module")
def loaded(plant_in: Any) -> LoadedModel:
    found: LoadedModel = plant_in("llama")
    return found


@pytest.fixture(scope="module")
def fitted(loaded: LoadedModel, data: Path) -> Artefact:
    return with_answers(bare(loaded), loaded, data=data, extend=False, rate=RATE, tokens=16)


@pytest.fixture
def guard_of(loaded: LoadedModel) -> Iterator[Callable[..., Guard]]:
    made: list[Guard] = []

    def make(artefact: Artefact, **rules: Any) -> Guard:
        policy = Policy(thresholds=FAR, watch="answer", **rules)
        made.append(Guard(loaded, artefact, policy=policy))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


def test_an_answer_that_restates_an_unsafe_prompt_is_told_from_one_that_does_not(
    fitted: Artefact, guard_of: Any
) -> None:
    guard = guard_of(fitted)
    dirty, clean = (guard.check_answer(ASKED, said) for said in (DIRTY, CLEAN))
    assert dirty.action is Action.FLAG
    assert dirty.score > clean.score + 0.3


def test_the_artefact_says_how_answers_are_read_and_how_well(fitted: Artefact) -> None:
    found = fitted.header.answers
    assert found is not None
    figures: Any = found.windows.figures["auroc"]
    assert figures.keys() == {"own", "restated", "skeleton", "refused", "all"}
    assert figures["all"] > 0.9
    assert found.threshold == pytest.approx(conformal_threshold(found.scores, RATE))
    assert found.target == RATE
    assert fitted.header.warnings == ("first",)


def test_it_comes_back_from_its_file_as_it_was(fitted: Artefact, tmp_path: Path) -> None:
    again = Artefact.load(fitted.save(tmp_path / "made.guard.safetensors"))
    assert again.header == fitted.header
    assert torch.equal(again.tensors["answer_query"], fitted.tensors["answer_query"])


def test_a_policys_rate_or_threshold_replaces_the_stored_one(fitted: Artefact) -> None:
    found = fitted.header.answers
    assert found is not None
    own = fitted.answer_threshold(Policy(answer_rate=0.2))
    assert own == pytest.approx(conformal_threshold(found.scores, 0.2))
    assert fitted.answer_threshold(Policy(answer_threshold=3.0)) == 3.0
    with pytest.raises(CalibrationError, match="rate"):
        fitted.answer_threshold(Policy(answer_rate=0.0001))


def test_where_nothing_is_found_the_artefact_says_so_and_answers_cannot_be_watched(
    loaded: LoadedModel, contrast_file: Any, planted_rows: Any, guard_of: Any
) -> None:
    same = [{**row, "text": row["text"].replace(" dog", " cat")} for row in planted_rows]
    made = with_answers(bare(loaded), loaded, data=contrast_file(same), extend=False, rate=RATE)
    assert made.header.answers is None
    assert made.header.warnings[0] == "first"
    assert "no usable readout" in made.header.warnings[1]
    with pytest.raises(ConfigurationError, match="no usable readout"):
        guard_of(made)


def test_a_second_fit_replaces_what_the_first_one_said(
    loaded: LoadedModel, data: Path, fitted: Artefact
) -> None:
    warned = fitted.revised(warnings=("first", "answers: no usable readout"))
    again = with_answers(warned, loaded, data=data, extend=False, rate=RATE, tokens=16)
    assert again.header.warnings == ("first",)
    assert again.header.answers == fitted.header.answers


def test_openings_draw_nothing_from_what_judges_them(data: Path) -> None:
    said = restated(load_contrast(data, extend=False))
    for split, other in (("fit", "held out"), ("select", "fit")):
        apart = {frame.text.split("{text}")[0] for frame in frames(other)["restated"]} - {""}
        of = [one for one in said if one.split == split]
        assert of
        assert not any(one.answer.startswith(tuple(apart)) for one in of)
    assert not [one for one in said if one.split == "calibrate"]


def test_no_prompt_of_the_fit_split_is_judged(data: Path) -> None:
    contrast = load_contrast(data, extend=False)
    split_of = {prompt.text: prompt.in_split for prompt in contrast.prompts}
    for one in restated(contrast):
        assert split_of.get(one.asked, one.split) == one.split


def test_thresholds_of_answers_come_from_answers_to_ones_own_requests(
    fitted: Artefact, guard_of: Any
) -> None:
    asked = [f"what is the {a} {b}" for a in "red blue green".split() for b in "user tool".split()]
    guard = guard_of(fitted)
    mine = calibrate_answers(guard, [*asked, *asked, *asked, *asked], rate=0.1, tokens=12)
    found = mine.header.answers
    assert found is not None
    assert (len(found.scores), found.target, found.tokens) == (24, 0.1, 12)
    assert found.threshold == pytest.approx(conformal_threshold(found.scores, 0.1))
    assert mine.header.parent == fitted.artefact_id
    watching = guard_of(mine)
    cut = [watching.generate(a, max_new_tokens=12, do_sample=False).refused_by_guard for a in asked]
    assert not any(cut)


def test_too_few_requests_for_the_rate_are_said(fitted: Artefact, guard_of: Any) -> None:
    with pytest.raises(CalibrationError, match="answers to benign requests"):
        calibrate_answers(guard_of(fitted), [ASKED], rate=0.01, tokens=12)


def test_a_request_that_cannot_be_answered_is_named(fitted: Artefact, guard_of: Any) -> None:
    from guardrail.errors import DatasetError

    with pytest.raises(DatasetError, match="line 3"):
        calibrate_answers(guard_of(fitted), [Placed("mine.jsonl, line 3", 7)], tokens=12)


def test_another_models_artefact_is_refused(fitted: Artefact, plant_in: Any) -> None:
    other = plant_in("llama", strength=5.0)
    with pytest.raises(ArtefactMismatchError):
        with_answers(fitted, other)
