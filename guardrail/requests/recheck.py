"""A request that was read before, under this policy: its limits, its windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from PIL.Image import Image as PILImage

from guardrail.errors import LimitExceededError, UnsupportedContentError, VideoDecodeError
from guardrail.requests.formats import check_size
from guardrail.requests.images import decode_image
from guardrail.requests.tools import recheck_call
from guardrail.requests.video_footage import Frames
from guardrail.requests.video_windows import SampledVideo, Tally, read_video
from guardrail.types import (
    Clip,
    ImagePart,
    Message,
    Request,
    TextPart,
    VideoPart,
    VideoStream,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guardrail.policy import Policy
    from guardrail.requests.budget import Budget
    from guardrail.types import Part, Windows

_ROLES = ("system", "user", "assistant", "tool")


def rechecked(request: Request, policy: Policy, budget: Budget) -> tuple[Message, ...]:
    """The messages under this policy; pictures that are RGB and upright stay the same objects.

    A clip of more frames than the policy's window, and a video that was sampled by other rules,
    is divided anew.

    Raises:
        InputError: as `to_request`.
    """
    check_count(len(request.messages), policy)
    for i, message in enumerate(request.messages):
        _count(message, f"messages[{i}]", policy, budget)
    tally, numbers = Tally(policy.limits), iter(range(budget.videos))
    return tuple(
        with_parts(message, [_checked(p, policy, tally, numbers) for p in message.parts])
        for message in request.messages
    )


def check_count(count: int, policy: Policy) -> None:
    """Refuse a chat without messages or with more than the policy allows."""
    if count == 0:
        raise UnsupportedContentError("there are no messages; send at least one")
    if count > (allowed := policy.limits.messages):
        raise LimitExceededError(limit="messages", allowed=allowed, found=count, what="the request")


def with_parts(message: Message, parts: Iterable[Part]) -> Message:
    """The message with these parts, neighbouring texts joined."""
    joined: list[Part] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, TextPart)):
        if is_text:
            joined.append(TextPart("".join(p.text for p in run if isinstance(p, TextPart))))
        else:
            joined.extend(run)
    return replace(message, parts=tuple(joined))


def _count(message: Message, what: str, policy: Policy, budget: Budget) -> None:
    if message.role not in _ROLES or not (message.parts or message.tool_calls):
        raise UnsupportedContentError(
            f"{what} has the role {str(message.role)[:80]!r} and {len(message.parts)} parts; it "
            f"needs parts and one of {', '.join(_ROLES)}"
        )
    for call in message.tool_calls:
        recheck_call(call, what, budget)
    for label in (message.name, message.tool_call_id):
        if label is not None:
            budget.text(label, f"{what}: a name or id")
    for part in message.parts:
        _count_part(part, what, policy, budget)


def _count_part(part: Part, what: str, policy: Policy, budget: Budget) -> None:
    match part:
        case TextPart(text):
            budget.text(text, what)
        case ImagePart(image):
            budget.image()
            check_size(image.size, policy.limits, what="picture")
            budget.pixel_count(image.size)
        case VideoPart(clip):
            budget.video()
            _check_clip(clip, policy, f"{what}: a video")
            if len(clip.frames) <= policy.video.window:  # else it is judged piece by piece
                for frame in clip.frames:
                    budget.pixel_count(frame.size)
        case VideoStream():
            budget.video()


def _check_clip(clip: Clip, policy: Policy, what: str) -> None:
    for frame in clip.frames:
        check_size(frame.size, policy.limits, what=f"a frame of {what}")
    first, last = clip.times[0], clip.times[-1]
    if not all(map(math.isfinite, clip.times)) or any(b < a for a, b in pairwise(clip.times)):
        raise VideoDecodeError(f"{what} has times that do not ascend")
    if last - first > (allowed := policy.limits.video_seconds):
        raise LimitExceededError(
            limit="video_seconds", allowed=allowed, found=round(last - first, 1), what=what
        )


def _checked(part: Part, policy: Policy, tally: Tally, numbers: Iterator[int]) -> Part:
    match part:
        case TextPart():
            return part
        case ImagePart(image):
            return part if _is_plain(image) else ImagePart(_plain(image, policy))
        case VideoPart(clip):
            return _video(part, clip, policy, tally, next(numbers))
        case VideoStream(SampledVideo() as windows):
            return _resampled(part, windows, policy, tally, next(numbers))
        case VideoStream(windows):
            return VideoStream(_Bounded(windows, policy, tally, next(numbers)))


def _is_plain(image: PILImage) -> bool:
    return type(image) is PILImage and image.mode == "RGB" and not image.info


def _plain(image: PILImage, policy: Policy) -> PILImage:
    return decode_image(
        image,
        limits=policy.limits,
        allowed_hosts=policy.allowed_hosts,
        local_files=policy.local_files,
    )


def _video(
    part: VideoPart, clip: Clip, policy: Policy, tally: Tally, number: int
) -> VideoPart | VideoStream:
    tally.count(number, len(clip.frames))
    if len(clip.frames) > policy.video.window:
        footage = Frames(clip.frames, clip.times)
        what = f"video {number + 1}"
        return read_video(SampledVideo(footage, policy.video, policy.limits, tally, number, what))
    if all(map(_is_plain, clip.frames)):
        return part
    return VideoPart(Clip(tuple(_plain(frame, policy) for frame in clip.frames), clip.times))


def _resampled(
    part: VideoStream, video: SampledVideo, policy: Policy, tally: Tally, number: int
) -> VideoPart | VideoStream:
    under = replace(video, sampling=policy.video, limits=policy.limits, tally=tally, number=number)
    if video.sampling == policy.video:
        return VideoStream(under)
    return read_video(under)


@dataclass(frozen=True, slots=True)
class _Bounded:
    """Windows that somebody else made, held to this policy while they are gone through."""

    windows: Windows
    policy: Policy
    tally: Tally
    number: int

    def __iter__(self) -> Iterator[Clip]:
        most, seen, start = self.policy.video.window, 0, None
        for clip in self.windows:
            found = len(clip.frames)
            if found > most:
                raise LimitExceededError(
                    limit="video.window", allowed=most, found=found, what="a window of a video"
                )
            start = clip.times[0] if start is None else start
            whole = Clip(clip.frames[:1] + clip.frames, (start, *clip.times))
            _check_clip(whole, self.policy, "a video")
            seen += found
            self.tally.count(self.number, seen)
            if all(map(_is_plain, clip.frames)):
                yield clip
            else:
                frames = tuple(_plain(frame, self.policy) for frame in clip.frames)
                yield Clip(frames, clip.times)
        if start is None:
            raise VideoDecodeError("a video has no frame that can be shown")

    @property
    def digest(self) -> str:
        return self.windows.digest
