"""The checks can fail: a guard that is broken in one way fails the checks that look there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.conformance import CHECKS, Outcome, check_model
from guardrail.decide.detector import Detector
from guardrail.decide.linear import Readout, Steering
from guardrail.decide.reading import PromptReading
from guardrail.guard import Guard
from guardrail.model import generate, hooks, prefill, settings
from guardrail.online import answering
from guardrail.online.answering import Answering
from guardrail.testing import tiny_model
from tests.conformance.every_check import EVERY_CHECK, check_everything

if TYPE_CHECKING:
    from collections.abc import Callable

    Patch = Callable[[pytest.MonkeyPatch], None]

BASE = {
    *("layers", "score", "unsteered", "steering", "batch", "flag", "prefill", "check"),
    *("stream", "beams", "early_edit", "turns"),
}


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_model("llava")


def failing(model: Any, names: set[str] = BASE) -> set[str]:
    return {check.name for check in check_everything(*model, names=names).failed}


def one_position_early(monkeypatch: pytest.MonkeyPatch) -> None:
    real = prefill.PromptCall.enter

    def enter(self: Any, *args: Any) -> None:
        self.prompt_len -= 1
        real(self, *args)
        self.prompt_len += 1

    monkeypatch.setattr(prefill.PromptCall, "enter", enter)


def edit_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Detector.edit

    def edit(self: Any, *args: Any) -> torch.Tensor:
        found = real(self, *args)
        return found + found.sum(dim=0, keepdim=True) - found

    monkeypatch.setattr(Detector, "edit", edit)


def another_length_of_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Detector.edit
    monkeypatch.setattr(Detector, "edit", lambda self, *args: 1.01 * real(self, *args))


def a_second_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    real = generate._guarded

    def guarded(loaded: Any, encoded: Any, *args: Any, **options: Any) -> Any:
        with torch.no_grad():
            loaded.model(**encoded.inputs)
        return real(loaded, encoded, *args, **options)

    monkeypatch.setattr(generate, "_guarded", guarded)


def the_layer_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer l is read and edited where layer l - 1 is."""
    real = hooks.decoder_layers

    def shifted(model: Any) -> Any:
        found = real(model)
        return torch.nn.ModuleList([found[0], *found[:-1]])

    monkeypatch.setattr(hooks, "decoder_layers", shifted)


def no_early_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers behind the last one needed run on."""

    def see(self: Any, layer: int, hidden: torch.Tensor) -> Any:
        try:
            return real(self, layer, hidden)
        except prefill.PrefillDoneError:
            return None

    real = prefill.PromptCall.see
    monkeypatch.setattr(prefill.PromptCall, "see", see)


def the_offset_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Readout.scores
    monkeypatch.setattr(
        Readout, "scores", lambda self, states, kinds: real(self, states, ["text"] * len(kinds))
    )


def the_thresholds_of_texts_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Detector.thresholds_for
    monkeypatch.setattr(Detector, "thresholds_for", lambda self, _kind: real(self, "text"))


def steered_from_where_texts_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trust region is measured without the offset of pictures."""
    real = Steering.edits
    monkeypatch.setattr(
        Steering,
        "edits",
        lambda self, *args: real(self, *args[:-1], ["text"] * len(args[-1])),
    )


def windows_one_token_late(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PromptReading.places
    monkeypatch.setattr(PromptReading, "places", lambda *args: real(*args) + 1)


def the_position_behind_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PromptReading.headers
    monkeypatch.setattr(
        PromptReading,
        "headers",
        lambda self: ((row, at + 1, header) for row, at, header in real(self)),
    )


def the_last_position_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detector, "reading", lambda *_: None)


def the_verdict_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Answering._rule

    def rule(self: Any, ruling: Any) -> None:
        job, emit = self._job, self._job.emit
        job.emit = None
        real(self, ruling)
        job.emit = emit

    monkeypatch.setattr(Answering, "_rule", rule)


def the_first_verdict_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real, first = answering.verdict_of, []

    def verdict(*args: Any) -> Any:
        first.append(real(*args))
        return first[0]

    monkeypatch.setattr(answering, "verdict_of", verdict)


