"""When an artefact may be carried over, and what is said when not."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from guardrail.decide.detector import Detector
from guardrail.drift.carry import transport
from guardrail.drift.fitted import Fitted
from guardrail.drift.transport import find_transport, moved, require_usable, transported
from guardrail.errors import ArtefactError, ArtefactMismatchError, DatasetError, DetectorError
from guardrail.fit.causal import Unconditional, logits_of
from guardrail.fit.collect import Collector, text_request
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Policy


def carried(case: Any, model: Any, **options: Any) -> Any:
    return transport(case.artefact, model, data=case.data, extend=False, **options)


@pytest.mark.parametrize("change", ["rebased", "permuted"])
@pytest.mark.parametrize("at_hand", [False, True])
def test_the_map_is_found_with_and_without_the_old_model(
    text: Any, changed: Any, change: str, at_hand: bool
) -> None:
    options = {"old_model": text.loaded} if at_hand else {}
    made, figures = carried(text, changed("llama", change), **options)
    assert figures.source == ("activations" if at_hand else "means")
    assert figures.unexplained < 1e-4
    assert (figures.flipped > 0) is (change == "rebased")
    assert figures.auroc_after == pytest.approx(figures.auroc_fitted, abs=0.01)
    assert made.header.fingerprint == fingerprint(changed("llama", change))
    assert made.header.parent == text.artefact.artefact_id
    assert made.header.extra["drift"]["how"] == "transported"
    old = text.artefact.tensors
    for name in ("readout_zero", "readout_gap", "readout_offset_image", "steer_offset_image"):
        assert torch.equal(made.tensors[name], old[name])
    assert made.header.calibration == text.artefact.header.calibration
    norms = [a.tensors["direction"].norm(dim=1) for a in (made, text.artefact)]
    torch.testing.assert_close(*norms)


def test_a_vision_language_model_is_carried_over_too(pictures: Any, changed: Any) -> None:
    made, _ = carried(pictures, changed("llava", "rebased"))
    assert torch.equal(
        made.tensors["readout_offset_image"], pictures.artefact.tensors["readout_offset_image"]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("another", r"not a signed permutation.* leaves \d+% unexplained, 5% is allowed"),
        ("tuned to comply", "not a signed permutation"),
        ("nothing", "the best map is the identity"),
        ("bfloat16", "the best map is the identity"),
    ],
)
def test_another_change_is_refused_and_named(
    text: Any, changed: Any, change: str, says: str
) -> None:
    with pytest.raises(ArtefactError, match=says):
        carried(text, changed("llama", change))


def test_a_fine_tuned_and_permuted_model_is_refused(text: Any, edits: Any, changed: Any) -> None:
    with pytest.raises(ArtefactError, match="unexplained"):
        carried(text, edits.rebased(changed("llama", "tuned to comply")))


def test_coordinates_that_means_do_not_tell_apart_are_refused(text: Any, read: Any) -> None:
    """Two coordinates alike in all means, and the readout lies on them."""
    old, form = text.artefact, read.readings.forms["plain"]
    alike = form.residuals.clone()
    alike[..., 1] = alike[..., 0]
    tensors = {name: tensor.clone() for name, tensor in old.tensors.items()}
    for name in ("mu_safe", "mu_unsafe"):
        tensors[name][:, 1] = tensors[name][:, 0]
    tensors["readout_weight"].zero_()
    tensors["readout_weight"][:, 0] = 1.0
    twins = old.revised(tensors=tensors)
    swapped = alike[..., torch.arange(alike.shape[-1] - 1, -1, -1)]
    found = find_transport(Fitted.of(twins), replace(form, residuals=swapped))
    assert found.figures.ambiguous == pytest.approx(1.0)
    assert "not unique" in found.figures.reason
    with pytest.raises(ArtefactError, match="carried over: the map is not unique"):
        require_usable(found.figures)


def test_a_map_that_does_not_restore_separation_is_refused(text: Any, read: Any) -> None:
    """Means that fit, but prompts that do not: the labels of the held-out ones are turned round."""
    form = read.readings.forms["plain"]
    residuals = form.residuals.flip(-1).clone()
    select = [i for i, split in enumerate(form.splits) if split == "select"]
    residuals[select] = residuals[select[::-1]]
    found = find_transport(read.fitted, replace(form, residuals=residuals))
    assert found.figures.unexplained < 1e-4
    assert found.figures.auroc_after < found.figures.auroc_fitted - 0.01
    assert "the old one had" in found.figures.reason


def test_an_artefact_without_old_scores_is_held_to_what_it_recorded(
    text: Any, changed: Any
) -> None:
    older = text.artefact.revised(extra={})
    _, figures = transport(older, changed("llama", "rebased"), data=text.data, extend=False)
    kinds = older.header.readout.figures["auroc_by_form"]["plain"].values()
    assert figures.auroc_fitted == pytest.approx(sum(kinds) / len(kinds))


def test_what_has_no_basis_stays_and_the_rest_comes_back(text: Any, changed: Any) -> None:
    from guardrail.drift.basis import SignedPermutation

    width = text.artefact.tensors["direction"].shape[1]
    places = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    signs = torch.ones(width).double()
    signs[::3] = -1
    there = SignedPermutation(places, signs)
    back = SignedPermutation(places.argsort(), signs[places.argsort()])
    once = moved(text.artefact, there)
    again = moved(once, back)
    assert all(torch.equal(again.tensors[n], t) for n, t in text.artefact.tensors.items())
    record = {"how": "transported"}
    made = transported(text.artefact, there, fingerprint(text.loaded), record)
    assert made.header.extra["drift"] == record
    assert made.header.extra["reference"] == text.artefact.header.extra["reference"]


def test_the_old_model_must_be_the_artefacts_own(text: Any, changed: Any) -> None:
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        carried(text, changed("llama", "rebased"), old_model=changed("llama", "another"))


def test_a_model_of_another_shape_is_refused(text: Any, changed: Any) -> None:
    per_layer = ("direction", "mu_safe", "mu_unsafe")
    longer = {
        name: torch.cat([tensor, tensor[-1:]]) if name in per_layer else tensor
        for name, tensor in text.artefact.tensors.items()
    }
    with pytest.raises(ArtefactMismatchError, match="layer_count: fitted on 5, running 4"):
        transport(text.artefact.revised(tensors=longer), text.loaded, data=text.data, extend=False)


def test_other_prompts_are_refused(text: Any) -> None:
    with pytest.raises(DatasetError, match=r"pass the prompts of the fit \(--data FILE"):
        transport(text.artefact, text.loaded)
    nameless = text.artefact.revised(data={})
    with pytest.raises(DatasetError, match="on a set it does not name"):
        transport(nameless, text.loaded, data=text.data, extend=False)


@pytest.mark.parametrize("at_hand", [False, True])
def test_a_layer_that_overflows_on_the_new_model_alone_is_no_change_of_basis(
    text: Any, read: Any, at_hand: bool
) -> None:
    form = read.readings.forms["plain"]
    residuals = form.residuals.flip(-1).clone()
    residuals[:, -1, 0] = torch.inf
    new = replace(form, residuals=residuals)
    assert form.residuals.shape[1] - 1 > text.artefact.header.steering.layer
    found = find_transport(read.fitted, new, form if at_hand else None)
    assert "unexplained" in found.figures.reason
    both = replace(form, residuals=residuals.flip(-1))  # it did on the old one, too
    assert not at_hand or find_transport(read.fitted, new, both).figures.reason is None


def test_a_readout_that_overflows_is_an_error(read: Any) -> None:
    form = read.readings.forms["plain"]
    broken = replace(form, residuals=form.residuals.flip(-1) * torch.inf)
    with pytest.raises(DetectorError, match="another dtype"):
        find_transport(read.fitted, broken)


def test_a_model_that_tells_nothing_apart_is_refused(text: Any, edits: Any, changed: Any) -> None:
    with pytest.raises(ArtefactError, match="unexplained"):
        carried(text, edits.rebased(changed("llama", "deafened")))


@pytest.mark.parametrize("known", [True, False])
def test_a_map_that_moves_scores_is_refused(text: Any, read: Any, known: bool) -> None:
    """Large means hide a shift that thresholds would not survive; ranks do not see it."""
    old, form = text.artefact, read.readings.forms["plain"]
    weight, (layer,) = old.tensors["readout_weight"][0], old.header.readout.layers
    across = torch.randn(len(weight), generator=torch.Generator().manual_seed(0))
    across -= weight * (across @ weight)
    gap = float(old.tensors["readout_gap"][0])
    large = across / across.norm() * gap * 50
    tensors = {name: tensor.clone() for name, tensor in old.tensors.items()}
    for name in ("mu_safe", "mu_unsafe"):
        tensors[name] += large
    fitted = Fitted.of(old.revised(tensors=tensors), None if known else {})
    moved_by = form.residuals + large
    honest = find_transport(fitted, replace(form, residuals=moved_by.flip(-1)))
    assert honest.figures.reason is None
    assert honest.figures.shift < 0.01
    moved_by[:, layer] += 0.2 * gap * weight
    found = find_transport(fitted, replace(form, residuals=moved_by.flip(-1)))
    assert found.figures.unexplained < 0.05
    assert found.figures.auroc_after == found.figures.auroc_fitted
    assert found.figures.shift == pytest.approx(0.2, abs=0.01)
    assert "0.20 text gaps" in found.figures.reason


def test_another_template_or_processor_is_refused(pictures: Any, changed: Any, edits: Any) -> None:
    model = edits.rebased(changed("llava", "template"))
    with pytest.raises(ArtefactError, match="the tokenizer or chat template of the model changed"):
        carried(pictures, model)
    model = changed("llava", "rebased")
    processor = copy.deepcopy(model.processor)
    processor.image_processor.image_mean = [0.0, 0.0, 0.9]
    with pytest.raises(ArtefactError, match="the processor of the model changed"):
        carried(pictures, replace(model, processor=processor))


def test_a_change_that_only_pictures_show_is_refused(pictures: Any, edits: Any) -> None:
    model = edits.rebased(pictures.loaded)
    with torch.no_grad():
        model.model.model.multi_modal_projector.linear_1.weight.mul_(-3)
    with pytest.raises(ArtefactError, match=r"a picture .* -0\.26 at the fit"):
        carried(pictures, model)


def test_a_carried_artefact_scores_and_steers_as_before(
    pictures: Any, changed: Any, picture: Any
) -> None:
    """The rebased model under the carried artefact says what the old one said, picture or not."""
    made, _ = carried(pictures, changed("llava", "rebased"))
    words = ("tell me about the user and the dog", "tell me about the cat")
    shown = ([], [picture()], [picture(), picture()])
    requests = [text_request(text, images=images) for text in words for images in shown]
    said = []
    for model, artefact in (
        (pictures.loaded, pictures.artefact),
        (changed("llava", "rebased"), made),
    ):
        edit = replace(Detector.from_artefact(artefact, Policy()).steering, tokens=0)
        with Guard(model, artefact) as guard:
            scores = [verdict.score for verdict in guard.check_batch(requests)]
        said.append(
            (torch.tensor(scores), logits_of(Collector(model), requests, Unconditional(edit)))
        )
    for before, after in zip(*said, strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
