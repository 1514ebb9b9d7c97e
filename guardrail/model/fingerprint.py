"""Which model is this? Digests of its weights, configuration, tokenizer and processor.

Nothing is cached: a fingerprint always describes the model as it is now, edits in place included.

**Weights** have one digest, read by sampling. They are edited by whole matrices (fine-tuning,
merging), by rows and columns (a token, a neuron, a residual channel) or by rank-one updates, which
touch nearly everything. So of every matrix one value is read from each row and one from each
column, at places drawn from the tensor's name, and small tensors are read whole. What can *not* be
seen is a change confined to values that are not read, or smaller than the grid below.

Casting a model must not make it another one, so values are compared on bfloat16's grid: clamped to
float16's range, rounded to bfloat16, tiny ones flushed to zero. float32, bfloat16 and float16
copies of the same bfloat16 or float16 checkpoint agree, and so do float32 and bfloat16 copies of a
float32 checkpoint. A float32 checkpoint cast to float16 is rounded twice and may count as another
model. Integers and 8-bit floats (quantised weights) are compared bit for bit.

**4-bit weights** of bitsandbytes are read as they were stored, in whatever order its kernels keep
them. On CPUs with AVX512-BF16 a layer's first forward pass in eval mode re-orders its weight in
place and rounds the scales to bfloat16. `state_dict` puts the order of the weight back, but not
that of the scales, so that the layer computes something else from then on (bitsandbytes 0.50). Code
that only *looks* at a model must therefore stay away from `state_dict`; here the order is undone on
a copy, and the scales are rounded either way, so that a model is the same before and after its
first pass.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from guardrail.artefact.header import Fingerprint
from guardrail.errors import ArtefactMismatchError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

    from guardrail.artefact import Artefact
    from guardrail.model.load import LoadedModel

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

WHOLE = 4096  # tensors of up to this many values are read whole

VECTOR = 65_536  # at most this many values of a long vector are read, evenly spread

_LARGEST = 65_504.0  # float16's

_SMALLEST = 2.0**-16  # below this float16 has fewer bits than bfloat16

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

_ROWS = 32  # output rows that bitsandbytes' CPU kernel keeps together


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


def require_fitted_on(
    artefact: Artefact, loaded: LoadedModel, *, allow_mismatch: bool = False
) -> Fingerprint:
    """The model's fingerprint, which must be that of the model the artefact was fitted on.

    Raises:
        ArtefactMismatchError: it is another one's and `allow_mismatch` is false, or the numbers of
            layers or the widths differ, which nothing allows.
    """
    running = fingerprint(loaded)
    shapes = artefact.shape_differences(loaded.layer_count, loaded.d_model)
    fields = artefact.header.fingerprint.differences(running) | shapes
    if shapes or (fields and not allow_mismatch):
        raise ArtefactMismatchError(fields)
    return running


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
            "special": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())},
            "template": _template(loaded),
        }
    )


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


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 over name, shape and sampled values of every entry of the state dict.

    Tied weights count once; adapters inside the layers count, with their scale and whether they
    are switched on; weights that accelerate keeps on the CPU or on disk are read from there.

    Raises:
        UnsupportedModelError: weights that are not there (`meta`) or spread over processes.
    """
    total = hashlib.sha256()
    for name, value in _entries(model):
        if isinstance(value, Tensor):
            kind = "float" if value.dtype in _FLOATS else str(value.dtype)
            total.update(f"{name}|{tuple(value.shape)}|{kind}|".encode())
            total.update(_values(name, value))
        else:  # a module's extra state
            total.update(f"{name}|{json.dumps(value, sort_keys=True, default=repr)}".encode())
    total.update(json.dumps(_adapters(model), sort_keys=True).encode())
    return total.hexdigest()


def _entries(model: PreTrainedModel) -> Iterator[tuple[str, object]]:
    """Every parameter and buffer of the state dict once, unpacked, from wherever it lies."""
    stored = _stored(model)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for name, value in stored.items():
        if id(value) in seen or _is_copy(model, stored, name, tied.get(name)):
            continue
        seen.add(id(value))
        if is_four_bit(value):
            yield from four_bit_parts(name, value)
        elif isinstance(value, Tensor):
            yield from _plain(name, _at_hand(model, name, value).detach())
        else:
            yield name, value


def _stored(model: nn.Module) -> dict[str, Any]:
    """As `model.state_dict(keep_vars=True)`, which would change 4-bit weights that have run."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found |= own_tensors(module, f"{path}." if path else "")
    return found


def _is_copy(model: nn.Module, stored: Mapping[str, Any], name: str, source: str | None) -> bool:
    """Whether a tied weight still equals its source: offloading makes two tensors of them."""
    if source is None or not all(isinstance(stored.get(n), Tensor) for n in (name, source)):
        return False
    one, other = (_at_hand(model, n, stored[n]).detach() for n in (name, source))
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return _values(source, one) == _values(source, other)


def _plain(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The ordinary tensors inside a packed one (a quantised tensor subclass)."""
    if type(value).__name__ == "DTensor":
        raise UnsupportedModelError(
            f"{name} is spread over several processes (tensor parallelism); load the model with "
            "device_map instead"
        )
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    parts, _ = value.__tensor_flatten__()
    for part in parts:
        yield from _plain(f"{name}.{part}", getattr(value, part))


