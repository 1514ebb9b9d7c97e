"""Requests to model inputs, with the model's own chat template, padded on the left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from guardrail.errors import UnsupportedContentError, UnsupportedModelError
from guardrail.inputs.tools import call_text
from guardrail.model.controls import ControlTokens
from guardrail.model.refusals import REFUSALS, refusal
from guardrail.model.template import reads, template_text
from guardrail.model.videos import (
    clip_options,
    own_template,
    shown_clip,
    video_as,
    video_turn_part,
)
from guardrail.types import ImagePart, Message, Request, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.model.load import LoadedModel
    from guardrail.model.videos import VideoAs
    from guardrail.types import Clip, Part, ToolCall

TEXT_ONLY = "this model reads text only; remove the pictures and videos, or load a vision model"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch the model can run. Every row ends at position `prompt_len - 1`.

    `lengths` are the rows' own numbers of tokens, `kinds` their re-centring offsets.
    """

    inputs: Mapping[str, Any]
    prompt_len: int
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]


class Encoder:
    """Turns requests into inputs; leaves the processor and its tokenizer as they are."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._processor: Any = loaded.processor
        self._tokenizer: Any = loaded.tokenizer
        self._multimodal = not isinstance(loaded.processor, PreTrainedTokenizerBase)
        template = template_text(loaded.processor)
        if template is None:
            raise UnsupportedModelError(
                f"{loaded.source!r} has no chat template; pass a processor or tokenizer with one "
                "(the instruction-tuned variant of a model usually has it)"
            )
        self._controls = ControlTokens(self._tokenizer, self._processor, template)
        self.supports_tools = reads(template, "tools")
        self._reads_calls = "tool_calls" in template
        self._video_as = video_as(loaded.processor) if self._multimodal else None

    @property
    def can_batch(self) -> bool:
        """Whether rows of unequal length can share a batch."""
        return self._tokenizer.pad_token_id is not None

    @property
    def video_as(self) -> VideoAs | None:
        """How the model is shown a clip: as a `video`, or its frames as `images`; None for texts.

        One that knows no videos is shown the frames as pictures, in the place of the video.
        """
        return self._video_as

    def encode(self, requests: Sequence[Request]) -> Encoded:
        """Tokens, masks and pictures of a batch, on the CPU: input_ids (rows, prompt_len).

        The rows of a batch have the same tools.
        """
        chats = [[self._turn(message) for message in r.messages] for r in requests]
        clips = [video.clip for r in requests for video in r.videos if isinstance(video, VideoPart)]
        batch = self._apply(requests, chats, self._tools(requests), clips)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        lengths = [ids.shape[1]] * len(chats) if mask is None else mask.sum(dim=1).tolist()
        return Encoded(
            inputs=batch,
            prompt_len=ids.shape[1],
            lengths=tuple(int(n) for n in lengths),
            kinds=tuple(r.offset_kind for r in requests),
        )

    def _tools(self, requests: Sequence[Request]) -> list[Any] | None:
        tools = requests[0].tools
        if any(request.tools != tools for request in requests):
            raise ValueError("requests with different tools cannot share a batch")
        if tools and not self.supports_tools:
            raise UnsupportedModelError(
                "the model's chat template knows no tools, so they would never reach the model; "
                "load a model whose template does, or ask without tools"
            )
        return [self._controls.neutralised(tool) for tool in tools] or None

    def _apply(
        self,
        requests: Sequence[Request],
        chats: list[list[dict[str, Any]]],
        tools: list[Any] | None,
        clips: list[Clip],
    ) -> dict[str, Any]:
        """The chat template and the processor, padding on the left for this call only."""
        padding: dict[str, Any] = {"padding_side": "left"}
        options: dict[str, Any] = {} if tools is None else {"tools": tools}
        if self._multimodal:
            # A processor cuts where its tokenizer's files say so, unless it is told not to.
            whole = {"padding": self.can_batch, "truncation": False, "max_length": None}
            options["processor_kwargs"] = padding | whole
            if clips and self._video_as == "video":
                shown = [shown_clip(self._processor, clip) for clip in clips]
                options["processor_kwargs"] |= clip_options(shown)
                options |= own_template(self._processor)
        else:
            options |= {"tokenizer_kwargs": padding, "padding": self.can_batch}
        try:
            batch = self._processor.apply_chat_template(
                chats,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                **options,
            )
        except REFUSALS as error:
            raise refusal(self._processor, requests, error) from error
        return dict(batch)

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message in the form that chat templates read."""
        if message.tool_calls and not self._reads_calls:
            message = _with_calls_as_text(message)
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        safe = iter(self._controls.neutralise(texts))
        turn: dict[str, Any] = {"role": message.role}
        if self._multimodal:
            turn["content"] = [shown for part in message.parts for shown in self._shown(part, safe)]
        else:
            if len(texts) != len(message.parts):
                raise UnsupportedContentError(TEXT_ONLY)
            turn["content"] = "\n".join(safe)
        for key in ("name", "tool_call_id"):
            value = getattr(message, key)
            if value is not None:
                (turn[key],) = self._controls.neutralise([value])
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return turn

    def _shown(self, part: Part, texts: Iterator[str]) -> list[dict[str, Any]]:
        """A part in the form that chat templates read; a clip may be several pictures."""
        match part:
            case TextPart():
                return [{"type": "text", "text": next(texts)}]
            case ImagePart(image):
                return [{"type": "image", "image": image}]
            case VideoPart(clip) if self._video_as == "video":
                return [video_turn_part(shown_clip(self._processor, clip))]
            case VideoPart(clip):
                return [{"type": "image", "image": frame} for frame in clip.frames]
            case VideoStream():
                raise TypeError("a long video is shown window by window, not as a whole")

    def _call(self, call: ToolCall) -> Any:
        about = {"id": call.id} if call.id else {}
        function = {"name": call.name, "arguments": call.arguments}
        return self._controls.neutralised({**about, "type": "function", "function": function})


def on_device(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The inputs where the model is; floating tensors (pictures) in the model's dtype."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype if value.is_floating_point() else None)
        if isinstance(value, list | tuple):
            return type(value)(moved(item) for item in value)
        return value

    return {name: moved(value) for name, value in encoded.inputs.items()}


def _with_calls_as_text(message: Message) -> Message:
    """For templates that know no calls: each is a line behind what was said."""
    lines = "\n".join(map(call_text, message.tool_calls))
    parts = message.parts
    match parts:
        case (*before, TextPart(text)):
            parts = (*before, TextPart(f"{text}\n{lines}" if text else lines))
        case _:
            parts = (*parts, TextPart(lines))
    return replace(message, parts=parts, tool_calls=())
