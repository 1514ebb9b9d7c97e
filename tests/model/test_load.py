"""Loading gives a model that can be guarded, or says what is missing and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from guardrail.errors import ConfigurationError, ModelLoadError, UnsupportedModelError
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import load_model, wrap_model
from guardrail.testing import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A LLaVA folder of one's own, to damage."""
    return Path(shutil.copytree(saved("llava"), tmp_path / "model"))


def test_a_saved_model_comes_back_in_eval_mode(saved: Any, tiny: Any) -> None:
    loaded = load_model(saved(tiny.family))
    assert type(loaded.model) is type(tiny.model)
    assert type(loaded.processor) is type(tiny.processor)
    assert not loaded.model.training
    assert (loaded.layer_count, loaded.d_model) == (4, 32)
    assert loaded.is_multimodal == (tiny.family != "llama")
    assert loaded.revision is None
    wanted = tiny.model.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in loaded.model.state_dict().items())


def test_dtype_device_and_device_map_are_followed(saved: Any) -> None:
    assert load_model(saved("llama"), dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert load_model(saved("llama"), dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_model(saved("llama"), device="cpu").device.type == "cpu"
    assert load_model(saved("llama"), device_map={"": "cpu"}).device.type == "cpu"


def test_device_and_device_map_exclude_each_other(saved: Any) -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        load_model(saved("llama"), device="cpu", device_map="auto")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", Path("nowhere")])
def test_a_missing_folder_is_named(name: str | Path) -> None:
    with pytest.raises(ModelLoadError, match=r"there is no folder .*check the path"):
        load_model(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file; give the folder"):
        load_model(folder / "config.json")


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"holds no config\.json"):
        load_model(tmp_path)


def test_a_lone_adapter_is_told_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="PEFT adapter without its base model"):
        load_model(tmp_path)


def test_a_damaged_configuration_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{broken")
    with pytest.raises(
        ModelLoadError, match=r"configuration of .*config\.json is missing, damaged"
    ):
        load_model(folder)


def test_an_unknown_model_type_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "martian"}')
    with pytest.raises(ModelLoadError, match=r"newer than this transformers.*martian"):
        load_model(folder)


def test_a_model_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelLoadError, match="is a 'clip' model; a guard needs"):
        load_model(tmp_path)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="weight files are missing or damaged"):
        load_model(folder)


def test_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    with pytest.raises(ModelLoadError, match="weight files are missing or damaged"):
        load_model(folder)


def test_a_checkpoint_with_holes_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in tensors if "layers.2.mlp" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the model's weights.*layers\.2\.mlp"):
        load_model(folder)


