"""Requests to model inputs, with the model's own chat template, padded on the left.

Whatever a template or a processor cannot take becomes an error in words that a caller can act on. A
clip is shown as a video where processor and template know any, and else as its frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import jinja2
import jinja2.ext
import torch
from jinja2 import meta
from PIL import Image
from transformers import PreTrainedTokenizerBase

from guardrail.errors import UnsupportedContentError, UnsupportedModelError
from guardrail.inputs.tools import call_text
from guardrail.model.control_tokens import ControlTokens
from guardrail.model.parts import Expansion, Turn, find_parts
from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.model.load import Processing
    from guardrail.types import Part, RowParts, ToolCall

TEXT_ONLY = "this model reads text only; remove the pictures and videos, or load a vision model"

# What templates and processors raise about what they are given; anything else is no refusal.
REFUSALS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError)

VideoAs = Literal["video", "images"]

_KINDS = {TextPart: "text", ImagePart: "image", VideoPart: "video"}

# Processors work times out as frame number / frames per second; ours are not evenly spread, so
# frames are numbered by the millisecond.
_PER_SECOND = 1000.0

# How transformers' models say it (5.20 to 5.24: ", tokens: 6, features: 4" follows).
_MISCOUNTED = re.compile(r"features? and \w+ tokens? do not match", re.IGNORECASE)

_HARMLESS = (224, 224)  # pixels: what every image processor takes


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch the model can run. Every row ends at position `prompt_len - 1`.

    `lengths` are the rows' own numbers of tokens, `kinds` their re-centring offsets, `parts` says
    what in them belongs to which message.
    """

    inputs: Mapping[str, Any]
    prompt_len: int
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    parts: tuple[RowParts, ...]

    def ids(self, row: int) -> list[int]:
        """A row's tokens, without padding."""
        return list(map(int, self.inputs["input_ids"][row, self.prompt_len - self.lengths[row] :]))


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request for an engine with a processor of its own: a placeholder stands for each medium.

    `kinds` says of each of the `pictures` what it was: a clip may be shown as its frames.
    """

    ids: list[int]
    pictures: tuple[Image.Image, ...]
    kinds: tuple[str, ...]


class Encoder:
    """Turns requests into inputs; leaves the processor and its tokenizer as they are.

    `video_as` says how the model is shown a clip: as a `video`, or its frames as `images`; None for
    a model that reads texts alone.
    """

    def __init__(self, loaded: Processing) -> None:
        self._processor: Any = loaded.processor
        self._tokenizer: Any = loaded.tokenizer
        self._multimodal = not isinstance(loaded.processor, PreTrainedTokenizerBase)
        template = template_text(loaded.processor)
        if template is None:
            raise UnsupportedModelError(
                f"{loaded.source!r} has no chat template; pass a processor or tokenizer with one "
                "(the instruction-tuned variant of a model usually has it)"
            )
        self.controls = ControlTokens(self._tokenizer, self._processor, template)
        self.supports_tools = reads(template, "tools")
        self._reads_calls = "tool_calls" in template
        # A model that knows no videos is shown a clip's frames as pictures, in its place.
        self.video_as = video_as(loaded.processor) if self._multimodal else None

    @property
    def reads_pictures(self) -> bool:
        """Whether a request may hold pictures and videos."""
        return bool(self._multimodal)

    @property
    def can_batch(self) -> bool:
        """Whether rows of unequal length can share a batch."""
        return self._tokenizer.pad_token_id is not None

    def encode(self, requests: Sequence[Request]) -> Encoded:
        """Tokens, masks and pictures of a batch, on the CPU: input_ids (rows, prompt_len).

        The rows of a batch have the same tools.
        """
        turns = [[self._turn(message) for message in r.messages] for r in requests]
        clips = [video.clip for r in requests for video in r.videos if isinstance(video, VideoPart)]
        options = self._options(requests, clips)
        batch = self._apply(requests, turns, options, clips)
        expansions = batch.pop("text_replacement_offsets", None)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        width = ids.shape[1]
        lengths = [width] * len(turns) if mask is None else mask.sum(dim=1).tolist()
        parts = (
            find_parts(
                chat,
                ids[row, width - int(lengths[row]) :].tolist(),
                tokenizer=self._tokenizer,
                render=partial(self._rendered, options),
                opening=self._opening,
                expansions=self._expansions(chat, None if expansions is None else expansions[row]),
            )
            for row, chat in enumerate(turns)
        )
        return Encoded(
            inputs=batch,
            prompt_len=width,
            lengths=tuple(int(n) for n in lengths),
            kinds=tuple(r.offset_kind for r in requests),
            parts=tuple(parts),
        )

    def prompt(self, request: Request) -> Prompt:
        """The tokens of a request without videos, as its template has them before its pictures."""
        turns = [self._turn(message) for message in request.messages]
        try:
            text = self._written(self._options([request], []), [turn.shown for turn in turns])
        except REFUSALS as error:
            raise refusal(self._processor, [request], error) from error
        # as processors have it: no second one where the template writes it
        first = self._tokenizer.bos_token
        more = self._multimodal and not (first and text.startswith(first))
        shown = [part for turn in turns for part in turn.shown["content"]]
        return Prompt(
            self._tokenizer(text, add_special_tokens=more)["input_ids"],
            tuple(part["image"] for part in shown if part["type"] == "image"),
            tuple(kind for turn in turns for _, kind in turn.owners if kind != "text"),
        )

    @cached_property
    def _opening(self) -> str:
        """What the template writes before an answer; "" where it cannot be told."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        asked = self._rendered({}, probe)
        told = self._rendered({}, probe, add_generation_prompt=False)
        if asked is None or told is None or not asked.startswith(told):
            return ""
        opening = asked.removeprefix(told)
        return opening if opening.strip() else ""

    def _options(self, requests: Sequence[Request], clips: list[Clip]) -> dict[str, Any]:
        """What the chat template is given besides a chat."""
        tools = self._tools(requests)
        options: dict[str, Any] = {} if tools is None else {"tools": tools}
        if clips and self.video_as == "video":
            options |= own_template(self._processor)
        return options

    def _rendered(
        self,
        options: dict[str, Any],
        chat: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
    ) -> str | None:
        """A chat as the template writes it; None where it refuses it."""
        try:
            return self._written(options, chat, add_generation_prompt=add_generation_prompt)
        except REFUSALS:
            return None

    def _written(
        self,
        options: dict[str, Any],
        chat: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        if self._multimodal:  # some processors' older versions warn each time they are given none
            options = options | {"processor_kwargs": {"padding": False}}
        text: str = self._processor.apply_chat_template(
            [self._as_read(turn) for turn in chat],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
        return text

    def _as_read(self, turn: dict[str, Any]) -> dict[str, Any]:
        """A turn with its content as one text, for a model that reads texts alone."""
        if self._multimodal:
            return turn
        return {**turn, "content": "\n".join(shown["text"] for shown in turn["content"])}

    def _expansions(self, turns: list[Turn], replaced: Any) -> list[Expansion]:
        """What the processor wrote for each picture and video of a row.

        One that says nothing of it leaves placeholders as they are, or its rows are not aligned.
        """
        if replaced is not None:
            return [Expansion(r["type"], r["text"], r["replacement"]) for r in replaced]
        shown = (part["type"] for turn in turns for part in turn.shown["content"])
        names = ((kind, getattr(self._processor, f"{kind}_token", "")) for kind in shown)
        return [Expansion(k, n, n) for k, n in names if k != "text" and isinstance(n, str) and n]

    def _tools(self, requests: Sequence[Request]) -> list[Any] | None:
        tools = requests[0].tools
        if any(request.tools != tools for request in requests):
            raise ValueError("requests with different tools cannot share a batch")
        if tools and not self.supports_tools:
            raise UnsupportedModelError(
                "the model's chat template knows no tools, so they would never reach the model; "
                "load a model whose template does, or ask without tools"
            )
        return [self.controls.neutralised(tool) for tool in tools] or None

    def _apply(
        self,
        requests: Sequence[Request],
        turns: list[list[Turn]],
        options: dict[str, Any],
        clips: list[Clip],
    ) -> dict[str, Any]:
        """The chat template and the processor, padding on the left for this call only."""
        padding: dict[str, Any] = {"padding_side": "left"}
        if self._multimodal:
            # A processor cuts where its tokenizer's files say so, unless it is told not to.
            whole = {"padding": self.can_batch, "truncation": False, "max_length": None}
            named = {"return_text_replacement_offsets": True}  # what became of placeholders
            called = padding | whole | named
            if clips and self.video_as == "video":
                shown = [shown_clip(self._processor, clip) for clip in clips]
                called |= clip_options(shown)
            options = options | {"processor_kwargs": called}
        else:
            options = options | {"tokenizer_kwargs": padding, "padding": self.can_batch}
        chats = [[self._as_read(turn.shown) for turn in chat] for chat in turns]
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

    def _turn(self, message: Message) -> Turn:
        """A message in the form that chat templates read."""
        if message.tool_calls and not self._reads_calls:
            message = _with_calls_as_text(message)
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        if not self._multimodal and len(texts) != len(message.parts):
            raise UnsupportedContentError(TEXT_ONLY)
        safe = iter(self.controls.neutralise(texts))
        content, owners = [], []
        for number, part in enumerate(message.parts):
            shown = self._shown(part, safe)
            content += shown
            owners += [(number, _KINDS[type(part)])] * len(shown)
        turn: dict[str, Any] = {"role": message.role, "content": content}
        for key in ("name", "tool_call_id"):
            value = getattr(message, key)
            if value is not None:
                (turn[key],) = self.controls.neutralise([value])
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return Turn(turn, tuple(owners))

    def _shown(self, part: Part, texts: Iterator[str]) -> list[dict[str, Any]]:
        """A part in the form that chat templates read; a clip may be several pictures."""
        match part:
            case TextPart():
                return [{"type": "text", "text": next(texts)}]
            case ImagePart(image):
                return [{"type": "image", "image": image}]
            case VideoPart(clip) if self.video_as == "video":
                return [video_turn_part(shown_clip(self._processor, clip))]
            case VideoPart(clip):
                return [{"type": "image", "image": frame} for frame in clip.frames]
            case VideoStream():
                raise TypeError("a long video is shown window by window, not as a whole")

    def _call(self, call: ToolCall) -> Any:
        about = {"id": call.id} if call.id else {}
        function = {"name": call.name, "arguments": call.arguments}
        return self.controls.neutralised({**about, "type": "function", "function": function})


def on_device(encoded: Encoded, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The inputs where the model is; floating tensors (pictures) in the model's dtype."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, dtype if value.is_floating_point() else None)
        if isinstance(value, list | tuple):
            return type(value)(moved(item) for item in value)
        return value

    return {name: moved(value) for name, value in encoded.inputs.items()}


@contextmanager
def media_as_counted() -> Iterator[None]:
    """Turn a model's complaint that pictures do not fill their places into one of ours.

    Some models that take pictures and take videos cannot take both in one prompt.
    """
    try:
        yield
    except ValueError as error:
        if _MISCOUNTED.search(str(error)) is None:
            raise
        raise UnsupportedContentError(
            f"the model cannot be shown this request's pictures and videos together ({error}); "
            "ask about them one by one"
        ) from error


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


def template_text(processor: Any) -> str | None:
    """The template that will be applied; the one for tools behind it where there are two."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):
        parts = [template.get("default"), template.get("tool_use")]
        template = "".join(part for part in parts if isinstance(part, str)) or None
    return template if isinstance(template, str) else None


def reads(template: str, variable: str) -> bool:
    """Whether a template makes use of a variable; false for one that cannot be parsed."""
    environment = jinja2.Environment(
        extensions=["jinja2.ext.loopcontrols", _Generation],
        autoescape=False,
    )
    try:
        return variable in meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:
        return False


class _Generation(jinja2.ext.Extension):
    """Reads the `{% generation %}` blocks of training templates."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def video_as(processor: Any) -> VideoAs:
    """Whether a processor and its own chat template take a clip as a video."""
    if getattr(processor, "video_processor", None) is None:
        return "images"
    token = getattr(processor, "video_token", None)
    probe = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    try:
        shown = processor.apply_chat_template(probe, tokenize=False, **own_template(processor))
    except Exception:  # templates refuse what they do not know, each in its own way
        return "images"
    return "video" if isinstance(token, str) and token in str(shown) else "images"


def own_template(processor: Any) -> dict[str, str]:
    """The option that keeps a processor from putting another template in place for videos."""
    template = getattr(processor, "chat_template", None)
    return {"chat_template": template} if isinstance(template, str) else {}


def shown_clip(processor: Any, clip: Clip) -> Clip:
    """The clip with its last frame again, as often as the processor asks for a shortest video.

    Processors that put two frames in one patch fill an odd number up like this by themselves, but
    some of them refuse a single one.
    """
    least = getattr(processor.video_processor, "temporal_patch_size", None) or 1
    again = max(least - len(clip.frames), 0)
    if not again:
        return clip
    return Clip(clip.frames + clip.frames[-1:] * again, clip.times + clip.times[-1:] * again)


def clip_options(clips: list[Clip]) -> dict[str, Any]:
    """What the processor must know of the videos of a batch, in order: no frame is left out."""
    return {"do_sample_frames": False, "video_metadata": [_metadata(clip) for clip in clips]}


def video_turn_part(clip: Clip) -> dict[str, Any]:
    """A clip as the part of a chat that templates and processors read.

    Raises:
        UnsupportedContentError: its frames differ in size.
    """
    sizes = {frame.size for frame in clip.frames}
    if len(sizes) > 1:
        raise UnsupportedContentError(
            f"the frames of a video must be of one size; these are {sorted(sizes)}: resize them"
        )
    return {"type": "video", "video": list(clip.frames)}


def _metadata(clip: Clip) -> dict[str, Any]:
    """A clip in the words of transformers' `VideoMetadata`.

    Some processors write the frames' times into the prompt, others reckon with the mean rate,
    `len(frames_indices) / total_num_frames * fps`; both come out right.
    """
    count, span = len(clip.times), clip.times[-1] - clip.times[0]
    every = span / (count - 1) if span > 0 else 1.0
    width, height = clip.frames[0].size
    return {
        "total_num_frames": max(round(count * every * _PER_SECOND), 1),
        "fps": _PER_SECOND,
        "frames_indices": [round(time * _PER_SECOND) for time in clip.times],
        "width": width,
        "height": height,
    }


def refusal(processor: Any, requests: Sequence[Request], error: Exception) -> Exception:
    """The error to raise in place of `error`, which a template or processor raised.

    A picture that the image processor refuses on its own is named: which one it is, its size, and
    what the processor said.
    """
    if isinstance(error, jinja2.TemplateError):
        return UnsupportedContentError(f"the model's chat template refuses this chat: {error}")
    for where, picture in _pictures(requests):
        said = _said_about(processor, picture)
        if said is not None and _said_about(processor, Image.new("RGB", _HARMLESS)) is None:
            width, height = picture.size
            return UnsupportedContentError(
                f"{where} is {width} x {height} pixels, which the model's image processor refuses: "
                f"{said}; crop, resize or cut it up"
            )
    return UnsupportedContentError(
        "the model's chat template or processor cannot take this chat: "
        f"{type(error).__name__}: {error}"
    )


def _pictures(requests: Sequence[Request]) -> Iterator[tuple[str, Image.Image]]:
    for request in requests:
        for turn, message in enumerate(request.messages):
            pictures = [part.image for part in message.parts if isinstance(part, ImagePart)]
            for number, picture in enumerate(pictures, start=1):
                yield f"messages[{turn}]: picture {number} of {len(pictures)}", picture


def _said_about(processor: Any, picture: Image.Image) -> str | None:
    """What the image processor says against one picture; None when it takes it."""
    try:
        processor.image_processor(images=[picture], return_tensors="pt")
    except REFUSALS as error:
        return str(error) or type(error).__name__
    return None
