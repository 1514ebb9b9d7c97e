"""Inputs as a user of transformers makes them, without the guard's encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from guardrail.types import ImagePart, TextPart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.model.load import LoadedModel
    from guardrail.types import Clip, Request


def plain_inputs(loaded: LoadedModel, *requests: Request) -> dict[str, Any]:
    """The inputs of one request, or of a batch padded on the left, on the model's device."""
    processor: Any = loaded.processor
    texts_only = isinstance(processor, PreTrainedTokenizerBase)
    chats = [[_turn(message, texts_only) for message in r.messages] for r in requests]
    parts = [part for r in requests for message in r.messages for part in message.parts]
    clips = [part.clip for part in parts if isinstance(part, VideoPart)]
    options: dict[str, Any] = {}
    if len(requests) > 1 and texts_only:
        options = {"padding": True, "tokenizer_kwargs": {"padding_side": "left"}}
    elif len(requests) > 1:
        options = {"processor_kwargs": {"padding": True, "padding_side": "left"}}
    if clips:
        options.setdefault("processor_kwargs", {}).update(
            do_sample_frames=False, video_metadata=[_metadata(clip) for clip in clips]
        )
        # SmolVLM's class would put another template in place of the one that was loaded
        options["chat_template"] = processor.chat_template
    batch = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **options,
    )
    return placed(loaded, batch)


def placed(loaded: LoadedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device; floating tensors in its dtype."""
    dtype = loaded.dtype

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(loaded.device, dtype if value.is_floating_point() else None)
        if isinstance(value, list | tuple):
            return type(value)(map(move, value))
        return value

    return {name: move(value) for name, value in inputs.items()}


def _turn(message: Any, texts_only: bool) -> dict[str, Any]:
    content: Any = [_part(part) for part in message.parts]
    if texts_only:
        content = "\n".join(part["text"] for part in content)
    return {"role": message.role, "content": content}


def _part(part: object) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(image=image):
            return {"type": "image", "image": image}
        case VideoPart(clip=clip):
            return {"type": "video", "video": list(clip.frames)}
        case _:
            raise TypeError(f"the reference makes no input of a {type(part).__name__}")


def _metadata(clip: Clip) -> dict[str, Any]:
    """Of frames that are evenly spread over time, numbered one by one."""
    count = len(clip.frames)
    rate = 1 / (clip.times[1] - clip.times[0])
    return {"total_num_frames": count, "fps": rate, "frames_indices": list(range(count))}
