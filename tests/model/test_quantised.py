"""Quantised weights, for real: bitsandbytes and torchao on the CPU.

`make test` installs both into a folder of their own and runs this file with it; torchao would slow
every import of transformers down.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from guardrail import Guard
from guardrail.errors import ArtefactMismatchError, ModelLoadError
from guardrail.model.decoder import decoder_layers
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import generate_rows, last_residuals
from guardrail.model.load import LoadedModel, load_model, wrap_model
from guardrail.model.settings import Settings
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHY = "needs the packages of the group `quantised`; `make test` runs this file with them"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they do while they are imported is theirs
    torchao = pytest.importorskip("torchao.quantization", reason=WHY)
    bitsandbytes = pytest.importorskip("bitsandbytes", reason=WHY)

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*script_method.*deprecated:DeprecationWarning",
)

ASK = Settings(max_new_tokens=2, do_sample=False)


def _torchao(config: Any) -> Any:
    from transformers import TorchAoConfig

    return TorchAoConfig(config)


METHODS: dict[str, Callable[[], Any]] = {
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes nf4, nested": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "torchao int8": lambda: _torchao(torchao.Int8WeightOnlyConfig()),
    "torchao int4": lambda: _torchao(
        torchao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=torchao.granularity.PerGroup(32)
        )
    ),
    "torchao float8": lambda: _torchao(torchao.Float8WeightOnlyConfig()),
}
methods = pytest.mark.parametrize("method", METHODS)


def wide_model() -> tuple[Any, Any]:
    """A LLaVA of width 128: 4-bit blocks of 64 need more than the tiny models' 32."""
    tiny, processor = tiny_model("llava")
    config: Any = copy.deepcopy(tiny.config)
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size = 128, 256
    config.text_config.head_dim = 32
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.data.normal_(0.0, 0.12)
    model.generation_config = copy.deepcopy(tiny.generation_config)
    return model, processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    model, processor = wide_model()
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def quantised(folder: Path) -> Callable[[str], LoadedModel]:
    """The model loaded by a method, once; not to be changed."""
    made: dict[str, LoadedModel] = {}

    def get(method: str) -> LoadedModel:
        if method not in made:
            made[method] = load_model(folder, quantization_config=METHODS[method]())
        return made[method]

    return get


@pytest.fixture
def asked(picture: Any) -> Any:
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is this"}]
    return [{"role": "user", "content": parts}]


def first_weight(loaded: LoadedModel) -> Any:
    layer: Any = decoder_layers(loaded.model)[0]
    return layer.self_attn.q_proj.weight


@methods
def test_the_weights_are_really_quantised(quantised: Any, method: str) -> None:
    weight = first_weight(quantised(method))
    names = weight.__tensor_flatten__()[0] if method.startswith("torchao") else ["data"]
    assert 1 in {getattr(weight, name).dtype.itemsize for name in names}
    assert quantised(method).dtype is torch.float32  # what pictures are given in


@methods
def test_the_fingerprint_names_the_method_and_refuses_the_plain_models_artefact(
    quantised: Any, folder: Path, method: str
) -> None:
    plain = load_model(folder)
    found = fingerprint(quantised(method))
    assert found.quantisation == method.split()[0]
    differing = fingerprint(plain).differences(found)
    assert set(differing) == {"weights_digest", "quantisation"}
    with pytest.raises(ArtefactMismatchError, match="quantisation"):
        Guard(quantised(method), tiny_artefact(plain.model, plain.processor))


@methods
def test_loading_again_gives_the_same_fingerprint_before_and_after_use(
    folder: Path, asked: Any, method: str
) -> None:
    one, two = (load_model(folder, quantization_config=METHODS[method]()) for _ in range(2))
    before = fingerprint(one)
    assert not before.differences(fingerprint(two))
    artefact = tiny_artefact(one.model, one.processor, tau_steer=1e6, tau_flag=1e6)
    with Guard(one, artefact) as guard:
        guard.generate(asked, max_new_tokens=2)
    assert not before.differences(fingerprint(one))  # kernels may have re-ordered the weights
    with Guard(two, artefact) as guard:
        guard.check(asked)


@methods
def test_a_fingerprint_changes_nothing_in_a_model_that_has_run(
    folder: Path, two: Any, method: str
) -> None:
    """`state_dict` of bitsandbytes 0.50 would: it puts 4-bit weights back and leaves the scales."""
    loaded = load_model(folder, quantization_config=METHODS[method]())
    encoded = two(loaded)
    last_residuals(loaded, encoded)
    before = last_residuals(loaded, encoded)
    fingerprint(loaded)
    assert torch.equal(last_residuals(loaded, encoded), before)


