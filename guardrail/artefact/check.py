"""Whether the tensors of an artefact fit each other and its header."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.errors import ArtefactFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from guardrail.artefact.header import Header

_PER_LAYER = ("direction", "mu_safe", "mu_unsafe")
_PER_READOUT = ("readout_zero", "readout_gap", "readout_offset_image", "readout_offset_images")
_STEERING = ("steer_offset_image", "steer_offset_images")
# Only in artefacts that were fitted with videos; both where there is steering.
VIDEO_READOUT, VIDEO_STEERING = "readout_offset_video", "steer_offset_video"


def check_tensors(header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as contiguous float32 on the CPU, all there, of the right shape and finite.

    Raises:
        ArtefactFormatError: naming the tensor or layer that does not fit.
    """
    import torch

    expected = _expected_shapes(header, tensors)
    if set(tensors) != set(expected):
        missing = ", ".join(sorted(set(expected) - set(tensors))) or "none"
        unknown = ", ".join(sorted(set(tensors) - set(expected))) or "none"
        raise ArtefactFormatError(f"tensors missing: {missing}; not known here: {unknown}")
    plain = {}
    for name, shape in expected.items():
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        if tuple(value.shape) != shape:
            raise ArtefactFormatError(f"{name} has shape {tuple(value.shape)}, wanted {shape}")
        if not bool(torch.isfinite(value).all()):
            raise ArtefactFormatError(f"{name} holds values that are not finite")
        plain[name] = value
    _check_layers(header, plain)
    return plain


def _expected_shapes(header: Header, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    direction = tensors.get("direction")
    if direction is None or direction.dim() != 2 or direction.numel() == 0:
        raise ArtefactFormatError("there is no `direction` of shape (layers, d_model)")
    layers, width = direction.shape
    read = len(header.readout.layers)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_LAYER, (layers, width))
    shapes |= {"readout_weight": (read, width), **dict.fromkeys(_PER_READOUT, (read,))}
    if header.steering is not None:
        shapes |= dict.fromkeys(_STEERING, ())
    if "video" in header.offsets or VIDEO_READOUT in tensors:
        shapes[VIDEO_READOUT] = (read,)
        if header.steering is not None:
            shapes[VIDEO_STEERING] = ()
    return shapes


def _check_layers(header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Layer indices exist, gaps are positive, directions have length 1 (or 0: unusable)."""
    count = len(tensors["direction"])
    steered = [header.steering.layer] if header.steering else []
    named = [*header.readout.layers, *steered, *(row.layer for row in header.layers)]
    outside = sorted({layer for layer in named if not 0 <= layer < count})
    if outside:
        raise ArtefactFormatError(f"the header names layers {outside} of {count}")
    if not bool((tensors["readout_gap"] > 0).all()):
        raise ArtefactFormatError("readout_gap must be positive: scores are divided by it")
    lengths = tensors["direction"].double().norm(dim=1)
    unit, zero = (lengths - 1).abs() < 1e-3, lengths < 1e-6
    if not bool((unit | zero).all()):
        raise ArtefactFormatError("every row of `direction` must have length 1, or 0 if unusable")
    if steered and not bool(unit[steered[0]]):
        raise ArtefactFormatError(f"there is no direction at the steering layer {steered[0]}")
