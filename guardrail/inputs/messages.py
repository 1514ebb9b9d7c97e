"""Whatever people send -> a `Request`: decoded, within the policy's limits, nothing dropped.

`to_request` reads in two steps: a `Draft`, in which parts are counted, and the whole, for which
pictures and videos are decoded. A request that was read before is held to the policy at hand, its
limits and its windows (`_rechecked`).
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from PIL.Image import Image as PILImage

from guardrail.errors import LimitExceededError, UnsupportedContentError, VideoDecodeError
from guardrail.inputs.images import check_size, upright_picture
from guardrail.inputs.parts import Budget, PictureSource, as_mapping, read_part, refuse_unknown
from guardrail.inputs.tools import read_tool_call, read_tools, recheck_call
from guardrail.inputs.video_windows import SampledVideo, Tally, read_video
from guardrail.inputs.videos import Frames
from guardrail.types import Clip, ImagePart, Message, Request, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guardrail.inputs.parts import Piece
    from guardrail.policy import Policy
    from guardrail.types import Part, ToolCall, Windows

Tools = Sequence[Mapping[str, object]]
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_READ = frozenset(
    {"role", "content", "name", "tool_call_id", "tool_calls", "function_call", "refusal"}
)
_ABOUT = frozenset({"type", "id", "status", "cache_control"})  # say nothing to the model


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt or messages, and the tools that go with them, before either is read."""

    messages: str | Sequence[Mapping[str, object]]
    tools: Tools


def to_request(
    value: str | PILImage | Request | Chat | Mapping[str, object] | Sequence[Mapping[str, object]],
    *,
    policy: Policy,
    tools: Tools | None = None,
) -> Request:
    """Read a prompt, a picture or a chat within the policy's limits.

    Accepted are a str, a Pillow image, one message, a list or tuple of messages, a `Chat`, and a
    `Request` (its limits are checked again). A message is a mapping with a role (system,
    developer, user, assistant, tool; developer becomes system) and a content: a str or a list of
    parts as in OpenAI (chat or responses) or Hugging Face; a str in the list is a text part. An
    assistant's refusal becomes text after its content; beside a refusal, tool calls or a function
    call the content may be None or []. Neighbouring texts are joined as they are. `tools` (OpenAI
    function form) replace those of a `Chat` or `Request`.

    Nothing is dropped: a type or a non-empty key nobody here reads is an error that names it; free
    are labels (id, status, index, detail, cache_control, ...), and words in their place are an
    error, but for an id. Empty text is allowed, an empty list is not. NUL and other control
    characters are kept; lone surrogates are refused. Names, tools, tool calls and their ids count
    as text. Texts, pictures and videos are counted before one is decoded.

    A video becomes a `VideoPart` when its sampled frames fit in one window of the policy's, else a
    `VideoStream`, of which no more than a first window is decoded here.

    Raises:
        UnsupportedContentError: a type, role, part or key that is not understood.
        LimitExceededError: more messages, text, pictures, videos, bytes, pixels, frames or seconds
            than allowed.
        ImageDecodeError: a picture that cannot be read.
        VideoDecodeError: a video that cannot be read.
        UrlNotAllowedError: a remote picture or video whose host is not allowed.
        MissingExtraError: a video file, without the extra `video`.
    """
    return drafted(value, policy=policy, tools=tools).request()


@dataclass(frozen=True, slots=True)
class Draft:
    """A request as far as it is read at once: its pictures and videos are counted, not decoded."""

    has_media: bool
    _messages: Callable[[], tuple[Message, ...]]
    _tools: tuple[Mapping[str, object], ...]

    def request(self) -> Request:
        """The whole of it; what takes long is done here.

        Raises:
            InputError: as `to_request`.
        """
        return Request(self._messages(), self._tools)


def drafted(value: object, *, policy: Policy, tools: Tools | None = None) -> Draft:
    """Read what `to_request` reads, but for pictures and videos.

    Raises:
        InputError: as `to_request`.
    """
    budget = Budget(policy.limits)
    if tools is None and isinstance(value, Chat | Request):
        tools = value.tools
    if isinstance(value, Chat):
        value = value.messages
    offered = read_tools(tools, budget) if tools else ()
    drafts: list[tuple[Message, list[Piece]]]
    match value:
        case Request(messages):
            parts = (part for message in messages for part in message.parts)
            media = not all(isinstance(part, TextPart) for part in parts)
            return Draft(media, partial(_rechecked, value, policy, budget), offered)
        case str():
            drafts = [(Message(role="user", parts=()), [budget.text(value, "text")])]
        case PILImage():
            budget.image()
            drafts = [(Message(role="user", parts=()), [PictureSource(value, "picture")])]
        case Mapping() | list() | tuple():
            chat = [value] if isinstance(value, Mapping) else value
            _check_count(len(chat), policy)
            drafts = [_draft(each, f"messages[{i}]", budget) for i, each in enumerate(chat)]
        case _:
            raise UnsupportedContentError(
                f"a {type(value).__name__} is no request; send a str, a Pillow image, a message "
                "or a list of messages"
            )
    media = any(not isinstance(piece, str) for _, pieces in drafts for piece in pieces)
    return Draft(media, partial(_decoded, drafts, policy, budget), offered)


