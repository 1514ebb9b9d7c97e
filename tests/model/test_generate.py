"""Guarded generation against plain `generate`, and against a slow reference.

Sampled answers repeat themselves and disturb nobody.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from guardrail.errors import ConfigurationError, DetectorError, UnsupportedModelError
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import (
    RowControl,
    begun_rows,
    check_rows,
    generate_rows,
    last_residuals,
    next_token_logits,
)
from guardrail.model.hooks import prompt_hooks
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.testing import tiny_model
from guardrail.types import Action

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG

SIX = Settings(max_new_tokens=6)

POLICY = Policy()


def plain(loaded: Any, encoded: Any, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 6} | options
    ids = loaded.model.generate(**encoded.inputs, **options)
    return ids[:, encoded.prompt_len :].tolist()


def tokens(outcomes: Any) -> list[list[int]]:
    return [list(outcome.token_ids) for outcome in outcomes]


def count_layer_runs(model: Any) -> tuple[list[int], list[Any]]:
    """Which decoder layer ran, in order."""
    runs: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, _o, number=number: runs.append(number))
        for number, layer in enumerate(decoder_layers(model))
    ]
    return runs, handles


def steered_by_hand(loaded: Any, row: dict[str, Any], detector: Any, new_tokens: int) -> list[int]:
    """Cacheless forward passes over one unpadded row, edited by hand at the layer."""
    prompt_len = row["input_ids"].shape[1]
    one = type(detector)([STEER], strength=detector.strength)
    delta = one.edit(one.decide(torch.zeros(1, 2, 32), ["text"]), torch.zeros(1, 32), ["text"])
    last = prompt_len + detector.steer_tokens

    def edit(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        hidden[:, prompt_len - 1 : last] += delta
        return hidden

    handle = decoder_layers(loaded.model)[detector.steering_layer].register_forward_hook(edit)
    try:
        ids = loaded.model.generate(
            **row, max_new_tokens=new_tokens, use_cache=False, do_sample=False
        )
    finally:
        handle.remove()
    return ids[0, prompt_len:].tolist()


def test_residuals_equal_the_hidden_states_of_a_plain_pass(tiny, loaded_of, two):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    read = last_residuals(loaded, encoded)
    with torch.no_grad():
        states = loaded.model(**encoded.inputs, output_hidden_states=True).hidden_states
    assert read.shape == (2, 4, 32)
    for layer in range(3):  # the last hidden state is after the final norm
        assert torch.allclose(read[:, layer], states[layer + 1][:, -1], atol=1e-4)
    assert not torch.allclose(read[:, 3], states[4][:, -1], atol=1e-4)


def test_residuals_of_a_padded_row_equal_those_of_the_row_alone(tiny, loaded_of, ask, picture):
    loaded = loaded_of(tiny)
    pictures = [picture()] if loaded.is_multimodal else []
    requests = [ask("hello", *pictures), ask("tell me about the cat and the dog", *pictures)]
    encoder = Encoder(loaded)
    together = last_residuals(loaded, encoder.encode(requests))
    for row, request in enumerate(requests):
        alone = last_residuals(loaded, encoder.encode([request]))
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_only_the_layers_asked_for_are_read_and_no_later_one_runs(tiny, loaded_of, two):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    everything = last_residuals(loaded, encoded)
    runs, handles = count_layer_runs(loaded.model)
    read = last_residuals(loaded, encoded, layers=[0, 2])
    for handle in handles:
        handle.remove()
    assert torch.allclose(read, everything[:, [0, 2]], atol=1e-4)
    assert runs == [0, 1, 2]


def test_next_token_logits_equal_those_of_a_plain_pass(tiny, loaded_of, two):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    with torch.no_grad():
        expected = loaded.model(**encoded.inputs).logits[:, -1]
    assert torch.allclose(next_token_logits(loaded, encoded), expected, atol=1e-4)


def test_begun_answers_are_those_of_generate_with_the_logits_of_their_first_token(
    tiny, loaded_of, two, fake
):
    loaded = loaded_of(tiny)
    encoded, settings = two(loaded), Settings(max_new_tokens=5, do_sample=False)
    for detector in (None, fake([STEER, PASS])):
        rows, logits = begun_rows(loaded, encoded, detector, settings)
        expected = generate_rows(loaded, encoded, detector, settings)
        assert [row.token_ids for row in rows] == [row.token_ids for row in expected]
        assert torch.equal(logits, next_token_logits(loaded, encoded, detector))
        assert [row.token_ids[0] for row in rows] == logits.argmax(-1).tolist()


def test_a_detector_that_always_steers_moves_the_logits_of_its_rows_only(
    tiny, loaded_of, two, fake
):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    before = next_token_logits(loaded, encoded)
    after = next_token_logits(loaded, encoded, fake([PASS, STEER]))
    assert torch.allclose(before[0], after[0], atol=1e-4)
    assert (before[1] - after[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "seed": 11, "temperature": 0.7, "top_p": 0.9}, {"num_beams": 3}],
    ids=["greedy", "sampled", "beams"],
)
def test_unsteered_tokens_equal_plain_generation(tiny, loaded_of, two, fake, options):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    outcomes = generate_rows(
        loaded, encoded, fake([PASS, PASS]), Settings(max_new_tokens=6, **options), policy=POLICY
    )
    torch.manual_seed(options.get("seed", 0))
    expected = plain(loaded, encoded, **{k: v for k, v in options.items() if k != "seed"})
    assert tokens(outcomes) == expected
    assert {outcome.finish for outcome in outcomes} == {"length"}


def test_a_row_of_a_padded_batch_gets_the_tokens_it_gets_alone(tiny, loaded_of, ask, fake):
    loaded = loaded_of(tiny)
    requests = [ask("hello"), ask("tell me about the cat and the dog")]
    encoder = Encoder(loaded)
    together = generate_rows(
        loaded, encoder.encode(requests), fake([PASS, STEER]), SIX, policy=POLICY
    )
    for row, action in enumerate([PASS, STEER]):
        alone = generate_rows(
            loaded, encoder.encode([requests[row]]), fake([action]), SIX, policy=POLICY
        )
        assert alone[0].token_ids == together[row].token_ids
        assert alone[0].prompt_tokens == together[row].prompt_tokens


@pytest.mark.parametrize("steer_tokens", [0, 2])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_steered_row_equals_an_edit_by_hand(
    tiny, loaded_of, ask, fake, steer_tokens, use_cache, monkeypatch
):
    loaded = loaded_of(tiny)
    monkeypatch.setattr(loaded.model.generation_config, "use_cache", use_cache)
    requests = [ask("hello"), ask("tell me about the cat and the dog")]
    encoder = Encoder(loaded)
    detector = fake([PASS, STEER], steer_tokens=steer_tokens)
    encoded = encoder.encode(requests)
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    alone = dict(encoder.encode([requests[1]]).inputs)
    assert list(outcomes[1].token_ids) == steered_by_hand(loaded, alone, detector, 6)
    assert tokens(outcomes)[0] == plain(loaded, encoded)[0]
    assert outcomes[1].ruling.strength == pytest.approx(40.0, rel=1e-4)
    assert outcomes[0].ruling.strength == 0.0


def test_beams_of_one_request_are_steered_alike(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    settings = Settings(max_new_tokens=5, num_beams=3)
    outcomes = generate_rows(loaded, encoded, fake([STEER, PASS]), settings, policy=POLICY)
    expected = plain(loaded, encoded, num_beams=3, max_new_tokens=5)
    assert tokens(outcomes)[1] == expected[1]
    assert tokens(outcomes)[0] != expected[0]
    assert [outcome.ruling.action for outcome in outcomes] == [STEER, PASS]


def test_a_flagged_row_gets_no_token_and_leaves_the_others_alone(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    for settings in (SIX, Settings(max_new_tokens=6, num_beams=2)):
        outcomes = generate_rows(loaded, encoded, fake([FLAG, PASS]), settings, policy=POLICY)
        assert outcomes[0].token_ids == ()
        assert outcomes[0].finish == "flag"
        assert tokens(outcomes)[1] == plain(loaded, encoded, num_beams=settings.num_beams)[1]


def test_a_guarded_answer_costs_one_prefill_and_no_extra_pass(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    runs, handles = count_layer_runs(loaded.model)
    plain(loaded, encoded)
    unguarded = len(runs)
    runs.clear()
    generate_rows(loaded, encoded, fake([PASS, STEER]), SIX, policy=POLICY)
    assert len(runs) == unguarded
    runs.clear()
    generate_rows(loaded, encoded, fake([FLAG, FLAG]), SIX, policy=POLICY)
    for handle in handles:
        handle.remove()
    assert runs == [0, 1, 2]


def test_a_check_agrees_with_an_answer_and_runs_only_the_layers_it_needs(
    tiny, loaded_of, two, fake
):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    answered, checked = fake([PASS, FLAG]), fake([PASS, FLAG])
    generate_rows(loaded, encoded, answered, SIX, policy=POLICY)
    runs, handles = count_layer_runs(loaded.model)
    rulings = check_rows(loaded, encoded, checked, policy=POLICY)
    for handle in handles:
        handle.remove()
    assert [ruling.action for ruling in rulings] == [PASS, FLAG]
    assert torch.allclose(answered.seen[0], checked.seen[0], atol=1e-4)
    assert runs == [0, 1, 2]
    assert len(checked.seen) == 1


def test_shadow_changes_no_token_whatever_the_detector_says(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    shadow = Policy(mode="shadow")
    for detector in (fake([STEER, FLAG]), fake([FLAG, FLAG]), fake([PASS] * 2, broken="decide")):
        outcomes = generate_rows(loaded, encoded, detector, SIX, policy=shadow)
        assert tokens(outcomes) == plain(loaded, encoded)
        assert {outcome.ruling.action for outcome in outcomes} == {PASS}


def test_annotated_flags_are_answered(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    annotate = Policy(on_flag="annotate")
    outcomes = generate_rows(loaded, encoded, fake([FLAG, PASS]), SIX, policy=annotate)
    assert tokens(outcomes) == plain(loaded, encoded)
    assert outcomes[0].ruling.action is FLAG


@pytest.mark.parametrize("broken", ["decide", "edit", "nan"])
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_a_failing_detector_refuses_or_passes_as_the_policy_says(
    llava, loaded_of, two, fake, broken, fail, caplog
):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    detector = fake([STEER, STEER], broken=broken)
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=Policy(fail=fail))
    assert all(outcome.ruling.failed for outcome in outcomes)
    if fail == "closed":
        assert tokens(outcomes) == [[], []]
        assert {outcome.ruling.action for outcome in outcomes} == {FLAG}
    else:
        assert tokens(outcomes) == plain(loaded, encoded)
        assert {outcome.ruling.action for outcome in outcomes} == {PASS}


def test_a_row_that_need_not_be_steered_survives_a_failing_edit(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    outcomes = generate_rows(
        loaded, encoded, fake([PASS, STEER], broken="edit"), SIX, policy=POLICY
    )
    assert [outcome.finish for outcome in outcomes] == ["length", "flag"]
    assert tokens(outcomes)[0] == plain(loaded, encoded)[0]


def test_what_a_detect_only_detector_would_steer_passes(llava, loaded_of, two, fake):
    """The detector has applied the policy's `unsteerable` already."""
    loaded = loaded_of(llava)
    encoded = two(loaded)
    policy = Policy(unsteerable="flag", actions=frozenset({STEER}))
    detector = fake([PASS, STEER], steering_layer=None)
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=policy)
    rulings = [outcome.ruling for outcome in outcomes]
    rulings += check_rows(loaded, encoded, detector, policy=policy)
    assert [(ruling.action, ruling.failed) for ruling in rulings] == [(PASS, False)] * 4