def _at_hand(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """`value`, or what accelerate will put in its place when it is offloaded."""
    if value.device.type != "meta":
        return value
    owner, _, leaf = name.rpartition(".")
    hook = getattr(model.get_submodule(owner), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        kept: Any = getattr(each, "weights_map", None)
        if kept is not None and leaf in kept:
            found: Tensor = kept[leaf]
            return found
    raise UnsupportedModelError(
        f"{name} has no values (it is on the `meta` device and not offloaded by accelerate); "
        "load the model's weights before guarding it"
    )


def _values(name: str, tensor: Tensor) -> bytes:
    """The sampled values of one tensor, on a grid that survives casting."""
    places = _places(name, tensor).to(tensor.device)
    if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
        tensor = tensor.view(torch.uint8)
    taken = tensor[torch.unravel_index(places, tensor.shape)] if tensor.dim() else tensor
    if tensor.dtype in _FLOATS:
        taken = taken.float().clamp(-_LARGEST, _LARGEST).bfloat16()
        taken = torch.where(taken.abs() < _SMALLEST, torch.zeros_like(taken), taken)
        taken = taken.view(torch.int16)
    return taken.cpu().contiguous().numpy().tobytes()


def _places(name: str, tensor: Tensor) -> Tensor:
    """Flat indices to read, drawn from the name: all, or one in every row and every column."""
    count = tensor.numel()
    if count <= WHOLE:
        return torch.arange(count)
    seed = hashlib.sha256(name.encode()).digest()
    a, b, c, d = (int.from_bytes(seed[i : i + 4], "little") % (1 << 20) for i in (0, 4, 8, 12))
    columns = tensor.shape[-1]
    rows = count // columns
    if min(rows, columns) == 1:  # a long vector, or a packed matrix laid out as one
        step = -(-count // VECTOR)
        return torch.arange(a % step, count, step)
    row, column = torch.arange(rows), torch.arange(columns)
    one_per_row = row * columns + (row * (2 * a + 1) + b) % columns
    one_per_column = ((column * (2 * c + 1) + d) % rows) * columns + column
    return torch.cat([one_per_row, one_per_column])


def _adapters(model: nn.Module) -> list[object]:
    """Which adapters act, and how strongly: their matrices alone do not tell."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [
        [
            name,
            sorted(module.active_adapters),
            bool(module.disable_adapters),
            sorted(module.merged_adapters),
            {str(k): float(v) for k, v in getattr(module, "scaling", {}).items()},
        ]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]


def own_tensors(module: nn.Module, prefix: str) -> dict[str, Any]:
    """A module's own part of the state dict, values included; nothing in the module changes."""
    found: dict[str, Any] = {}
    kind: Any = nn.Module if is_four_bit(getattr(module, "weight", None)) else type(module)
    kind._save_to_state_dict(module, found, prefix, True)
    return found


def is_four_bit(value: object) -> bool:
    """Whether `value` is a weight that bitsandbytes has quantised to 4 bits."""
    return type(value).__name__ == "Params4bit" and getattr(value, "quant_state", None) is not None


def four_bit_parts(name: str, weight: Any) -> Iterator[tuple[str, object]]:
    """The codes (two to a byte), the scales (bfloat16), and how to read them."""
    state = weight.quant_state
    rows, columns = state.shape
    codes, scales = weight.data.view(torch.uint8), state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        codes, scales = _in_order(codes, rows, columns), scales.T
    elif state.nested:
        from bitsandbytes.functional import dequantize_blockwise

        scales = dequantize_blockwise(scales, state.state2) + state.offset
    yield f"{name}.codes", codes.reshape(rows, columns // 2)
    yield f"{name}.scales", scales.float().bfloat16().reshape(rows, -1)
    yield f"{name}.format", json.dumps([state.quant_type, state.blocksize, rows, columns])


def _in_order(packed: Tensor, rows: int, columns: int) -> Tensor:
    """Undo the CPU kernel's order: (rows, columns / 2) -> the same bytes as they were stored.

    A block of 32 rows lies column pair by column pair; of each pair the first 16 rows are in the
    low halves of 32 bytes and the others in the high halves.
    """
    halves = packed.reshape(-1, _ROWS)
    values = torch.cat([halves & 0xF, halves >> 4], dim=1)
    pairs = values.reshape(rows // _ROWS, columns // 2, _ROWS, 2).transpose(1, 2)
    return (pairs[..., 0] << 4) | pairs[..., 1]
