"""LoRA adapters: in a folder of their own, beside the base model they name, or around a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.errors import ModelLoadError, UnsupportedModelError
from guardrail.model.source import Source, locate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter; `base` is the folder or Hub id of the model it was made for."""

    folder: Path
    base: str
    revision: str | None

    def locate_base(self, revision: str | None, *, local_files_only: bool) -> Source:
        """Where the base model is, at `revision` or at the one the adapter names."""
        wanted = revision or self.revision
        try:
            return locate(self.base, revision=wanted, local_files_only=local_files_only)
        except ModelLoadError as error:
            raise ModelLoadError(
                f"the base model of the adapter {self.folder} was not found: {error}"
            ) from error

    @property
    def has_processor(self) -> bool:
        """Whether the adapter brings its own processor or tokenizer, which then is the one used."""
        return any((self.folder / name).is_file() for name in _PROCESSORS)

    def put_on(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` with the adapter inside its layers, active.

        Raises:
            ModelLoadError: peft is missing, or the adapter is damaged or made for another model.
            UnsupportedModelError: parts of the model are offloaded.
        """
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"the adapter {self.folder} cannot be put on a model that is partly offloaded; "
                "merge it into the weights first (peft's merge_and_unload) and load the result"
            )
        try:
            from peft import PeftConfig, PeftModel
        except ImportError as error:
            raise ModelLoadError(f"{self.folder} is a PEFT adapter: pip install peft") from error
        try:
            config = PeftConfig.from_pretrained(str(self.folder))
            config.inference_mode = True
            shell: Any = PeftModel(model, config)
            report = shell.load_adapter(str(self.folder), "default", torch_device="cpu")
        except Exception as error:  # a border: whatever peft trips over, the adapter is at fault
            said = " ".join(str(error).split())[:400]
            raise ModelLoadError(
                f"the adapter {self.folder} does not fit {self.base}, or is damaged; save it "
                f"again with peft's save_pretrained ({said})"
            ) from error
        self._require_all(report)
        inside: PreTrainedModel = without_peft_shell(shell)
        return inside

    def _require_all(self, report: Any) -> None:
        """Refuse an adapter with holes (peft fills them) or with more than the model has room."""
        for what, names in (
            ("lacks", report.missing_keys),
            ("has too many by", report.unexpected_keys),
        ):
            if names:
                raise ModelLoadError(
                    f"the adapter {self.folder} {what} {len(names)} weights ({names[0]}, ...): it "
                    f"was made for another model than {self.base}, or is damaged"
                )


def adapter_at(source: str | Path) -> Adapter | None:
    """The adapter in a folder that holds no model; None for anything else.

    Raises:
        ModelLoadError: the adapter is of a kind that is not loaded here, or names no base model.
    """
    folder = Path(source).expanduser()
    path = folder / CONFIG
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    try:
        config: Any = json.loads(path.read_text("utf-8"))
        base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} is damaged; save the adapter again") from error
    if kind != "LORA" or not base or not (folder / WEIGHTS).is_file():
        found = "names no base model" if not base else f"is of type {kind!r}"
        if kind == "LORA" and base:
            found = f"has no {WEIGHTS}"
        raise ModelLoadError(
            f"{folder} holds a PEFT adapter without its base model, and it {found} (loaded here: "
            f"LoRA in {WEIGHTS}, with base_model_name_or_path); load both yourself and pass the "
            "model and processor to the guard, or merge the adapter into the weights"
        )
    return Adapter(folder, str(base), config.get("revision"))


def without_peft_shell(model: Any) -> Any:
    """The transformers model inside a PEFT model, adapters included; other models as they are.

    Raises:
        UnsupportedModelError: the PEFT model prepends virtual prompt tokens.
    """
    if not type(model).__module__.startswith("peft."):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            "this PEFT model prepends virtual tokens to the prompt; a guard reads the prompt's own "
            "last position, so only adapters inside the layers (LoRA and the like) are supported"
        )
    return model.get_base_model()