@pytest.mark.parametrize("broken", ["decide", "edit", "nan"])
def test_an_outage_that_fails_closed_refuses_even_where_flags_are_annotated(
    llava, loaded_of, two, fake, broken
):
    loaded = loaded_of(llava)
    detector = fake([STEER, STEER], broken=broken)
    policy = Policy(on_flag="annotate", fail="closed")
    outcomes = generate_rows(loaded, two(loaded), detector, SIX, policy=policy)
    assert tokens(outcomes) == [[], []]
    assert all(outcome.ruling.stops for outcome in outcomes)


@pytest.mark.parametrize("run", [partial(generate_rows, settings=SIX), check_rows])
def test_rows_that_belong_to_no_request_are_an_error_and_not_ruled_by_another_ones_score(
    llama, loaded_of, two, fake, run
):
    loaded = loaded_of(llama)
    encoded = two(loaded)
    inputs = {name: torch.cat([rows, rows[:1]]) for name, rows in encoded.inputs.items()}
    three = replace(encoded, inputs=inputs)
    detector = fake([PASS, PASS])
    with pytest.raises(DetectorError, match="3 rows for 2 requests"):
        run(loaded, three, detector=detector, policy=POLICY)
    assert detector.seen == []


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_row_beyond_the_reach_of_steering_is_flagged_before_its_first_token(
    llava, loaded_of, two, fake, options
):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    settings = Settings(max_new_tokens=6, **options)
    detector = fake([STEER, PASS], strength=0.0, steering_layer=3)
    outcomes = generate_rows(loaded, encoded, detector, settings, policy=POLICY)
    assert tokens(outcomes) == [[], plain(loaded, encoded, **options)[1]]
    rulings = [outcome.ruling for outcome in outcomes]
    assert [(r.action, r.strength, r.failed) for r in rulings] == [
        (FLAG, 0.0, False),
        (PASS, 0.0, False),
    ]
    checked = check_rows(loaded, encoded, detector, policy=POLICY)
    assert [ruling.action for ruling in checked] == [FLAG, PASS]


