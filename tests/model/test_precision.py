"""Half precision: the whole path works, tells the truth about itself, and fails loudly."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail import Guard, Policy
from guardrail.model.decoder import decoder_layers
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import generate_rows, last_residuals
from guardrail.model.load import load_model, wrap_model
from guardrail.model.settings import Settings
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "llama")
HALVES = (torch.bfloat16, torch.float16)
# Scores of these random models spread over several units; 4 layers of rounding move them so much.
TOLERANCE = {torch.bfloat16: 0.15, torch.float16: 0.02}
TEXTS = ("hello", "tell me about the cat and the dog in this picture", "what is this")
ASK = Settings(max_new_tokens=4, do_sample=False)

half = pytest.mark.parametrize("dtype", HALVES, ids=lambda d: str(d).removeprefix("torch."))
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def stored() -> Callable[[str], Any]:
    """A float32 model whose weights are bfloat16 numbers, as checkpoints' are, and its twin."""
    built: dict[Any, Any] = {}

    def get(family: str, dtype: torch.dtype = torch.float32) -> Any:
        if (family, dtype) not in built:
            model, processor = tiny_model(family, seed=1)
            built[family, dtype] = model.bfloat16().to(dtype), processor
        return built[family, dtype]

    return get


@pytest.fixture
def asked(picture: Any) -> Callable[[str, str], Any]:
    def make(family: str, text: str) -> Any:
        if family == "llama":
            return text
        parts = [{"type": "image", "image": picture()}, {"type": "text", "text": text}]
        return [{"role": "user", "content": parts}]

    return make


@half
@families
def test_scores_are_those_of_the_float32_model_but_for_rounding(
    stored: Any, asked: Any, family: str, dtype: torch.dtype
) -> None:
    model, processor = stored(family)
    artefact = tiny_artefact(model, processor, tau_steer=1e6, tau_flag=1e6)
    questions = [asked(family, text) for text in TEXTS]
    with Guard((model, processor), artefact) as guard:
        wanted = [verdict.score for verdict in guard.check_batch(questions)]
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=f"fitted with dtype float32, this is {name}"):
        guard = Guard(stored(family, dtype), artefact)
    with guard:
        found = guard.check_batch(questions)
        answers = guard.batch(questions, max_new_tokens=4)
    assert [v.action for v in found] == [Action.PASS] * 3
    assert [v.score for v in found] == pytest.approx(wanted, abs=TOLERANCE[dtype])
    assert max(wanted) - min(wanted) > 2 * TOLERANCE[dtype]  # else nothing was compared
    assert [a.verdict.score for a in answers] == pytest.approx(wanted, abs=TOLERANCE[dtype])
    assert all(answer.text for answer in answers)


@half
@families
def test_a_row_of_a_batch_gets_the_verdict_it_gets_alone(
    stored: Any, asked: Any, family: str, dtype: torch.dtype
) -> None:
    model, processor = stored(family, dtype)
    artefact = tiny_artefact(model, processor, tau_steer=1e6, tau_flag=1e6)
    questions = [asked(family, text) for text in TEXTS]
    with Guard((model, processor), artefact) as guard:
        together = [v.score for v in guard.check_batch(questions)]
        alone = [guard.check(question).score for question in questions]
    assert together == pytest.approx(alone, abs=TOLERANCE[dtype])


@half
@families
def test_a_cast_is_the_same_model_with_a_warning(
    stored: Any, family: str, dtype: torch.dtype
) -> None:
    before = fingerprint(wrap_model(*stored(family)))
    after = fingerprint(wrap_model(*stored(family, dtype)))
    assert not before.differences(after)
    assert before.warnings(after) == {"dtype": ("float32", str(dtype).removeprefix("torch."))}