def request_digest(request: Request) -> str:
    """SHA-256 over all that a model sees of a request: roles, texts, names, calls, tools, pixels.

    A long video stands there as its content and how it is sampled, so it is read but not decoded.
    Each piece is written with its length before it, so that no two requests read alike. Keys keep
    their order: a chat template writes them as they come.
    """
    digest = hashlib.sha256()

    def feed(kind: str, data: bytes) -> None:
        digest.update(f"{kind}{len(data)}:".encode())
        digest.update(data)

    def feed_picture(image: PILImage) -> None:
        feed("size", f"{image.mode}{image.size}".encode())
        feed("image", image.tobytes())

    feed("tools", json.dumps(request.tools).encode())
    for message in request.messages:
        calls = [[call.name, call.arguments, call.id] for call in message.tool_calls]
        about = [message.role, message.name, message.tool_call_id, calls]
        feed("message", json.dumps(about).encode())
        for part in message.parts:
            match part:
                case TextPart(text):
                    feed("text", text.encode())
                case ImagePart(image):
                    feed_picture(image)
                case VideoPart(clip):
                    feed("clip", json.dumps(clip.times).encode())
                    for frame in clip.frames:
                        feed_picture(frame)
                case VideoStream(windows):
                    feed("stream", windows.digest.encode())
    return digest.hexdigest()


def _draft(value: object, what: str, budget: Budget) -> tuple[Message, list[Piece]]:
    """A message without its parts, and the parts with their pictures and videos not yet decoded."""
    message = as_mapping(value, what)
    role = _role(message.get("role"), what)
    if message.get("type") not in (None, "message"):
        raise UnsupportedContentError(
            f"{what} has the type {str(message['type'])[:80]!r}; only messages are read"
        )
    refuse_unknown(message, _READ | _ABOUT, what)
    refused = message.get("refusal")
    refusal = budget.text(refused, f"{what}.refusal") if refused else None
    calls = _calls(message, what, budget)
    if role != "assistant" and (refusal or calls):
        raise UnsupportedContentError(
            f"{what}: only an assistant refuses or calls tools, not the role {role!r}"
        )
    pieces = _content(message.get("content"), bool(refusal or calls), what, budget)
    if refusal:
        if pieces and pieces[-1] and isinstance(pieces[-1], str):
            pieces.append(budget.text("\n", what))
        pieces.append(refusal)
    names = {
        key: None if message.get(key) is None else budget.text(message[key], f"{what}.{key}")
        for key in ("name", "tool_call_id")
    }
    return Message(role=role, parts=(), tool_calls=calls, **names), pieces


def _role(role: object, what: str) -> str:
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    found = "no role" if role is None else f"the role {str(role)[:80]!r}"
    raise UnsupportedContentError(f"{what} has {found}; accepted: {', '.join(_ROLES)}")


def _content(content: object, optional: bool, what: str, budget: Budget) -> list[Piece]:
    """The pieces of a message's content; `optional` when the message says something beside it."""
    match content:
        case str():
            return [budget.text(content, f"{what}.content")]
        case None | [] if optional:
            return []
        case None | []:
            raise UnsupportedContentError(
                f"{what} has no content; send text (it may be empty), parts or tool calls"
            )
        case list() | tuple():
            return [
                read_part(part, f"{what}.content[{i}]", budget) for i, part in enumerate(content)
            ]
        case _:
            raise UnsupportedContentError(
                f"{what}.content is a {type(content).__name__}; send a str or a list of parts"
            )