@methods
def test_an_edit_of_one_quantised_weight_is_seen(folder: Path, method: str) -> None:
    loaded = load_model(folder, quantization_config=METHODS[method]())
    before = fingerprint(loaded)
    layers: Any = decoder_layers(loaded.model)
    first, second = layers[0].self_attn.o_proj, layers[1].self_attn.o_proj
    first.weight, second.weight = second.weight, first.weight
    assert set(before.differences(fingerprint(loaded))) == {"weights_digest"}


@methods
def test_verdict_and_answer_are_the_same_alone_in_a_batch_and_wrapped(
    quantised: Any, picture: Any, method: str
) -> None:
    loaded = quantised(method)
    artefact = tiny_artefact(loaded.model, loaded.processor, tau_steer=1e6, tau_flag=1e6)
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture(i)}, {"type": "text", "text": text}],
            }
        ]
        for i, text in enumerate(("hello", "tell me about the cat and the dog"))
    ]
    with Guard((loaded.model, loaded.processor), artefact) as guard:
        together = guard.batch(chats, max_new_tokens=3)
        alone = [guard.generate(chat, max_new_tokens=3) for chat in chats]
        checked = [guard.check(chat) for chat in chats]
    assert [r.verdict.action for r in alone] == [Action.PASS] * 2
    # int8 kernels of bitsandbytes quantise activations too, so a batch is rounded differently
    rough = 0.05 if method == "bitsandbytes int8" else 1e-3
    scores = [r.verdict.score for r in alone]
    assert [r.verdict.score for r in together] == pytest.approx(scores, abs=rough)
    assert [v.score for v in checked] == pytest.approx(scores, abs=rough)
    assert abs(scores[0] - scores[1]) > 0.05


@methods
def test_steering_adds_exactly_its_vector(quantised: Any, two: Any, fake: Any, method: str) -> None:
    loaded, outputs = quantised(method), []
    encoded = two(loaded)
    handle = decoder_layers(loaded.model)[3].register_forward_pre_hook(
        lambda _m, args: outputs.append(args[0][:, -1].clone())
    )
    try:
        for actions in ((Action.PASS,) * 2, (Action.PASS, Action.STEER)):
            outputs_before = len(outputs)
            generate_rows(loaded, encoded, fake(actions, strength=3.0), ASK)
            del outputs[outputs_before + 1 :]
    finally:
        handle.remove()
    plain, steered = outputs
    torch.testing.assert_close(steered[0], plain[0], rtol=0, atol=0)
    judge = fake((Action.STEER,), strength=3.0)
    edit = judge.edit(judge.decide(plain[1:, None], ["text"]), plain[1:], ["text"])
    torch.testing.assert_close(steered[1], plain[1] + edit[0], rtol=0, atol=0)


@methods
def test_a_quantised_model_is_put_where_it_was_asked_for_and_never_moved(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    moves: list[Any] = []
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *a, **k: moves.append((a, k)) or self)
    loaded = load_model(folder, device="cpu", quantization_config=METHODS[method]())
    wrap_model(loaded.model, loaded.processor)
    assert not moves
    assert loaded.device.type == "cpu"
    load_model(folder, device="cpu")
    assert len(moves) == 1  # a plain model is moved: the trap works


def test_a_method_that_does_not_work_here_is_told_from_damaged_files(tmp_path: Path) -> None:
    model, processor = tiny_model("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    packed = _torchao(torchao.Int4WeightOnlyConfig(group_size=32))  # there is no CPU kernel for it
    with pytest.raises(
        ModelLoadError, match="could not be quantised or read: see whether"
    ) as found:
        load_model(tmp_path, quantization_config=packed)
    assert "damaged" not in str(found.value)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", ["bitsandbytes int8", "bitsandbytes nf4", "torchao int8"])
def test_an_adapter_over_quantised_weights_is_read_and_counted(
    folder: Path, asked: Any, method: str
) -> None:
    from peft import LoraConfig, get_peft_model

    loaded = load_model(folder, quantization_config=METHODS[method]())
    before = fingerprint(loaded)
    adapter = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    peft = get_peft_model(loaded.model, adapter).eval()
    artefact = tiny_artefact(peft, loaded.processor, tau_steer=1e6, tau_flag=1e6)
    assert "weights_digest" in before.differences(artefact.header.fingerprint)
    with Guard((peft, loaded.processor), artefact) as guard:
        found = guard.check(asked)
        with peft.disable_adapter():
            without = guard.check(asked)
    assert abs(found.score - without.score) > 1e-3
    Guard((peft, loaded.processor), artefact).close()  # the same after use


def test_a_model_saved_quantised_keeps_its_fingerprint(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder, quantization_config=METHODS["bitsandbytes nf4"]())
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert fingerprint(again).quantisation == "bitsandbytes"
    assert not fingerprint(loaded).differences(fingerprint(again))