@half
def test_loading_in_half_precision_gives_the_cast_model(
    stored: Any, tmp_path: Any, dtype: torch.dtype
) -> None:
    model, processor = stored("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype=dtype)
    assert loaded.dtype is dtype
    wanted = fingerprint(wrap_model(*stored("llava", dtype)))
    assert fingerprint(loaded).model_dump() == wanted.model_dump() | {"revision": None}


@half
@families
def test_recorded_residuals_are_the_layers_own_outputs_in_float32(
    stored: Any, two: Any, family: str, dtype: torch.dtype
) -> None:
    loaded = wrap_model(*stored(family, dtype))
    encoded = two(loaded)
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            seen.setdefault(layer, (output[0] if isinstance(output, tuple) else output)[:, -1])

        return hook

    handles = [
        layer.register_forward_hook(keep(i)) for i, layer in enumerate(decoder_layers(loaded.model))
    ]
    try:
        generate_rows(loaded, encoded, None, ASK)
    finally:
        for handle in handles:
            handle.remove()
    read = last_residuals(loaded, encoded)
    assert read.dtype is torch.float32
    assert seen[1].dtype is dtype
    # a pass that writes a cache and one that does not may round apart
    torch.testing.assert_close(
        read, torch.stack([seen[i].float() for i in range(4)], dim=1), rtol=2e-2, atol=2e-2
    )


@half
@families
def test_a_steered_row_gets_exactly_its_edit_and_its_neighbour_nothing(
    stored: Any, two: Any, fake: Any, family: str, dtype: torch.dtype
) -> None:
    loaded = wrap_model(*stored(family, dtype))
    encoded, outputs = two(loaded), []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output)[:, -1].clone())

    def run(*actions: Action) -> torch.Tensor:
        from guardrail.model.hooks import prompt_hooks

        detector = fake(actions, strength=3.0)
        with prompt_hooks(loaded.model, (1, 2)) as hooks:
            # registered after the guard's hooks, so it sees what later layers see
            handle = decoder_layers(loaded.model)[2].register_forward_hook(keep)
            try:
                outputs.clear()
                generate_rows(loaded, encoded, detector, ASK, hooks=hooks)
            finally:
                handle.remove()
        return outputs[0]

    plain, steered = run(Action.PASS, Action.PASS), run(Action.PASS, Action.STEER)
    torch.testing.assert_close(steered[0], plain[0], rtol=0, atol=0)
    one = fake((Action.STEER,), strength=3.0)
    edit = one.edit(one.decide(plain[1:, None].float(), ["text"]), plain[1:].float(), ["text"])
    torch.testing.assert_close(steered[1], (plain[1].float() + edit[0]).to(dtype), rtol=0, atol=0)
    assert (steered[1] - plain[1]).float().norm() == pytest.approx(3.0, rel=0.02)


def overflowing(seed: int = 0) -> tuple[Any, Any]:
    """A model whose second layer leaves float16's range, and whose float32 scores are finite."""
    model, processor = tiny_model("llava", seed=seed)
    untyped: Any = model
    untyped.get_decoder().layers[1].mlp.down_proj.weight.data.mul_(3e5)
    return model, processor


@pytest.mark.parametrize(("fail", "action"), [("closed", Action.FLAG), ("open", Action.PASS)])
def test_an_overflow_in_float16_is_a_failed_row_and_never_a_score(
    asked: Any, caplog: pytest.LogCaptureFixture, fail: Any, action: Action
) -> None:
    model, processor = overflowing()
    artefact = tiny_artefact(model, processor, tau_steer=1e9, tau_flag=1e9)
    with Guard((model, processor), artefact) as guard:  # in float32 all is well
        assert guard.check(asked("llava", "hello")).reason == "score"
    small, rules = copy.deepcopy(model).half(), Policy(fail=fail)
    # weights of 1e5 do not fit into float16 either, so this is another model, and said to be
    with pytest.warns(UserWarning, match="dtype"):
        guard = Guard((small, processor), artefact, policy=rules, allow_mismatch=True)
    with guard:
        verdict = guard.check(asked("llava", "hello"))
        result = guard.generate(asked("llava", "hello"), max_new_tokens=3)
    assert (verdict.action, verdict.reason, verdict.score) == (action, "detector_failed", None)
    assert (result.verdict.action, result.verdict.reason) == (action, "detector_failed")
    assert result.refused_by_guard is (fail == "closed")
    assert "no finite score" in caplog.text


def test_a_row_that_overflows_does_not_spoil_its_neighbours(asked: Any) -> None:
    model, processor = tiny_model("llama")
    small: Any = model.half()
    token = processor.encode(" cat", add_special_tokens=False)
    assert len(token) == 1
    small.get_input_embeddings().weight.data[token] = float("inf")
    artefact = tiny_artefact(small, processor, tau_steer=1e6, tau_flag=1e6)
    with Guard((small, processor), artefact) as guard:
        bad, good = guard.check_batch(["tell me about the cat", "tell me about the dog please"])
        alone = guard.check("tell me about the dog please")
    assert (bad.action, bad.reason, bad.score) == (Action.FLAG, "detector_failed", None)
    assert (good.action, good.reason) == (Action.PASS, "score")
    assert good.score == pytest.approx(alone.score, abs=TOLERANCE[torch.float16])
