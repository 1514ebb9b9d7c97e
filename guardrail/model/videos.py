"""How a model is shown a clip: as a video, where its processor and template know any, or frames."""

from __future__ import annotations

from typing import Any, Literal

from guardrail.errors import UnsupportedContentError
from guardrail.types import Clip

VideoAs = Literal["video", "images"]

# Processors work times out as frame number / frames per second; ours are not evenly spread, so
# frames are numbered by the millisecond.
_PER_SECOND = 1000.0


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
