"""A fingerprint tells checkpoints apart and one checkpoint's copies together.

4-bit weights are read in the order they were stored in, and left alone.
"""

from __future__ import annotations

import copy
import sys
import time
import types
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from guardrail.errors import ArtefactMismatchError, UnsupportedModelError
from guardrail.model.fingerprint import (
    _code_digest,
    fingerprint,
    four_bit_parts,
    is_four_bit,
    own_tensors,
    require_fitted_on,
    weights_digest,
)
from guardrail.model.load import load_model, wrap_model
from guardrail.testing import tiny_artefact, tiny_model
from tests.families.catalogue import FAMILIES, IMAGE_FAMILIES

if TYPE_CHECKING:
    from guardrail.artefact.header import Fingerprint


def of(model: Any, processor: Any) -> Fingerprint:
    return fingerprint(wrap_model(model, processor))


def changed(before: Fingerprint, after: Fingerprint) -> set[str]:
    return set(before.differences(after))


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_keeps_the_fingerprint(tiny_of: Any, tmp_path: Any, family: str) -> None:
    _, model, processor = tiny_of(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = fingerprint(load_model(tmp_path))
    assert not changed(of(model, processor), again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_a_bfloat16_checkpoint_only_warns(dtype: torch.dtype) -> None:
    model, processor = tiny_model("llava", seed=1)
    stored = copy.deepcopy(model).bfloat16().float()
    before = of(stored, processor)
    after = of(copy.deepcopy(stored).to(dtype), processor)
    assert not changed(before, after)
    assert before.warnings(after) == {"dtype": ("float32", str(dtype).removeprefix("torch."))}


def test_a_float32_checkpoint_and_its_bfloat16_copy_agree() -> None:
    model, processor = tiny_model("llama", seed=1)
    assert not changed(of(model, processor), of(copy.deepcopy(model).bfloat16(), processor))


def test_values_out_of_float16s_range_survive_casting() -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[:4] = torch.tensor([3e-8, 1e-6, 2.0**-17, 2.0**-16, 7e4, -9e4, 65504, 1e-4])
    layer = layer.bfloat16().float()
    assert weights_digest(layer) == weights_digest(copy.deepcopy(layer).half())  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_every_weight_tensor_counts(family: str) -> None:
    model, _ = tiny_model(family)
    before = weights_digest(model)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        kept = value.clone()
        value.mul_(1.5).add_(0.01)
        assert weights_digest(model) != before, name
        value.copy_(kept)
    assert weights_digest(model) == before


def test_an_edit_of_any_one_row_or_column_of_a_large_matrix_is_seen() -> None:
    layer: Any = nn.Linear(120, 150, bias=False)  # too large to be read whole
    before = weights_digest(layer)
    lines = [layer.weight.data[i] for i in range(150)]
    lines += [layer.weight.data[:, i] for i in range(120)]
    for line in lines:
        kept = line.clone()
        line += 1
        assert weights_digest(layer) != before
        line.copy_(kept)


def test_an_edit_in_place_is_seen_at_once(tiny_of: Any) -> None:
    model, processor = tiny_model("llava")
    before = of(model, processor)
    model.get_input_embeddings().weight.data[7] += 0.5  # type: ignore[operator]
    assert changed(before, of(model, processor)) == {"weights_digest"}


def test_swapping_two_tensors_of_one_shape_is_seen() -> None:
    model, processor = tiny_model("llama")
    before = of(model, processor)
    layers = model.get_decoder().layers
    first, second = (layers[i].mlp.up_proj for i in (0, 1))
    first.weight.data, second.weight.data = second.weight.data, first.weight.data
    assert changed(before, of(model, processor)) == {"weights_digest"}


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self, *, tie: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight.data = self.embed.weight.data.clone()
            if tie:
                self.head.weight = self.embed.weight

    tied, loose, only = Tied(tie=True), Tied(tie=False), Tied(tie=True)
    del only.head
    assert weights_digest(tied) == weights_digest(only)  # type: ignore[arg-type]
    assert weights_digest(tied) != weights_digest(loose)  # type: ignore[arg-type]


def test_a_config_change_is_seen_but_not_how_the_model_is_run() -> None:
    model, processor = tiny_model("llama")
    before = of(model, processor)
    model.config._name_or_path = "elsewhere"
    model.config.use_cache = False
    model.set_attn_implementation("eager")
    assert not changed(before, of(model, processor))
    model.config.rms_norm_eps = 0.5
    assert changed(before, of(model, processor)) == {"config_digest"}


def test_vocabulary_template_and_normaliser_are_seen(tiny: Any) -> None:
    before = of(tiny.model, tiny.processor)
    for edit in (
        lambda p: setattr(p, "chat_template", p.chat_template + " "),
        lambda p: getattr(p, "tokenizer", p).add_tokens(["brandnew"]),
        lambda p: setattr(getattr(p, "tokenizer", p), "eos_token", "<|im_start|>"),
        lambda p: setattr(getattr(p, "tokenizer", p).backend_tokenizer, "normalizer", lower()),
    ):
        processor = copy.deepcopy(tiny.processor)
        edit(processor)
        assert changed(before, of(tiny.model, processor)) == {"tokenizer_digest"}


def lower() -> Any:
    from tokenizers import normalizers

    return normalizers.Lowercase()


def test_padding_in_an_earlier_call_changes_nothing(llama: Any) -> None:
    before = of(llama.model, llama.processor)
    llama.processor(["a", "a longer one"], padding=True, truncation=True, max_length=4)
    assert not changed(before, of(llama.model, llama.processor))


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_image_settings_are_seen(tiny_of: Any, family: str) -> None:
    _, model, processor = tiny_of(family)
    other = copy.deepcopy(processor)
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert changed(of(model, processor), of(model, other)) == {"processor_digest"}


def test_a_setting_of_the_processor_itself_is_seen(llava: Any) -> None:
    other = copy.deepcopy(llava.processor)
    other.num_additional_image_tokens = 0
    before = of(llava.model, llava.processor)
    assert changed(before, of(llava.model, other)) == {"processor_digest"}


def test_offloaded_weights_are_read_where_they_lie(tmp_path: Any) -> None:
    from accelerate import cpu_offload, disk_offload

    model, processor = tiny_model("llava")
    before = of(model, processor)
    in_memory = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert next(in_memory.parameters()).device.type == "meta"
    assert not changed(before, of(in_memory, processor))
    on_disk = disk_offload(copy.deepcopy(model), tmp_path, execution_device="cpu")
    assert not changed(before, of(on_disk, processor))


def test_a_model_without_values_is_refused() -> None:
    model, processor = tiny_model("llama")
    with pytest.raises(UnsupportedModelError, match=r"embed_tokens.weight has no values"):
        of(model.to("meta"), processor)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own use
def test_adapters_count_with_their_scale_and_switch() -> None:
    from peft import LoraConfig, get_peft_model

    model, processor = tiny_model("llama")
    before = of(model, processor)
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2, lora_alpha=4))
    fresh = of(peft, processor)
    assert "weights_digest" in changed(before, fresh)
    layer = wrap_model(peft, processor).model.get_decoder().layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    assert changed(fresh, of(peft, processor)) == {"weights_digest"}
    layer.scaling["default"] /= 2
    assert not changed(fresh, of(peft, processor))
    with peft.disable_adapter():
        assert changed(fresh, of(peft, processor)) == {"weights_digest"}


