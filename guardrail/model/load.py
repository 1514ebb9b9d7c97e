"""A model and its processor, from the Hub, from a folder or from memory.

Importing this module loads no tensor library: a model that is loaded, or wrapped, does.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from guardrail.errors import ConfigurationError, ModelLoadError, UnsupportedModelError
from guardrail.extras import require
from guardrail.model.source import Source, adapter_at, locate, reason, without_peft_shell

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from transformers import (
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

IN_MEMORY = "in memory"

T = TypeVar("T")


class Processing:
    """What feeds a model: its processor, and where it is from."""

    processor: ProcessorMixin | PreTrainedTokenizerBase
    source: str

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer, or the processor itself when it is one."""
        tokenizer: Any = getattr(self.processor, "tokenizer", self.processor)
        result: PreTrainedTokenizerBase = tokenizer
        return result

    @property
    def name(self) -> str:
        """What to call the model: where it came from."""
        return self.source

    @property
    def is_multimodal(self) -> bool:
        """Whether the processor takes pictures."""
        return getattr(self.processor, "image_processor", None) is not None


@dataclass(frozen=True)
class LoadedModel(Processing):
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
    def device(self) -> torch.device:
        """Where inputs belong: the device on which the token embeddings run."""
        import torch

        embeddings: Any = self.model.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)
        # offloaded weights wait on `meta`; accelerate's hook knows where they will run
        for each in getattr(hook, "hooks", (hook,)):
            place = getattr(each, "execution_device", None)
            if place is not None:
                return torch.device(place)
        return torch.device(embeddings.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """What pictures are given in: the dtype of the first weights that can be calculated with.

        8-bit floats are a way of storing weights.
        """
        import torch

        kinds = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next((kind for kind in kinds if kind.itemsize > 1), torch.get_default_dtype())

    @property
    def layer_count(self) -> int:
        """How many decoder layers there are."""
        return int(self.model.config.get_text_config(decoder=True).num_hidden_layers)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    max_memory: dict[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> LoadedModel:
    """Load a folder or a Hub repository for guarding, in eval mode.

    Vision-language models are preferred; a text-only configuration gives a causal language model
    and its tokenizer. All files come from one commit of the repository. A folder that holds a LoRA
    adapter alone is loaded with the base model it names.

    `device` defaults to the GPU if there is one; `device_map` spreads a model over several devices
    and, within `max_memory`, over the CPU and `offload_folder` (give `device` or `device_map`).
    `trust_remote_code` runs Python code out of the repository (and out of the one that an adapter
    names as its base): only for sources you trust.

    Raises:
        ModelLoadError: the message says what is missing and what to do.
        ConfigurationError: `device` and `device_map` are both given, there is nothing to spread, or
            no such device.
        MissingExtraError: a model that is spread or quantised needs the extra `offload`.
    """
    from transformers import AutoConfig

    spread = _spread(device, device_map, max_memory, offload_folder)
    target = _target(device)
    adapter = adapter_at(source)
    if adapter is None:
        place = locate(source, revision=revision, local_files_only=local_files_only)
    else:
        place = adapter.locate_base(revision, local_files_only=local_files_only)
    common = _common(place, revision, trust_remote_code, local_files_only)
    config = _attempt("configuration", place.name, AutoConfig.from_pretrained, **common)
    kind, multimodal = _auto_class(config, place.name)
    if quantization_config:
        common["quantization_config"] = quantization_config
    model = _model(kind, config, place, spread=spread, target=target, dtype=dtype, **common)
    common.pop("quantization_config", None)
    name = processor_from = place.name
    if adapter is not None:
        model, name = adapter.put_on(model), str(adapter.folder)
        processor_from = name if adapter.has_processor else place.name
    processor = _processor(processor_from, multimodal, common)
    return LoadedModel(model.eval(), processor, name, place.revision, trust_remote_code)


def load_processor(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> tuple[Any, GenerationConfig]:
    """A model's processor (or tokenizer) and how it generates by default, without its weights.

    Raises:
        ModelLoadError: the message says what is missing and what to do.
    """
    from transformers import AutoConfig, GenerationConfig

    place = locate(source, revision=revision, local_files_only=local_files_only)
    common = _common(place, revision, trust_remote_code, local_files_only)
    config = _attempt("configuration", place.name, AutoConfig.from_pretrained, **common)
    _, multimodal = _auto_class(config, place.name)
    processor = _processor(place.name, multimodal, common)
    common.pop("trust_remote_code")
    try:
        generation = GenerationConfig.from_pretrained(place.name, **common)
    except OSError:  # none beside the weights
        generation = GenerationConfig.from_model_config(config)
    return processor, generation


def _common(
    place: Source, revision: str | None, trust_remote_code: bool, local_files_only: bool
) -> dict[str, Any]:
    """What every part of a model is loaded with: all come from one commit."""
    return {
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_files_only or not place.online,
        "revision": place.revision or revision or "main",
    }


def wrap_model(model: Any, processor: Any, *, source: str = IN_MEMORY) -> LoadedModel:
    """A model that is already in memory; it is put in eval mode.

    Of a PEFT model with adapters inside its layers (LoRA and the like), the model that holds them
    is taken.

    Raises:
        TypeError: not a transformers model, or not a processor or tokenizer.
        UnsupportedModelError: the model cannot generate, or prepends virtual prompt tokens.
    """
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    model = without_peft_shell(model)
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


def _spread(
    device: object, device_map: object, max_memory: object, offload_folder: str | Path | None
) -> dict[str, Any]:
    """Keywords for a model on several devices; none for a model on one."""
    if device is not None and device_map is not None:
        raise ConfigurationError("give `device` or `device_map`, not both")
    if device_map is None:
        if max_memory is not None or offload_folder is not None:
            raise ConfigurationError(
                "`max_memory` and `offload_folder` say how to spread a model: add device_map='auto'"
            )
        return {}
    options = {"max_memory": max_memory, "offload_folder": offload_folder}
    return {"device_map": device_map} | {k: v for k, v in options.items() if v is not None}


def _target(device: str | torch.device | None) -> torch.device:
    """The device for a model on one; refused now, not once gigabytes are read, if it is not there.

    Raises:
        ConfigurationError: naming the devices that are there.
    """
    import torch

    count = {
        "cuda": torch.cuda.device_count(),
        "xpu": torch.xpu.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with suppress(RuntimeError):  # a name that torch does not know
        wanted = torch.device(device)
        if wanted.type not in count or (wanted.index or 0) < count[wanted.type]:
            return wanted
    there = [f"{kind}:{number}" for kind, many in count.items() for number in range(many)]
    raise ConfigurationError(
        f"there is no device {str(device)!r} for torch {torch.__version__} on this machine, only "
        f"{', '.join([*there, 'cpu'])}; name one of these, or none for the best there is"
    )


def _auto_class(config: PreTrainedConfig, source: str) -> tuple[Any, bool]:
    """The auto class that knows this configuration, and whether it takes pictures."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

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


def _model(
    kind: Any,
    config: PreTrainedConfig,
    place: Source,
    *,
    spread: dict[str, Any],
    target: torch.device,
    **options: Any,
) -> Any:
    """The model with all its weights, on `target` or spread."""
    given = options.get("quantization_config")
    quantised = given or getattr(config, "quantization_config", None)
    if quantised and not spread:  # such a model is better not moved once it is there
        spread = {"device_map": {"": target}}
    if spread:
        require("accelerate")
    what = "quantised weights" if quantised else "weights"
    options |= {"config": config, "output_loading_info": True, **spread}
    model, info = _attempt(what, place.name, kind.from_pretrained, **options)
    own_code = getattr(config, "auto_map", None) and not options["trust_remote_code"]
    _require_all_weights(info, place.name, own_code=bool(own_code))
    return model if spread else model.to(target)


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


def _processor(source: str, multimodal: bool, options: dict[str, Any]) -> Any:
    """The processor, or the tokenizer of a model that reads text only."""
    from transformers import AutoProcessor, AutoTokenizer

    kind: Any = AutoProcessor if multimodal else AutoTokenizer
    processor = _attempt("processor", source, kind.from_pretrained, **options)
    _require_processor(processor, source, multimodal=multimodal)
    return processor


def _require_processor(processor: object, source: str, *, multimodal: bool) -> None:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

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


def _attempt(what: str, source: str, load: Callable[..., T], **options: Any) -> T:
    """One part of the model; every failure becomes a ModelLoadError.

    What is worth another try of a download is tried again by huggingface_hub.
    """
    from safetensors import SafetensorError

    try:
        return load(source, **options)
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