def test_a_row_beyond_the_reach_of_steering_passes_if_nothing_may_be_flagged(
    llava, loaded_of, two, fake
):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    policy = Policy(actions=frozenset({STEER}))
    detector = fake([STEER, STEER], strength=0.0)
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=policy)
    assert tokens(outcomes) == plain(loaded, encoded)
    assert {outcome.ruling.action for outcome in outcomes} == {PASS}


def test_a_check_of_a_steered_row_reports_no_edit(llava, loaded_of, two, fake):
    rulings = check_rows(
        loaded_of(llava), two(loaded_of(llava)), fake([STEER, PASS]), policy=POLICY
    )
    assert [(ruling.action, ruling.strength) for ruling in rulings] == [(STEER, 0.0), (PASS, 0.0)]


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_a_row_whose_steering_layer_never_ran_has_failed(llava, loaded_of, two, fake, fail):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    detector, policy = fake([STEER, PASS], steering_layer=3), Policy(fail=fail)
    with prompt_hooks(loaded.model, [1, 2]) as hooks:  # none on layer 3
        outcomes = generate_rows(loaded, encoded, detector, SIX, policy=policy, hooks=hooks)
        checked = check_rows(loaded, encoded, detector, policy=policy, hooks=hooks)
    expected = plain(loaded, encoded)
    assert tokens(outcomes) == [[] if fail == "closed" else expected[0], expected[1]]
    for rulings in ([outcome.ruling for outcome in outcomes], checked):
        assert [ruling.failed for ruling in rulings] == [True, False]
        assert rulings[0].action is (FLAG if fail == "closed" else PASS)