def _calls(message: Mapping[object, object], what: str, budget: Budget) -> tuple[ToolCall, ...]:
    """What an assistant's message calls, the older single form last."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    if not isinstance(calls, list | tuple | None):
        raise UnsupportedContentError(f"{what}.tool_calls must be a list")
    read = [
        read_tool_call(call, f"{what}.tool_calls[{i}]", budget)
        for i, call in enumerate(calls or ())
    ]
    if older:
        read.append(read_tool_call(older, f"{what}.function_call", budget))
    return tuple(read)


def _decoded(
    drafts: Sequence[tuple[Message, Sequence[Piece]]], policy: Policy, budget: Budget
) -> tuple[Message, ...]:
    """The messages with their pictures and videos decoded."""
    tally = Tally(policy.limits)

    def part_of(piece: Piece) -> Part:
        if isinstance(piece, str):
            return TextPart(piece)
        if isinstance(piece, PictureSource):
            picture = piece.decoded(policy)
            budget.pixel_count(picture.size)  # so that the next one is not decoded
            return ImagePart(picture)
        video = piece.read(policy, tally)
        if isinstance(video, VideoPart):
            for frame in video.clip.frames:
                budget.pixel_count(frame.size)
        return video

    return tuple(_with_parts(message, map(part_of, pieces)) for message, pieces in drafts)


def _rechecked(request: Request, policy: Policy, budget: Budget) -> tuple[Message, ...]:
    """The messages under this policy; pictures that are RGB and upright stay the same objects.

    A clip of more frames than the policy's window, and a video that was sampled by other rules,
    is divided anew.

    Raises:
        InputError: as `to_request`.
    """
    _check_count(len(request.messages), policy)
    for i, message in enumerate(request.messages):
        _count(message, f"messages[{i}]", policy, budget)
    tally, numbers = Tally(policy.limits), iter(range(budget.videos))
    return tuple(
        _with_parts(message, [_checked(p, policy, tally, numbers) for p in message.parts])
        for message in request.messages
    )


def _check_count(count: int, policy: Policy) -> None:
    """Refuse a chat without messages or with more than the policy allows."""
    if count == 0:
        raise UnsupportedContentError("there are no messages; send at least one")
    policy.limits.check("messages", count, what="the request")


def _with_parts(message: Message, parts: Iterable[Part]) -> Message:
    """The message with these parts, neighbouring texts joined."""
    joined: list[Part] = []
    for is_text, run in groupby(parts, key=lambda part: isinstance(part, TextPart)):
        if is_text:
            joined.append(TextPart("".join(p.text for p in run if isinstance(p, TextPart))))
        else:
            joined.extend(run)
    return replace(message, parts=tuple(joined))


def _count(message: Message, what: str, policy: Policy, budget: Budget) -> None:
    if message.role not in _ROLES.values() or not (message.parts or message.tool_calls):
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
        case _:
            raise UnsupportedContentError(f"{what} has a {type(part).__name__}, which is no part")


def _check_clip(clip: Clip, policy: Policy, what: str) -> None:
    for frame in clip.frames:
        check_size(frame.size, policy.limits, what=f"a frame of {what}")
    first, last = clip.times[0], clip.times[-1]
    if not all(map(math.isfinite, clip.times)) or any(b < a for a, b in pairwise(clip.times)):
        raise VideoDecodeError(f"{what} has times that do not ascend")
    policy.limits.check("video_seconds", last - first, what=what)


def _checked(part: Part, policy: Policy, tally: Tally, numbers: Iterator[int]) -> Part:
    match part:
        case TextPart():
            return part
        case ImagePart(image):
            return ImagePart(_plain(image, policy))
        case VideoPart():
            return _video(part, policy, tally, next(numbers))
        case VideoStream(SampledVideo() as video):
            under = replace(video, sampling=policy.video, tally=tally, number=next(numbers))
            return VideoStream(under) if video.sampling == policy.video else read_video(under)
        case VideoStream(windows):
            return VideoStream(_Bounded(windows, policy, tally, next(numbers)))


def _plain(image: PILImage, policy: Policy) -> PILImage:
    """The picture itself where it is RGB and upright, else a copy that is."""
    if type(image) is PILImage and image.mode == "RGB" and not image.info:
        return image
    return upright_picture(image, policy.limits, "picture")


def _plain_clip(clip: Clip, policy: Policy) -> Clip:
    frames = tuple(_plain(frame, policy) for frame in clip.frames)
    return clip if all(map(operator.is_, frames, clip.frames)) else Clip(frames, clip.times)


def _video(part: VideoPart, policy: Policy, tally: Tally, number: int) -> VideoPart | VideoStream:
    clip = part.clip
    tally.count(number, len(clip.frames))
    if len(clip.frames) > policy.video.window:
        footage, what = Frames(clip.frames, clip.times), f"video {number + 1}"
        return read_video(SampledVideo(footage, policy.video, tally, number, what))
    plain = _plain_clip(clip, policy)
    return part if plain is clip else VideoPart(plain)


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
            yield _plain_clip(clip, self.policy)
        if start is None:
            raise VideoDecodeError("a video has no frame that can be shown")

    @property
    def digest(self) -> str:
        return self.windows.digest
