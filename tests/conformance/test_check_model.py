from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from guardrail.conformance import CHECKS, Definition, Outcome, check_model
from guardrail.conformance.reference import DoesNotApplyError, WrongResultError
from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardClosedError,
    UnsupportedModelError,
)
from guardrail.testing import tiny_model, tiny_processor
from guardrail.testing.tiny import randomise
from tests.conformance.every_check import EVERY_CHECK, check_everything


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


def ended(error: Exception, *, mode: bool, model: Any) -> Any:
    def check(_subject: object) -> Any:
        raise error

    return check_model(*model, checks=[Definition("x", "X", check, mode=mode)])["x"]


@pytest.mark.parametrize(
    ("error", "in_a_mode", "always"),
    [
        (UnsupportedModelError("not here"), "no", "no"),
        (ConfigurationError("not so"), "no", "no"),
        (DetectorError("fails closed"), "no", "FAILED"),
        (GuardClosedError("closed"), "FAILED", "FAILED"),
        (WrongResultError("1 is not 2"), "FAILED", "FAILED"),
        (DoesNotApplyError("it has none"), "n/a", "n/a"),
        (RuntimeError("shapes differ"), "FAILED", "FAILED"),
    ],
)
def test_only_a_clear_refusal_is_a_no(
    error: Exception, in_a_mode: str, always: str, llama: Any
) -> None:
    for mode, outcome in ((True, in_a_mode), (False, always)):
        check = ended(error, mode=mode, model=llama)
        assert check.outcome == outcome
        assert str(error) in (check.reason or "")


def test_a_chosen_check_is_run_alone_and_steps_are_told(llama: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    report = check_model(*llama, names=["score", "flag"], progress=lambda *step: steps.append(step))
    assert [check.name for check in report.checks] == ["score", "flag"]
    assert steps == [("checks", 0, 2), ("checks", 1, 2), ("checks", 2, 2)]


def test_each_check_of_the_user_says_in_its_own_words_what_a_wrong_result_means() -> None:
    assert len({definition.wrong for definition in CHECKS}) == len(CHECKS)


def test_an_unknown_check_is_named_beside_the_known_ones(llama: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"no checks named nonsense; known: .*score"):
        check_model(*llama, names=["nonsense"])


def test_the_same_seed_gives_the_same_figures_and_another_one_others(llama: Any) -> None:
    first, again = (check_everything(*llama, names=["steering", "score"]) for _ in range(2))
    assert first == again
    assert check_model(*llama, names=["score"], seed=1)["score"] != first["score"]


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model, tokenizer = tiny_model("llama")
    # transformers leaves hooks of its own when hidden states are asked for
    model(input_ids=torch.tensor([[1]]), output_hidden_states=True)
    config = model.generation_config.to_dict()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.random.get_rng_state()
    check_everything(model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.generation_config.to_dict() == config
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert "_compiled_call" not in vars(model)


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    model, processor = tiny_model("llava")
    names = {definition.name for definition in EVERY_CHECK} - {"compiled"}
    report = check_everything(model.to(torch.bfloat16), processor, names=names)
    assert report.dtype == "bfloat16"
    assert report.failed == ()
    assert report["unsteered"].figures["text"] == 0


def test_a_model_that_no_guard_can_work_in_is_a_no_throughout() -> None:
    report = check_everything(*tiny_model("blip2"))
    assert {check.outcome for check in report.checks} == {Outcome.NO}
    assert all("generate()" in (check.reason or "") for check in report.checks)
    assert len(report.checks) == len(EVERY_CHECK)


NAMES = ("layers", "score", "unsteered", "steering", "batch", "flag", "check", "stream")


def test_a_tokenizer_without_padding_leaves_batches_unchecked() -> None:
    model, tokenizer = tiny_model("llama")
    tokenizer.pad_token = None
    report = check_everything(model, tokenizer, names=NAMES)
    assert report.failed == ()
    assert report["score"].outcome is Outcome.YES
    assert report["batch"].outcome is Outcome.NOT_APPLICABLE
    assert "no padding token" in (report["flag"].reason or "")


def test_a_model_that_samples_by_itself_is_asked_for_its_likeliest_answer() -> None:
    model, processor = tiny_model("llava")
    model.generation_config.update(do_sample=True, temperature=1.5, repetition_penalty=1.1)
    names = ("unsteered", "steering", "stream")
    assert check_everything(model, processor, names=names).failed == ()


def test_learned_positions_are_counted_without_the_padding() -> None:
    words = tiny_processor("llama")
    config = GPT2Config(
        vocab_size=len(words), n_embd=32, n_layer=4, n_head=4, n_positions=256, bos_token_id=None
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    randomise(model, words.all_special_ids, 0)
    model.generation_config.update(pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id)
    assert check_everything(model, words, names=["steering", "early_edit"]).failed == ()


def test_a_model_that_fails_without_a_guard_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama")

    def forward(**_: Any) -> Any:
        raise AttributeError("no image_outputs")

    monkeypatch.setattr(model, "forward", forward)
    report = check_everything(model, tokenizer, names=NAMES)
    assert {check.outcome for check in report.checks} == {Outcome.NOT_APPLICABLE}
    assert all(
        "fails here as well (AttributeError: no image" in (c.reason or "") for c in report.checks
    )
