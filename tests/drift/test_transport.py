"""Signed permutations are recovered; what is none is seen to be none."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.decide.detector import Detector
from guardrail.drift.fitted import Fitted
from guardrail.drift.transport import (
    SignedPermutation,
    find_transport,
    mean_features,
    moved,
    recovered,
    require_usable,
    transport,
    transported,
)
from guardrail.errors import ArtefactError, ArtefactMismatchError, DatasetError, DetectorError
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.directions import difference_of_means
from guardrail.fit.effects import Unconditional, logits_of
from guardrail.fit.outcome import reference_scores
from guardrail.guard import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.policy import Policy
from tests.fit.residuals import mapped, with_last

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.fit.readings import FormResiduals

SEEDS = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def any_change(seed: int, width: int) -> SignedPermutation:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    return SignedPermutation(places, signs)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, width=st.integers(1, 48), features=st.integers(3, 12))
def test_any_signed_permutation_of_random_means_is_recovered(
    seed: int, width: int, features: int
) -> None:
    old, change = drawn(seed, features, width), any_change(seed, width)
    scales = torch.logspace(-3, 3, features, dtype=torch.float64)[:, None]  # layers of any size
    found = recovered((old * scales).float(), change.apply(old * scales).float())
    assert torch.equal(found.map.places, change.places)
    assert torch.equal(found.map.signs, change.signs)
    assert found.unexplained < 1e-6
    assert not found.ambiguous.any()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_small_noise_is_borne_and_measured(seed: int) -> None:
    old, change = drawn(seed, 16, 48), any_change(seed, 48)
    noisy = change.apply(old) + 0.01 * drawn(seed + 1, 16, 48)
    found = recovered(old, noisy)
    assert torch.equal(found.map.places, change.places)
    assert found.unexplained == pytest.approx(0.01, rel=0.3)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_large_noise_is_left_unexplained(seed: int) -> None:
    old, change = drawn(seed, 16, 48), any_change(seed, 48)
    assert recovered(old, change.apply(old) + 0.3 * drawn(seed + 1, 16, 48)).unexplained > 0.1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, features=st.integers(6, 16))
def test_a_rotation_is_no_signed_permutation(seed: int, features: int) -> None:
    old = drawn(seed, features, 48)
    rotation, _ = torch.linalg.qr(drawn(seed + 1, 48, 48))
    found = recovered(old, old @ rotation)
    assert found.unexplained > 0.2
    assert found.ambiguous.float().mean() > 0.5


def test_unrelated_means_are_left_unexplained() -> None:
    assert recovered(drawn(0, 12, 48), drawn(1, 12, 48)).unexplained > 0.3


def test_equal_coordinates_are_ambiguous_and_others_are_not() -> None:
    old = drawn(0, 8, 12)
    old[:, 5] = -old[:, 2]
    change = any_change(3, 12)
    found = recovered(old, change.apply(old))
    ambiguous = {int(change.places[i]) for i in range(12) if found.ambiguous[i]}
    assert ambiguous == {2, 5}
    assert found.unexplained < 1e-9


def test_dead_coordinates_match_each_other() -> None:
    old = drawn(0, 8, 12)
    old[:, [1, 7]] = 0.0
    change = any_change(5, 12)
    found = recovered(old, change.apply(old))
    live = ~torch.isin(change.places, torch.tensor([1, 7]))
    assert torch.equal(found.map.places[live], change.places[live])
    assert torch.equal(found.ambiguous, ~live)


def test_the_identity_moves_nothing() -> None:
    found = recovered(drawn(0, 8, 12), drawn(0, 8, 12)).map
    assert (found.moved, found.flipped) == (0, 0)


def test_a_map_counts_what_it_does() -> None:
    change = SignedPermutation(torch.tensor([1, 0, 2]), torch.tensor([1.0, -1.0, -1.0]))
    assert (change.moved, change.flipped) == (2, 2)
    assert change.apply(torch.tensor([3.0, 5.0, 7.0])).tolist() == [5.0, -3.0, -7.0]


def test_inner_products_survive_the_map() -> None:
    a, b, change = drawn(0, 4, 20), drawn(1, 4, 20), any_change(2, 20)
    torch.testing.assert_close((change.apply(a) * change.apply(b)).sum(-1), (a * b).sum(-1))


def test_means_and_their_differences_both_tell() -> None:
    unsafe, safe = drawn(0, 9, 3, 5), drawn(1, 9, 3, 5)
    found = mean_features(difference_of_means(unsafe, safe))
    wanted = torch.cat([safe.mean(0), unsafe.mean(0) - safe.mean(0)])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), "shape"),
        (torch.zeros(4), torch.zeros(4), "shape"),
        (torch.full((2, 2), torch.nan), torch.zeros(2, 2), "finite"),
    ],
)
def test_features_that_have_no_map_are_refused(
    old: torch.Tensor, new: torch.Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        recovered(old, new)


def without_windows(artefact: Artefact) -> Artefact:
    """The same without windows: it reads the ends of turns alone."""
    kept = {n: t for n, t in artefact.tensors.items() if not n.startswith("window_")}
    return artefact.revised(tensors=kept, windows=None)


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
    for name in ("readout_zero", "readout_gap", "window_bias"):
        assert torch.equal(made.tensors[name], old[name])
    assert made.header.windows == text.artefact.header.windows
    assert made.header.calibration == text.artefact.header.calibration
    norms = [a.tensors["direction"].norm(dim=1) for a in (made, text.artefact)]
    torch.testing.assert_close(*norms)


def test_a_vision_language_model_is_carried_over_too(pictures: Any, changed: Any) -> None:
    made, _ = carried(pictures, changed("llava", "rebased"))
    assert made.header.recentring == pictures.artefact.header.recentring


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
    found = find_transport(Fitted.of(twins), with_last(form, swapped))
    assert found.figures.ambiguous == pytest.approx(1.0)
    assert "not unique" in found.figures.reason
    with pytest.raises(ArtefactError, match="carried over: the map is not unique"):
        require_usable(found.figures)


def flipped(form: FormResiduals) -> FormResiduals:
    """The same prompts in a basis whose coordinates stand the other way round."""
    return mapped(form, lambda rows: rows.flip(-1))


def test_a_map_that_does_not_restore_separation_is_refused(text: Any, read: Any) -> None:
    """Means that fit, but prompts that do not: the labels of the held-out ones are turned round."""
    form = flipped(read.readings.forms["plain"])
    select = [i for i, split in enumerate(form.splits) if split == "select"]
    turned = dict(zip(select, select[::-1], strict=True))
    reads = [form.reads[turned.get(i, i)] for i in range(len(form.reads))]
    assert find_transport(read.fitted, form).figures.reason is None
    found = find_transport(read.fitted, replace(form, reads=reads))
    assert found.figures.unexplained < 1e-4
    assert found.figures.auroc_after < found.figures.auroc_fitted - 0.01
    assert "the old one had" in found.figures.reason


@pytest.mark.parametrize("known", [True, False])
def test_windows_that_score_otherwise_are_seen_where_old_scores_are_known(
    text: Any, read: Any, known: bool
) -> None:
    """Ends of turns as they were, tokens not: an artefact without old scores cannot tell."""
    form = flipped(read.readings.forms["plain"])
    reads = [replace(r, tokens=r.tokens * 3) for r in form.reads]
    fitted = Fitted.of(text.artefact, None if known else {})
    found = find_transport(fitted, replace(form, reads=reads))
    assert (found.figures.reason is not None) is known


def test_an_artefact_without_old_scores_is_held_to_what_it_recorded(
    text: Any, changed: Any
) -> None:
    older = text.artefact.revised(extra={})
    _, figures = transport(older, changed("llama", "rebased"), data=text.data, extend=False)
    kinds = older.header.readout.figures["auroc_by_form"]["plain"].values()
    assert figures.auroc_fitted == pytest.approx(sum(kinds) / len(kinds))


def test_what_has_no_basis_stays_and_the_rest_comes_back(text: Any, changed: Any) -> None:
    from guardrail.drift.transport import SignedPermutation

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
    residuals[:, 0, 0] = torch.inf
    new = with_last(flipped(form), residuals)
    assert min(*text.artefact.header.readout.layers, text.artefact.header.steering.layer) > 0
    found = find_transport(read.fitted, new, form if at_hand else None)
    assert "unexplained" in found.figures.reason
    both = with_last(form, residuals.flip(-1))  # it did on the old one, too
    assert not at_hand or find_transport(read.fitted, new, both).figures.reason is None


def test_a_readout_that_overflows_is_an_error(read: Any) -> None:
    form = read.readings.forms["plain"]
    broken = with_last(form, form.residuals.flip(-1) * torch.inf)
    with pytest.raises(DetectorError, match="another dtype"):
        find_transport(read.fitted, broken)


def test_a_model_that_tells_nothing_apart_is_refused(text: Any, edits: Any, changed: Any) -> None:
    with pytest.raises(ArtefactError, match="unexplained"):
        carried(text, edits.rebased(changed("llama", "deafened")))


@pytest.mark.parametrize("known", [True, False])
def test_a_map_that_moves_scores_is_refused(text: Any, read: Any, known: bool) -> None:
    """Large means hide a shift that thresholds would not survive; ranks do not see it."""
    form, old = read.readings.forms["plain"], without_windows(text.artefact)
    weights, layers = old.tensors["readout_weight"], list(old.header.readout.layers)
    gaps = old.tensors["readout_gap"]
    basis, _ = torch.linalg.qr(weights.T)
    across = torch.randn(len(basis), generator=torch.Generator().manual_seed(0))
    across -= basis @ (basis.T @ across)
    large = across / across.norm() * float(gaps.max()) * 50
    tensors = {name: tensor.clone() for name, tensor in old.tensors.items()}
    for name in ("mu_safe", "mu_unsafe"):
        tensors[name] += large
    scores = reference_scores(read.readings, Fitted.of(old).joint)
    fitted = Fitted.of(old.revised(tensors=tensors), scores if known else {})
    moved_by = form.residuals + large
    honest = find_transport(fitted, with_last(form, moved_by.flip(-1)))
    assert honest.figures.reason is None
    assert honest.figures.shift < 0.01
    moved_by[:, layers] += 0.2 * gaps[:, None] * weights
    found = find_transport(fitted, with_last(form, moved_by.flip(-1)))
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
    with pytest.raises(ArtefactError, match=r"beside a picture \(kind .* text gaps, .* at the fit"):
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
