"""A model and its processor, from the Hub, from a folder or from memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from guardrail.errors import ConfigurationError, ModelLoadError, UnsupportedModelError
from guardrail.hub import with_retries
from guardrail.model.source import locate, reason

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedConfig

T = TypeVar("T")

IN_MEMORY = "in memory"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with what feeds it; `revision` is the commit, when the Hub gave one."""

    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    source: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """What to call the model: where it came from, or its class if it was made in memory."""
        return type(self.model).__name__ if self.source == IN_MEMORY else self.source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer, or the processor itself when it is one."""
        tokenizer: Any = getattr(self.processor, "tokenizer", self.processor)
        result: PreTrainedTokenizerBase = tokenizer
        return result

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the device on which the token embeddings run."""
        embeddings: Any = self.model.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)
        # offloaded weights wait on `meta`; accelerate's hook knows where they will run
        place = getattr(hook, "execution_device", None)
        return torch.device(embeddings.weight.device if place is None else place)

    @property
    def layer_count(self) -> int:
        """How many decoder layers there are."""
        return int(self.model.config.get_text_config(decoder=True).num_hidden_layers)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def is_multimodal(self) -> bool:
        """Whether the processor takes pictures."""
        return getattr(self.processor, "image_processor", None) is not None


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> LoadedModel:
    """Load a folder or a Hub repository for guarding, in eval mode.

    Vision-language models are preferred; a text-only configuration gives a causal language model
    and its tokenizer. All files come from one commit of the repository. `device` defaults to the
    GPU if there is one; `device_map` spreads a model over several (give one or the other).
    `trust_remote_code` runs Python code out of the repository: only for sources you trust.

    Raises:
        ModelLoadError: the message says what is missing and what to do.
        ConfigurationError: `device` and `device_map` are both given.
    """
    if device is not None and device_map is not None:
        raise ConfigurationError("give `device` or `device_map`, not both")
    place = locate(source, revision=revision, local_files_only=local_files_only)
    common: dict[str, Any] = {
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_files_only,
        "revision": place.revision or revision or "main",
    }
    config = _attempt("configuration", place.name, AutoConfig.from_pretrained, **common)
    kind, multimodal = _auto_class(config, place.name)
    weights = {"config": config, "dtype": dtype, "output_loading_info": True, **common}
    weights |= {"device_map": device_map} if device_map is not None else {}
    weights |= {"quantization_config": quantization_config} if quantization_config else {}
    model, info = _attempt("weights", place.name, kind.from_pretrained, **weights)
    own_code = bool(getattr(config, "auto_map", None)) and not trust_remote_code
    _require_all_weights(info, place.name, own_code=own_code)
    processor_class: Any = AutoProcessor if multimodal else AutoTokenizer
    processor = _attempt("processor", place.name, processor_class.from_pretrained, **common)
    _require_processor(processor, place.name, multimodal=multimodal)
    quantised = getattr(model.config, "quantization_config", None) is not None
    if device_map is None and not quantised:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        model = model.to(device if device is not None else default)
    return LoadedModel(model.eval(), processor, place.name, place.revision, trust_remote_code)


def wrap_model(model: Any, processor: Any, *, source: str = IN_MEMORY) -> LoadedModel:
    """A model that is already in memory; it is put in eval mode.

    Of a PEFT model with adapters inside its layers (LoRA and the like), the model that holds them
    is taken.

    Raises:
        TypeError: not a transformers model, or not a processor or tokenizer.
        UnsupportedModelError: the model cannot generate, or prepends virtual prompt tokens.
    """
    model = _without_peft_shell(model)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers PreTrainedModel; got {type(model).__name__} "
            "(pass the model itself, not a compiled or wrapped one)"
        )
    if not isinstance(processor, ProcessorMixin | PreTrainedTokenizerBase):
        raise TypeError(
            "processor must be a transformers processor or tokenizer, e.g. from "
            f"AutoProcessor.from_pretrained; got {type(processor).__name__}"
        )
    if not model.can_generate():
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot generate; load it as "
            "AutoModelForImageTextToText or AutoModelForCausalLM"
        )
    remote = type(model).__module__.startswith("transformers_modules.")
    model.eval()  # type: ignore[no-untyped-call]
    return LoadedModel(model, processor, source, None, remote)


def _attempt(what: str, source: str, load: Callable[..., T], **options: Any) -> T:
    """One part of the model, with retries; every failure becomes a ModelLoadError."""
    from safetensors import SafetensorError

    try:
        return with_retries(lambda: load(source, **options), what=f"loading the {what}")
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelLoadError(reason(what, source, error)) from error


def _auto_class(config: PreTrainedConfig, source: str) -> tuple[Any, bool]:
    """The auto class that knows this configuration, and whether it takes pictures."""
    remote = getattr(config, "auto_map", None) or {}
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText, hasattr(config, "vision_config")
    if "AutoModelForImageTextToText" in remote:
        return AutoModelForImageTextToText, True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM, hasattr(config, "vision_config")
    raise ModelLoadError(
        f"{source} is a {config.model_type!r} model; a guard needs a vision-language model "
        "(image-text-to-text) or a causal language model"
    )


def _require_all_weights(info: dict[str, Any], source: str, *, own_code: bool) -> None:
    """Refuse a checkpoint with holes: transformers would fill them with random numbers.

    `own_code`: the checkpoint brings code that was not allowed to run, so another class was used.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        advice = "Download the checkpoint again, or save it again completely"
        if own_code:
            advice = (
                "The model brings code of its own, which was not run: if you trust it, pass "
                "trust_remote_code=True (--trust-remote-code)"
            )
        raise ModelLoadError(
            f"{source} lacks {len(missing)} of the model's weights ({shown}); the rest would run "
            f"on random numbers. {advice}"
        )


def _require_processor(processor: object, source: str, *, multimodal: bool) -> None:
    if multimodal and getattr(processor, "image_processor", None) is None:
        raise ModelLoadError(
            f"{source} has no processor that takes pictures (found {type(processor).__name__}); "
            "save the model's processor beside the weights: processor.save_pretrained(folder)"
        )
    if not isinstance(processor, ProcessorMixin | PreTrainedTokenizerBase):
        raise ModelLoadError(
            f"{source} has no tokenizer (found {type(processor).__name__}); "
            "save it beside the weights: tokenizer.save_pretrained(folder)"
        )


def _without_peft_shell(model: Any) -> Any:
    """The transformers model inside a PEFT model, adapters included."""
    if not type(model).__module__.startswith("peft."):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            "this PEFT model prepends virtual tokens to the prompt; a guard reads the prompt's own "
            "last position, so only adapters inside the layers (LoRA and the like) are supported"
        )
    return model.get_base_model()