def test_layers_that_only_run_for_pictures_are_refused_or_named(llama, loaded_of, two, fake):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)

    class Skipping(torch.nn.ModuleList):
        def __getitem__(self, at: Any) -> Any:
            every = list(self)
            return [*every[:3], *every[4:]] if isinstance(at, slice) else every[at]

    decoder_layers(model).__class__ = Skipping
    with pytest.raises(UnsupportedModelError, match=r"did not run its layers \[3\]"):
        last_residuals(loaded, encoded)
    assert last_residuals(loaded, encoded, [0, 2]).shape == (2, 2, 32)
    model.config.cross_attention_layers = [3]
    with pytest.raises(ConfigurationError, match=r"layers \[3\] .* cross-attention"):
        check_rows(loaded, encoded, fake([PASS, PASS], steering_layer=3), policy=POLICY)


def test_no_token_leaves_a_model_whose_prompt_was_never_seen(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    seen: list[int] = []
    control = RowControl(on_token=lambda token: bool(seen.append(token)))
    detector = fake([PASS, PASS])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        with pytest.raises(DetectorError, match="never saw"):
            generate_rows(
                loaded, encoded, detector, SIX, [control, RowControl()], policy=Policy(fail="open")
            )
        with pytest.raises(DetectorError, match="never saw"):
            check_rows(loaded, encoded, detector, policy=POLICY)
        with pytest.raises(DetectorError, match="never saw"):
            last_residuals(loaded, encoded)
    assert seen == []


def test_the_models_generation_config_is_respected_and_left_alone(llava, loaded_of, two, fake):
    model, processor = tiny_model("llava")
    loaded = loaded_of(llava._replace(model=model, processor=processor))
    encoded = two(loaded)
    first = plain(loaded, encoded)
    config = model.generation_config
    config.eos_token_id = [first[0][2], 1]
    before = config.to_dict()
    outcomes = generate_rows(loaded, encoded, fake([PASS, PASS]), SIX, policy=POLICY)
    assert config.to_dict() == before
    at = first[0].index(first[0][2])
    assert list(outcomes[0].token_ids) == first[0][: at + 1]
    assert outcomes[0].finish == "stop"


def test_models_without_end_or_padding_tokens_are_guarded_too(llava, loaded_of, two, fake):
    model, processor = tiny_model("llava")
    loaded = loaded_of(llava._replace(model=model, processor=processor))
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    encoded = two(loaded)
    expected = plain(loaded, encoded)
    outcomes = generate_rows(loaded, encoded, fake([FLAG, PASS]), SIX, policy=POLICY)
    assert tokens(outcomes) == [[], expected[1]]
    beams = generate_rows(
        loaded,
        encoded,
        fake([FLAG, PASS]),
        Settings(max_new_tokens=6, num_beams=2),
        policy=POLICY,
    )
    assert tokens(beams) == [[], plain(loaded, encoded, num_beams=2)[1]]


def test_ways_of_generating_that_hide_the_prompt_are_refused(llava, loaded_of, two):
    model, processor = tiny_model("llava")
    loaded = loaded_of(llava._replace(model=model, processor=processor))
    encoded = two(loaded)
    for name, value in {"prompt_lookup_num_tokens": 3, "stop_strings": ["x"]}.items():
        setattr(model.generation_config, name, value)
        with pytest.raises(UnsupportedModelError, match="generation_config"):
            generate_rows(loaded, encoded, None, SIX)
        setattr(model.generation_config, name, None)


def test_settings_take_no_caches_or_other_arguments_of_the_model():
    for name in ("past_key_values", "inputs_embeds", "assistant_model", "cache_implementation"):
        with pytest.raises(ValueError, match="Extra inputs"):
            Settings(**{name: None})


def test_layers_that_do_not_ascend_or_do_not_exist_are_refused(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    for options in ({"steering_layer": 9}, {"layers": (2, 1)}, {"layers": (1, 9)}, {"layers": ()}):
        with pytest.raises(ConfigurationError):
            check_rows(loaded, two(loaded), fake([PASS, PASS], **options), policy=POLICY)


def test_a_guard_works_under_inference_mode(llava, loaded_of, two, fake):
    loaded = loaded_of(llava)
    encoded = two(loaded)
    with torch.inference_mode():
        outcomes = generate_rows(loaded, encoded, fake([STEER, PASS]), SIX, policy=POLICY)
    again = generate_rows(loaded, encoded, fake([STEER, PASS]), SIX, policy=POLICY)
    assert tokens(outcomes) == tokens(again)


def test_a_model_with_its_own_generate_is_refused(llava, loaded_of, two):
    model, processor = tiny_model("llava")
    loaded = loaded_of(llava._replace(model=model, processor=processor))
    own = type("Own", (type(model),), {"generate": lambda self, **_: None})
    model.__class__ = own
    with pytest.raises(UnsupportedModelError, match=r"its own generate"):
        generate_rows(loaded, two(loaded), None, SIX)


def test_a_generate_that_the_repository_brings_is_refused(llama, loaded_of, two):
    """Transformers puts a `custom_generate` on the model, not on its class."""
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    model.generate = partial(lambda **_: torch.zeros(2, 40, dtype=torch.long), model=model)
    with pytest.raises(UnsupportedModelError, match=r"its own generate"):
        generate_rows(loaded, two(loaded), None, SIX)


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static"}, {"prefill_chunk_size": 4}, {"use_cache": False}],
    ids=["static", "chunks", "no cache"],
)
def test_the_way_the_model_caches_makes_no_difference(llama, loaded_of, two, fake, options):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)
    usual, special = (fake([PASS, STEER], steer_tokens=2) for _ in range(2))
    expected = generate_rows(loaded, encoded, usual, SIX, policy=POLICY)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    outcomes = generate_rows(loaded, encoded, special, SIX, policy=POLICY)
    assert tokens(outcomes) == tokens(expected)
    assert len(special.seen) == 1
    assert torch.allclose(special.seen[0], usual.seen[0], atol=1e-4)


def test_seeded_answers_of_two_models_in_two_threads_do_not_disturb_each_other(
    llama, loaded_of, two
):
    settings = Settings(max_new_tokens=6, do_sample=True, temperature=5.0, seed=4)
    every = []
    for seed in (0, 1):
        model, processor = tiny_model("llama", seed=seed)
        every.append(loaded_of(llama._replace(model=model, processor=processor)))
        decoder_layers(model)[0].register_forward_pre_hook(lambda *_: time.sleep(0.002))

    def answer(loaded: Any) -> list[list[list[int]]]:
        return [tokens(generate_rows(loaded, two(loaded), None, settings)) for _ in range(5)]

    expected = [answer(loaded) for loaded in every]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(answer, every)) == expected


def test_a_seeded_answer_leaves_the_callers_random_state_alone(llava, loaded_of, two):
    loaded = loaded_of(llava)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate_rows(loaded, two(loaded), None, Settings(max_new_tokens=2, do_sample=True, seed=1))
    assert torch.equal(torch.rand(1), expected)