@pytest.mark.parametrize("pattern", ["*processor*", "tokenizer*"])
def test_a_missing_processor_is_named(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()
    with pytest.raises(ModelLoadError, match="processor"):
        load_model(folder)


def test_a_text_model_without_tokenizer_is_refused(saved: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("llama"), tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load_model(folder)


def test_a_tokenizer_of_no_known_kind_is_refused(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: object())
    with pytest.raises(ModelLoadError, match=r"no tokenizer \(found object\)"):
        load_model(saved("llama"))


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model needs Python code of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = Path(shutil.copytree(saved("llama"), tmp_path / f"own_{tmp_path.name}"))
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_out_of_a_repository_needs_a_flag_that_the_message_names(own_code: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"Read that code.*trust_remote_code=True"):
        load_model(own_code)


def test_trusted_code_runs_and_is_part_of_the_fingerprint(own_code: Path) -> None:
    loaded = load_model(own_code, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert wrap_model(loaded.model, loaded.processor).trust_remote_code
    before = fingerprint(loaded)
    assert before.code_digest is not None
    import inspect

    source = Path(inspect.getfile(type(loaded.model)))
    source.write_text(source.read_text() + "# edited\n")
    assert set(before.differences(fingerprint(loaded))) == {"code_digest"}


@pytest.fixture
def hub(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds owner/tiny at one commit, and no network."""
    repository = tmp_path / "models--owner--tiny"
    shutil.copytree(saved("llama"), repository / "snapshots" / SHA)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_hub_model_is_pinned_to_its_commit(hub: Path) -> None:
    loaded = load_model("owner/tiny", local_files_only=True)
    assert (loaded.source, loaded.revision) == ("owner/tiny", SHA)
    assert fingerprint(loaded).revision == SHA


def test_an_uncached_model_offline_is_explained(hub: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"not in the local cache.*hf download"):
        load_model("owner/other", local_files_only=True)


def test_a_name_that_is_no_hub_id_is_explained() -> None:
    with pytest.raises(ModelLoadError, match="neither a folder nor a Hub id"):
        load_model("not a name!")


@pytest.fixture
def served(saved: Any, hub_server: Any) -> Any:
    """A Hub that has owner/tiny."""
    hub_server.repositories["owner/tiny"] = saved("llama")
    return hub_server


def test_a_model_of_the_hub_is_loaded_at_its_commit_and_then_from_the_cache(served: Any) -> None:
    served.failing = 2
    assert load_model("owner/tiny").revision == served.commit
    served.asked.clear()
    served.failing = 1000
    loaded = load_model("owner/tiny")
    assert (loaded.source, loaded.revision) == ("owner/tiny", served.commit)
    assert served.asked == ["config.json"]


def test_an_unreachable_hub_is_asked_four_times_and_explained(served: Any) -> None:
    served.failing = 1000
    with pytest.raises(ModelLoadError, match="the Hub did not answer; try again"):
        load_model("owner/tiny")
    assert served.asked == ["config.json"] * 4


def test_a_missing_repository_is_asked_for_once(served: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"no Hub repository 'owner/other'.*hf auth login"):
        load_model("owner/other")
    assert len(served.asked) == 1


def test_a_gated_repository_is_explained(
    served: Any, monkeypatch: pytest.MonkeyPatch, http_error: Callable[..., Exception]
) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: Any, **__: Any) -> None:
        raise http_error(403, GatedRepoError)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    with pytest.raises(ModelLoadError, match="gated: ask for access"):
        load_model("owner/tiny")


def test_a_download_that_fails_midway_is_not_begun_again_on_top_of_the_hubs_own_tries(
    saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def flaky(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise OSError("could not load") from ConnectionError("reset")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", flaky)
    with pytest.raises(ModelLoadError, match="the Hub did not answer"):
        load_model(saved("llama"))
    assert len(calls) == 1


@pytest.mark.parametrize("device", ["cuda:99", "xpu:99", "mps:7", "gpu", "cuda:x"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"no device '{device}'.*cpu; name one of these"):
        load_model("/nowhere/at/all", device=device)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_that_is_there_is_followed(saved: Any, device: Any) -> None:
    assert load_model(saved("llama"), device=device).device.type == "cpu"


def test_wrapping_puts_a_model_in_eval_mode_and_finds_its_parts() -> None:
    model, processor = tiny_model("llava")
    loaded = wrap_model(model.train(), processor)
    assert not loaded.model.training
    assert loaded.tokenizer is processor.tokenizer  # type: ignore[union-attr]
    assert loaded.device.type == "cpu"
    assert loaded.source == "in memory"
    assert not loaded.trust_remote_code


def test_wrapping_refuses_what_is_no_model_or_processor(llama: Any) -> None:
    with pytest.raises(TypeError, match=r"PreTrainedModel; got Linear"):
        wrap_model(torch.nn.Linear(2, 2), llama.processor)
    with pytest.raises(TypeError, match=r"processor or tokenizer.*got str"):
        wrap_model(llama.model, "owner/tiny")


def test_wrapping_refuses_a_model_that_cannot_generate(llama: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel cannot generate"):
        wrap_model(llama.model.model, llama.processor)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own use
def test_lora_is_unwrapped_and_prompt_tuning_refused() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, processor = tiny_model("llama")
    peft: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert wrap_model(peft, processor).model is model
    other, _ = tiny_model("llama")
    tuned = get_peft_model(other, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UnsupportedModelError, match="virtual tokens"):
        wrap_model(tuned, processor)


def test_inputs_of_an_offloaded_model_belong_where_it_runs() -> None:
    from accelerate import cpu_offload

    model, processor = tiny_model("llama")
    assert wrap_model(cpu_offload(model, execution_device="cpu"), processor).device.type == "cpu"


def test_pictures_are_never_given_in_8_bit_floats() -> None:
    model, processor = tiny_model("llava")
    loaded = wrap_model(model.bfloat16(), processor)
    first: Any = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.weight = nn.Parameter(first.weight.to(torch.float8_e4m3fn), requires_grad=False)
    embedding = next(iter(model.parameters()))
    embedding.data = embedding.data.to(torch.float8_e4m3fn)
    assert loaded.dtype is torch.bfloat16


def test_a_model_of_integers_takes_pictures_in_torchs_default() -> None:
    model, processor = tiny_model("llama")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.int8)
    assert wrap_model(model, processor).dtype is torch.get_default_dtype()


@pytest.mark.parametrize("several", [False, True])
def test_offloaded_embeddings_belong_where_their_hook_says(several: bool) -> None:
    from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook, add_hook_to_module

    model, processor = tiny_model("llama")
    hook: Any = AlignDevicesHook(execution_device="cpu")
    embeddings: Any = model.get_input_embeddings()
    add_hook_to_module(embeddings, SequentialHook(ModelHook(), hook) if several else hook)
    embeddings.weight = nn.Parameter(embeddings.weight.to("meta"))
    assert wrap_model(model, processor).device == torch.device("cpu")