def test_integer_and_8_bit_weights_are_compared_bit_for_bit() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", torch.arange(8000, dtype=torch.uint8).view(-1, 1))
            self.register_buffer("small", torch.ones(100, 60).to(torch.float8_e4m3fn))

    model: Any = Packed()
    before = weights_digest(model)
    model.packed += 1
    assert weights_digest(model) != before
    model.packed -= 1
    model.small[:] = torch.full((100, 60), 2.0).to(torch.float8_e4m3fn)
    assert weights_digest(model) != before


def test_the_parts_of_a_packed_tensor_are_read() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    def holding(scale: float) -> Any:
        model = nn.Module()
        model.register_buffer("packed", TwoTensor(torch.ones(3, 3), torch.full((3, 3), scale)))
        return model

    assert weights_digest(holding(1.0)) == weights_digest(holding(1.0))
    assert weights_digest(holding(1.0)) != weights_digest(holding(2.0))


def test_weights_spread_over_processes_are_refused() -> None:
    class DTensor(torch.Tensor):
        """Stands for torch.distributed's, which needs a process group."""

    model: Any = nn.Module()
    model.register_buffer("part", torch.ones(2).as_subclass(DTensor))
    with pytest.raises(UnsupportedModelError, match="part is spread over several processes"):
        weights_digest(model)


def test_a_modules_extra_state_counts() -> None:
    class Scaled(nn.Module):
        scale = 1.0

        def get_extra_state(self) -> dict[str, float]:
            return {"scale": self.scale}

    model: Any = Scaled()
    before = weights_digest(model)
    model.scale = 2.0
    assert weights_digest(model) != before


def test_the_quantisation_method_is_named() -> None:
    model, processor = tiny_model("llama")
    before = of(model, processor)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    after = of(model, processor)
    assert before.differences(after) == {"quantisation": ("None", "bitsandbytes")}


def test_a_revision_only_warns_and_only_if_both_are_known(llama: Any) -> None:
    one = of(llama.model, llama.processor)
    two, three = (one.model_copy(update={"revision": r}) for r in ("abc", "def"))
    assert not one.warnings(two)
    assert two.warnings(three) == {"revision": ("abc", "def")}
    assert not two.differences(three)


def test_a_100_million_parameter_model_takes_a_fraction_of_a_second() -> None:
    model: Any = nn.ParameterList(torch.zeros(2048, 2048) for _ in range(24))
    start = time.process_time()
    weights_digest(model)
    assert time.process_time() - start < 0.6


