"""A picture as the model got it: resized, cropped, padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image
    from torch import Tensor

    from guardrail.model.load import LoadedModel
    from guardrail.types import Request


def seen_picture(
    loaded: LoadedModel, inputs: Mapping[str, Any], request: Request, number: int
) -> Image:
    """Picture `number` of a request, with the processor's normalisation undone.

    The original where the processor hands over patches instead of a picture: processors that do
    (Qwen-VL's) neither crop nor pad.
    """
    pixels = inputs.get("pixel_values")
    whole = isinstance(pixels, torch.Tensor) and pixels.ndim == 4 and pixels.shape[1] == 3
    if not whole or pixels is None or pixels.shape[0] != len(request.images):
        return request.images[number]
    picture: Tensor = pixels[number].float()
    sizes = inputs.get("image_sizes")
    if sizes is not None:  # pictures of free size, padded to the largest at the right and below
        height, width = (int(n) for n in sizes[number])
        if height <= picture.shape[1] and width <= picture.shape[2]:
            picture = picture[:, :height, :width]
    return _image(_restored(picture, getattr(loaded.processor, "image_processor", None)))


def _restored(picture: Tensor, processor: Any) -> Tensor:
    """(3, height, width) as the processor gave it -> bytes of the same shape."""
    if getattr(processor, "do_normalize", False):
        mean, std = (
            torch.tensor(getattr(processor, name)).reshape(-1, 1, 1)
            for name in ("image_mean", "image_std")
        )
        picture = picture * std + mean
    factor = getattr(processor, "rescale_factor", None) or 1 / 255
    if getattr(processor, "do_rescale", True):
        picture = picture / factor
    return picture.round().clamp(0, 255).to(torch.uint8)


def _image(picture: Tensor) -> Image:
    from PIL import Image

    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
