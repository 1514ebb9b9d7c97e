"""LoRA: the guard sees the model as it acts, and knows when that changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from guardrail import Guard
from guardrail.errors import ArtefactMismatchError, ModelLoadError, UnsupportedModelError
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import load_model, wrap_model
from guardrail.model.source import adapter_at
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.artefact.header import Fingerprint

# peft 0.21 asks transformers 5.24 for an attribute by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "llama")
families = pytest.mark.parametrize("family", FAMILIES)


def lora(**options: Any) -> LoraConfig:
    """An adapter that does something: peft's own start does nothing."""
    return LoraConfig(
        target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4, init_lora_weights=False, **options
    )


def adapted(model: Any, seed: int = 0, **options: Any) -> Any:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return get_peft_model(model, lora(**options)).eval()


def add(peft: Any, name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        peft.add_adapter(name, lora())


def of(model: Any, processor: Any) -> Fingerprint:
    return fingerprint(wrap_model(model, processor))


def question(family: str, picture: Any) -> Any:
    if family == "llama":
        return "tell me about the cat"
    parts = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is this"}]
    return [{"role": "user", "content": parts}]


@families
def test_scores_and_answers_are_those_of_the_merged_model(picture: Any, family: str) -> None:
    model, processor = tiny_model(family)
    plain = tiny_artefact(model, processor, tau_steer=-1e6, tau_flag=1e6)
    asked = question(family, picture)
    with Guard((model, processor), plain) as guard:
        without = guard.check(asked)
    peft = adapted(model)
    artefact = tiny_artefact(peft, processor, tau_steer=-1e6, tau_flag=1e6)
    with Guard((peft, processor), artefact) as guard:
        live = guard.generate(asked, max_new_tokens=5)
    merged = peft.merge_and_unload()
    artefact = tiny_artefact(merged, processor, tau_steer=-1e6, tau_flag=1e6)
    with Guard((merged, processor), artefact) as guard:
        wanted = guard.generate(asked, max_new_tokens=5)
    assert live.verdict.action is Action.STEER
    assert live.verdict.score == pytest.approx(wanted.verdict.score, abs=1e-4)
    assert live.text == wanted.text
    assert abs(live.verdict.score - without.score) > 1e-2  # the adapter was not asleep


def test_an_artefact_of_the_base_is_refused_under_an_adapter_and_the_other_way_round() -> None:
    model, processor = tiny_model("llava")
    base = tiny_artefact(model, processor)
    peft = adapted(model)
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        Guard((peft, processor), base)
    own = tiny_artefact(peft, processor)
    Guard((peft, processor), own).close()
    with (
        peft.disable_adapter(),
        pytest.raises(ArtefactMismatchError, match="weights_digest"),
    ):
        Guard((peft, processor), own)
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        Guard((peft.unload(), processor), own)


def test_the_unloaded_model_is_the_base_again() -> None:
    model, processor = tiny_model("llama")
    before = of(model, processor)
    peft = adapted(model)
    assert "weights_digest" in before.differences(of(peft, processor))
    assert not before.differences(of(peft.unload(), processor))


def test_every_way_of_changing_what_adapters_do_changes_the_fingerprint() -> None:
    model, processor = tiny_model("llama")
    peft = adapted(model)
    add(peft, "second", 1)
    seen = {"first": of(peft, processor).weights_digest}
    peft.set_adapter("second")
    seen["second"] = of(peft, processor).weights_digest
    peft.set_adapter("default")
    with peft.disable_adapter():
        seen["off"] = of(peft, processor).weights_digest
    layer = wrap_model(peft, processor).model.get_decoder().layers[0].self_attn.q_proj
    layer.set_scale("default", 3.0)
    seen["scaled"] = of(peft, processor).weights_digest
    layer.set_scale("default", 1.0)
    peft.merge_adapter()
    seen["merged"] = of(peft, processor).weights_digest
    peft.unmerge_adapter()
    peft.base_model.set_adapter(["default", "second"])
    seen["both"] = of(peft, processor).weights_digest
    peft.base_model.set_adapter("default")
    peft.delete_adapter("second")
    seen["deleted"] = of(peft, processor).weights_digest
    assert len(set(seen.values())) == len(seen), seen


def test_switching_back_gives_the_fingerprint_back() -> None:
    model, processor = tiny_model("llama")
    peft = adapted(model)
    add(peft, "second", 1)
    before = of(peft, processor)
    peft.set_adapter("second")
    with peft.disable_adapter():
        pass
    peft.set_adapter("default")
    assert not before.differences(of(peft, processor))


def test_each_of_several_adapters_needs_an_artefact_of_its_own(picture: Any) -> None:
    model, processor = tiny_model("llava")
    peft = adapted(model)
    add(peft, "second", 1)
    asked, scores, artefacts = question("llava", picture), {}, {}
    for name in ("default", "second"):
        peft.set_adapter(name)
        artefacts[name] = tiny_artefact(peft, processor, tau_steer=1e6, tau_flag=1e6)
        with Guard((peft, processor), artefacts[name]) as guard:
            scores[name] = guard.check(asked).score
    assert abs(scores["default"] - scores["second"]) > 1e-2
    with pytest.raises(ArtefactMismatchError):
        Guard((peft, processor), artefacts["default"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A family's base model and an adapter for it, saved as people save them; not to be changed."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(family: str) -> tuple[Path, Path]:
        if family not in made:
            base, adapter = (tmp_path_factory.mktemp(f"{family}_{n}") for n in ("base", "lora"))
            model, processor = tiny_model(family)
            model.save_pretrained(base)
            processor.save_pretrained(base)
            adapted(load_model(base).model).save_pretrained(adapter)
            made[family] = base, adapter
        return made[family]

    return get


@pytest.fixture
def lone(folders: Any, tmp_path: Path) -> Path:
    """An adapter of one's own, to damage."""
    return Path(shutil.copytree(folders("llava")[1], tmp_path / "lora"))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@families
def test_a_folder_with_an_adapter_alone_is_loaded_with_its_base(folders: Any, family: str) -> None:
    base, folder = folders(family)
    loaded = load_model(folder)
    wanted = PeftModel.from_pretrained(load_model(base).model, str(folder))
    assert not of(wanted, loaded.processor).differences(fingerprint(loaded))
    assert "weights_digest" in fingerprint(load_model(base)).differences(fingerprint(loaded))
    assert (loaded.source, loaded.model.training) == (str(folder), False)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_processor_beside_the_adapter_is_the_one_used(folders: Any, lone: Path) -> None:
    processor = load_model(folders("llava")[0]).processor
    assert "hello adapter" not in str(load_model(lone).processor.chat_template)
    processor.chat_template = "hello adapter" + str(processor.chat_template)
    processor.save_pretrained(lone)
    assert str(load_model(lone).processor.chat_template).startswith("hello adapter")


def test_an_adapter_beside_its_model_is_left_to_transformers(folders: Any, lone: Path) -> None:
    (lone / "config.json").write_text("{}")
    assert adapter_at(lone) is None
    assert adapter_at(folders("llava")[0]) is None


def test_a_missing_base_is_named_together_with_the_adapter(lone: Path) -> None:
    edit(lone, base_model_name_or_path="./gone")
    with pytest.raises(ModelLoadError, match=r"base model of the adapter .*lora.*no folder gone"):
        load_model(lone)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "IA3"}, "is of type 'IA3'"),
        ({"peft_type": None}, "is of type None"),
    ],
)
def test_other_adapters_are_left_to_their_owner(lone: Path, values: Any, words: str) -> None:
    edit(lone, **values)
    with pytest.raises(ModelLoadError, match=rf"without its base model.*{words}.*load both"):
        load_model(lone)