def test_files_of_one_name_in_two_packages_and_below_them_all_count(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's and its processor's own repository may both have a `code.py`."""
    names = ["one.aa.code", "one.aa.parts.code", "two.bb.code"]
    paths = {}
    for name in names:
        paths[name] = tmp_path / f"{name}.py"
        paths[name].write_text(f"# {name}")
        module = types.ModuleType(f"transformers_modules.{name}")
        module.__file__ = str(paths[name])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    own = [
        type("Own", (), {"__module__": f"transformers_modules.{name}"})()
        for name in ("one.aa.code", "two.bb.code")
    ]
    digests = {_code_digest(own)}
    for path in paths.values():
        path.write_text(path.read_text() + "!")
        digests.add(_code_digest(own))
    assert len(digests) == 4


class Params4bit(nn.Parameter):
    """Stands for bitsandbytes' class of this name, which needs the package."""

    quant_state: Any


def weight(data: torch.Tensor, **state: Any) -> Any:
    made = Params4bit(data, requires_grad=False)
    made.quant_state = SimpleNamespace(quant_type="nf4", blocksize=64, nested=False, **state)
    return made


def slowly_packed(codes: torch.Tensor) -> torch.Tensor:
    """The CPU kernel's order, value by value: (rows, columns) of 0..15 -> (rows, columns / 2)."""
    rows, columns = codes.shape
    line = []
    for block in range(0, rows, 32):
        for column in range(0, columns, 2):
            values = [int(codes[block + row, column + k]) for row in range(32) for k in (0, 1)]
            line += [(values[32 + i] << 4) | values[i] for i in range(32)]
    return torch.tensor(line, dtype=torch.uint8).reshape(rows, columns // 2)


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (96, 128), (64, 192)])
def test_both_orders_of_a_weight_read_alike(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 16, (rows, columns), generator=generator)
    scales = torch.rand(rows, columns // 64, generator=generator)
    stored = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).reshape(-1, 1)
    shape = torch.Size((rows, columns))
    as_stored = weight(stored, shape=shape, absmax=scales.reshape(-1))
    re_ordered = weight(
        slowly_packed(codes),
        shape=shape,
        absmax=scales.bfloat16().T.contiguous(),
        packing_format_for_cpu=True,
    )
    one, other = (dict(four_bit_parts("w", w)) for w in (as_stored, re_ordered))
    assert list(one) == ["w.codes", "w.scales", "w.format"] == list(other)
    assert torch.equal(one["w.codes"], stored.reshape(rows, -1))
    for name, value in one.items():
        same = value == other[name]
        assert bool(same.all() if isinstance(same, torch.Tensor) else same), name


@pytest.mark.parametrize("change", ["code", "scale", "type"])
def test_every_part_of_a_weight_counts(change: str) -> None:
    def parts(**differing: Any) -> str:
        data = torch.zeros(32 * 32, 1, dtype=torch.uint8)
        made = weight(data, shape=torch.Size((32, 64)), absmax=torch.ones(32))
        if "code" in differing:
            made.data[5] = 1
        if "scale" in differing:
            made.quant_state.absmax[3] = 2.0
        if "type" in differing:
            made.quant_state.quant_type = "fp4"
        return str(
            [p.tolist() if isinstance(p, torch.Tensor) else p for _, p in four_bit_parts("w", made)]
        )

    assert parts() == parts()
    assert parts() != parts(**{change: True})


def test_a_four_bit_layer_is_never_asked_to_save_itself() -> None:
    class Layer(nn.Linear):
        def _save_to_state_dict(self, *_: Any) -> None:
            raise AssertionError("bitsandbytes changes the layer here")

    layer = Layer(64, 32)
    layer.weight = weight(
        torch.zeros(1024, 1, dtype=torch.uint8), shape=torch.Size((32, 64)), absmax=torch.ones(32)
    )
    found = own_tensors(layer, "x.")
    assert list(found) == ["x.weight", "x.bias"]
    assert found["x.weight"] is layer.weight


def test_other_layers_save_themselves_as_ever() -> None:
    class Layer(nn.Linear):
        def get_extra_state(self) -> int:
            return 7

    layer = Layer(4, 4)
    layer.register_buffer("kept", torch.ones(1))
    layer.register_buffer("passing", torch.ones(1), persistent=False)
    assert own_tensors(layer, "x.") == layer.state_dict(prefix="x.", keep_vars=True)
    assert not is_four_bit(layer.weight)
    assert not is_four_bit(None)
    assert not is_four_bit(Params4bit(torch.zeros(1)))  # not quantised yet


def test_a_model_is_held_to_the_one_the_artefact_was_fitted_on(tiny_of: Any) -> None:
    tiny, other = tiny_of("llama"), wrap_model(*tiny_model("llama", seed=1))
    artefact = tiny_artefact(tiny.model, tiny.processor)
    fitted_on = wrap_model(tiny.model, tiny.processor)
    assert require_fitted_on(artefact, fitted_on) == artefact.header.fingerprint
    with pytest.raises(ArtefactMismatchError) as raised:
        require_fitted_on(artefact, other)
    assert set(raised.value.fields) == {"weights_digest"}
    assert require_fitted_on(artefact, other, allow_mismatch=True) == fingerprint(other)