def static_caches_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a static cache the guard believes that it is empty, whatever it holds."""
    real = hooks.passed_cache

    def passed(values: Any) -> Any:
        cache = real(values)
        return None if type(cache).__name__ == "StaticCache" else cache

    monkeypatch.setattr(hooks, "passed_cache", passed)


def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill.PromptCall, "may_edit_tokens", property(lambda _self: True))


def only_the_first_chunk_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = prefill.PromptCall.enter

    def enter(self: Any, past: int, length: int) -> None:
        if past == 0:
            real(self, self.prompt_len - length, length)

    monkeypatch.setattr(prefill.PromptCall, "enter", enter)
    monkeypatch.setattr(generate, "require_exact_chunks", lambda *_: None)  # it would see that


def videos_are_scored_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    the_offset_is_left_out(monkeypatch)


def a_second_answer_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option is taken and comes to nothing."""
    real = Guard.generate

    def generate(self: Any, value: Any, **options: Any) -> Any:
        options.pop("num_return_sequences", None)
        return real(self, value, **options)

    monkeypatch.setattr(Guard, "generate", generate)


def assistants_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_refuse_unguardable", "_refuse_mode"):
        monkeypatch.setattr(settings, name, lambda _config: None)


EDITS = {"steering", "early_edit", "beams"}
MUTANTS: list[tuple[Patch, set[str]]] = [
    (one_position_early, {"layers", "score", "batch", "flag", *EDITS}),
    (edit_on_all_rows, EDITS),
    (another_length_of_edit, {"steering", "early_edit"}),
    (
        a_second_prefill,
        {"unsteered", "steering", "early_edit", "flag", "prefill", "check", "stream"},
    ),
    (the_layer_before, {"layers", "score", "batch", "turns", *EDITS}),
    (no_early_exit, {"flag", "check"}),
    (the_offset_is_left_out, {"score", "batch"}),
    (the_thresholds_of_texts_for_all, {"score"}),
    (steered_from_where_texts_lie, {"steering"}),
    (windows_one_token_late, {"turns"}),
    (the_position_behind_a_header, {"turns"}),
    (the_last_position_alone, {"turns"}),
    (the_verdict_is_not_told, {"stream"}),
]


@pytest.mark.parametrize(("patch", "wrong"), MUTANTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_broken_guard_fails_the_checks_that_look_there_and_no_others(
    patch: Patch, wrong: set[str], llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    assert failing(llava) == wrong


OTHERS: list[tuple[Patch, str]] = [
    (the_first_verdict_for_all, "concurrency"),
    (static_caches_are_not_known, "static"),
    (nothing_is_compiled, "compiled"),
    (only_the_first_chunk_is_read, "chunked"),
    (videos_are_scored_as_texts, "video"),
    (a_second_answer_is_forgotten, "sequences"),
    (assistants_are_let_in, "assisted"),
]


@pytest.mark.parametrize(("patch", "name"), OTHERS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_way_of_asking_that_is_broken_fails_its_check(
    patch: Patch, name: str, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    (check,) = check_everything(*llava, names=[name]).checks
    assert check.outcome is Outcome.FAILED, check


def test_each_check_has_a_mutant() -> None:
    seen = set[str]().union(*(wrong for _, wrong in MUTANTS)) | {name for _, name in OTHERS}
    assert seen == {definition.name for definition in EVERY_CHECK}


USERS: list[tuple[Patch, str]] = [
    (a_second_prefill, "unsteered"),
    (the_offset_is_left_out, "score"),
    (one_position_early, "batch"),
    (the_position_behind_a_header, "turns"),
    (windows_one_token_late, "turns"),
    (the_verdict_is_not_told, "stream"),
    (another_length_of_edit, "steering"),
    (edit_on_all_rows, "steering"),
    (no_early_exit, "flag"),
    (videos_are_scored_as_texts, "video"),
]


@pytest.mark.parametrize(("patch", "name"), USERS, ids=lambda v: getattr(v, "__name__", v))
def test_of_a_broken_guard_a_user_is_told_what_that_means(
    patch: Patch, name: str, llava: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    (check,) = check_model(*llava, names=[name]).checks
    (definition,) = (one for one in CHECKS if one.name == name)
    assert check.outcome is Outcome.FAILED, check
    assert (check.reason or "").startswith(f"{definition.wrong}: ")


def test_each_check_of_the_user_has_a_mutant() -> None:
    assert {name for _, name in USERS} == {definition.name for definition in CHECKS}