def test_pickled_adapters_are_not_opened(lone: Path) -> None:
    (lone / "adapter_model.safetensors").unlink()
    (lone / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelLoadError, match=r"has no adapter_model\.safetensors"):
        load_model(lone)


def test_a_damaged_adapter_is_named(lone: Path) -> None:
    path = lone / "adapter_config.json"
    kept = path.read_text()
    for text in ("{broken", "[]", kept.replace('"r": 2', '"r": 3')):
        path.write_text(text)
        with pytest.raises(ModelLoadError, match=r"lora.*(is|or is) damaged"):
            load_model(lone)
    path.write_text(kept)
    weights = lone / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ModelLoadError, match="or is damaged"):
        load_model(lone)


@pytest.mark.parametrize(("change", "words"), [("drop", "lacks 1"), ("add", "has too many by 1")])
@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")
def test_an_adapter_with_holes_or_with_more_is_refused(lone: Path, change: str, words: str) -> None:
    from safetensors.torch import load_file, save_file

    path = lone / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "layers.2" in name)
    if change == "drop":
        del tensors[name]
    else:
        tensors[name.replace("layers.2", "layers.7")] = tensors[name].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"{words} weights.*another model than"):
        load_model(lone)


def test_an_adapter_is_not_put_on_an_offloaded_model(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"partly offloaded.*merge_and_unload"):
        load_model(
            folders("llava")[1], device_map="auto", max_memory={"cpu": 0}, offload_folder=tmp_path
        )


def test_a_revision_asked_for_goes_before_the_adapters(
    folders: Any, lone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guardrail.model import source

    real, asked = source.locate, []

    def note(source: Any, **options: Any) -> Any:
        asked.append(options["revision"])
        return real(folders("llava")[0], **options)

    monkeypatch.setattr(source, "locate", note)
    edit(lone, revision="theirs", base_model_name_or_path="owner/base")
    load_model(lone)
    load_model(lone, revision="mine")
    assert asked == ["theirs", "mine"]
