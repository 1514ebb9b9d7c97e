"""Which model is this? Digests of its weights, configuration, tokenizer and processor.

Nothing is cached: a fingerprint always describes the model as it is now, edits in place included.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import ProcessorMixin

from guardrail.artefact.header import Fingerprint
from guardrail.model.weights import weights_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from guardrail.model.load import LoadedModel

__all__ = ["Fingerprint", "fingerprint"]

# How a model is stored or run, not what it is.
_VOLATILE = {
    "_attn_implementation",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_experts_implementation_internal",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "dtype",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
# Of a processor: the tokenizer and the template have a digest of their own.
_NOT_PROCESSOR = {
    "_processor_class",
    "auto_map",
    "chat_template",
    "data_format",
    "device",
    "processor_class",
    "return_tensors",
    "tokenizer",
}
# The padding and truncation of the last call stay in a fast tokenizer: they are no part of it.
_NOT_TOKENIZER = {"padding", "truncation", "version"}


def fingerprint(loaded: LoadedModel) -> Fingerprint:
    """The fingerprint of a model as it is in memory now.

    Raises:
        UnsupportedModelError: some weights cannot be read (see `weights_digest`).
    """
    model = loaded.model
    return Fingerprint(
        architecture=type(model).__name__,
        config_digest=_config_digest(model.config),
        weights_digest=weights_digest(model),
        tokenizer_digest=_tokenizer_digest(loaded),
        processor_digest=_processor_digest(loaded.processor),
        code_digest=_code_digest([model, model.config, loaded.processor, loaded.tokenizer]),
        revision=loaded.revision,
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation=_quantisation(model.config),
        trust_remote_code=loaded.trust_remote_code,
    )


def _digest(value: object) -> str:
    """SHA-256 of sorted JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without(value: Any, names: set[str]) -> Any:
    """`value` less the keys in `names` and less empty ones (None), at every depth."""
    if isinstance(value, dict):
        kept = {str(k): v for k, v in value.items() if str(k) not in names and v is not None}
        return {key: _without(inner, names) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_without(inner, names) for inner in value]
    return value


def _config_digest(config: PreTrainedConfig) -> str:
    return _digest(_without(config.to_dict(), _VOLATILE))


def _quantisation(config: PreTrainedConfig) -> str | None:
    """The name of the quantisation method, or None."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", method))


def _tokenizer_digest(loaded: LoadedModel) -> str:
    """Vocabulary, added tokens, normaliser, pre-tokeniser, special tokens and chat templates."""
    tokenizer = loaded.tokenizer
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        parsed = json.loads(backend.to_str())
        core: Any = {key: value for key, value in parsed.items() if key not in _NOT_TOKENIZER}
    else:
        core = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    added = tokenizer.added_tokens_decoder.items()
    return _digest(
        {
            "core": core,
            "added": [(number, str(token), token.special) for number, token in sorted(added)],
            "special": {name: str(token) for name, token in _special_tokens(tokenizer)},
            "template": _template(loaded),
        }
    )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> Iterable[tuple[str, Any]]:
    return sorted((name, token) for name, token in tokenizer.special_tokens_map.items())


def _template(loaded: LoadedModel) -> Any:
    """The chat template in use: a processor's own goes before its tokenizer's."""
    own = getattr(loaded.processor, "chat_template", None)
    return own if own is not None else getattr(loaded.tokenizer, "chat_template", None)


def _processor_digest(processor: object) -> str:
    """What happens to pictures before the model; the same for every plain tokenizer.

    The torchvision and Pillow versions of an image processor count as one: they round resized
    pixels differently, by less than the noise of any photograph.
    """
    if not isinstance(processor, ProcessorMixin):
        return _digest(None)
    settings = processor.to_dict()
    names = processor.get_attributes()  # type: ignore[no-untyped-call]
    for name in names:
        part: Any = getattr(processor, name, None)
        if name != "tokenizer" and hasattr(part, "to_dict"):
            settings[name] = part.to_dict()
            kind = type(part).__name__
            settings[name]["image_processor_type"] = kind.removesuffix("Fast").removesuffix("Pil")
    return _digest([type(processor).__name__, _without(settings, _NOT_PROCESSOR)])


def _code_digest(objects: Iterable[object]) -> str | None:
    """The Python files of the model's own repository that were run, or None if there were none."""
    packages = set()
    for thing in objects:
        for kind in type(thing).__mro__:
            if kind.__module__.startswith("transformers_modules."):
                packages.add(kind.__module__.rpartition(".")[0])
    roots = [p + "." for p in packages if not any(p.startswith(q + ".") for q in packages)]
    files = set()  # one file may have been copied into several packages
    for name, module in sys.modules.copy().items():
        root = next((root for root in roots if name.startswith(root)), None)
        if root is not None and getattr(module, "__file__", None):
            content = Path(inspect.getfile(module)).read_bytes()
            if content:  # else a package's `__init__.py`, which is there or not
                files.add((name.removeprefix(root), hashlib.sha256(content).hexdigest()))
    return _digest(sorted(files)) if files else None
