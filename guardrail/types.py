"""What travels between the rooms: requests, actions, verdicts, results."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from PIL.Image import Image as PILImage


class Action(StrEnum):
    """What the guard does with a request."""

    PASS = "pass"
    STEER = "steer"
    FLAG = "flag"

    @property
    def rank(self) -> int:
        """Its place among them, from the mildest on."""
        return list(Action).index(self)


class Modality(StrEnum):
    """What parts are, from the plainest to the richest; a request is what its richest part is."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A run of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A decoded RGB picture inside a message."""

    image: PILImage


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames that are judged together: RGB pictures, and when each is shown, in s, ascending."""

    frames: tuple[PILImage, ...]
    times: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse what no model could be shown."""
        if not self.frames or len(self.frames) != len(self.times):
            raise ValueError(f"{len(self.frames)} frames with {len(self.times)} times")


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video, or a piece of one, as a model is shown it."""

    clip: Clip


class Windows(Protocol):
    """The windows of a long video, decoded as they are asked for; may be gone through again."""

    def __iter__(self) -> Iterator[Clip]:
        """Clips in order, each of at most the policy's `video.window` frames."""

    @property
    def digest(self) -> str:
        """SHA-256 over what is sampled and how."""


@dataclass(frozen=True, slots=True)
class VideoStream:
    """A video of more frames than one window holds; it is judged window by window."""

    windows: Windows


Part = TextPart | ImagePart | VideoPart | VideoStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which piece of which video a verdict rests on: from `start_s` to `end_s`, both inclusive.

    `number` and `video` count from 0; `of` is how many windows of the request were judged. The
    frames that the answer is made from are the last one; `video` is None where they are of several.
    """

    number: int
    of: int
    start_s: float
    end_s: float
    frames: int
    video: int | None = 0

    def __str__(self) -> str:
        """As it stands in a verdict's summary; the first of a request's videos needs no name."""
        where = " of all videos" if self.video is None else f" of video {self.video + 1}"
        return (
            f"window {self.number + 1} of {self.of}, {self.start_s:.1f} to {self.end_s:.1f} s"
            f"{where if self.video != 0 else ''}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a model makes: `arguments` are JSON values, or text that is no JSON object."""

    name: str
    arguments: Mapping[str, Any] | str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn: a role of `system`, `user`, `assistant` or `tool`, and its parts in order."""

    role: str
    parts: tuple[Part, ...]
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A whole chat, decoded, within the policy's limits, oldest message first.

    `tools` are schemas in the OpenAI function form; a model that may call them reads them too.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def images(self) -> tuple[PILImage, ...]:
        """The pictures of all messages, in order."""
        return tuple(p.image for m in self.messages for p in m.parts if isinstance(p, ImagePart))

    @property
    def videos(self) -> tuple[VideoPart | VideoStream, ...]:
        """The videos of all messages, in order."""
        kinds = (VideoPart, VideoStream)
        return tuple(p for m in self.messages for p in m.parts if isinstance(p, kinds))

    @property
    def in_windows(self) -> bool:
        """Whether its videos are judged one by one before the whole: long ones, and several."""
        videos = self.videos
        return len(videos) > 1 or any(isinstance(video, VideoStream) for video in videos)

    @property
    def modality(self) -> Modality:
        """That of its richest part; text when there is none.

        Raises:
            TypeError: a part is of no kind that is known here.
        """
        found = {_modality_of(part) for message in self.messages for part in message.parts}
        return max(found, key=list(Modality).index, default=Modality.TEXT)

    @property
    def offset_kind(self) -> str:
        """Which re-centring offset applies: `text`, `image` (one), `images` (more) or `video`.

        Raises:
            TypeError: as `modality`.
        """
        return kind_of(_modality_of(part) for message in self.messages for part in message.parts)

    @property
    def shape(self) -> tuple[int, tuple[int, ...]]:
        """Numbers of pictures and of each video's frames: alike in requests that share a batch.

        Raises:
            TypeError: a video is still a stream; no model can be shown it whole.
        """
        frames = []
        for video in self.videos:
            if not isinstance(video, VideoPart):
                raise TypeError("a long video is judged window by window, not as a whole")
            frames.append(len(video.clip.frames))
        return len(self.images), tuple(frames)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The positions [start, stop) of a prompt that one part of a message stands in."""

    part: int
    kind: Modality
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TurnSpan:
    """The positions [start, stop) of one message, from its first own token to its last.

    Pictures between its texts are within. `message` counts the request's messages from 0.
    """

    message: int
    role: str
    start: int
    stop: int
    stretches: tuple[Stretch, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """Where an earlier answer begins: the last position before it, which was the last of a prompt.

    `message` is the answer's number in the request, `asked_by` the role of the message before it,
    `kind` the kind of what stood before (see `Request.offset_kind`).
    """

    message: int
    position: int
    kind: str
    asked_by: str = "user"


@dataclass(frozen=True, slots=True)
class RowParts:
    """What a prompt of `length` positions consists of; positions count from its first token.

    `headers` are those of earlier answers, not the last position; `unread` the messages that the
    chat template did not show whole. `aligned` is false where nothing is known but the length, and
    all of it counts as one message of the user's.
    """

    length: int
    turns: tuple[TurnSpan, ...] = ()
    headers: tuple[Header, ...] = ()
    unread: tuple[int, ...] = ()
    aligned: bool = True


Reading = Literal["last", "turn", "window", "answer"]
READINGS: tuple[Reading, ...] = ("last", "turn", "window")  # of a prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which reading a score is from.

    `reading` is `last` (the last prompt position), `turn` (the position at which an earlier answer
    began, so what that turn alone scored), `window` (some tokens of one message) or `answer` (some
    tokens of what the model says, whose positions count from the answer's first token). `message`
    counts the request's messages from 0, `role` is whose it is; of a window, `part` and `kind` say
    in which part of the message it ends, [start, stop) are its positions in the prompt, and `words`
    what they say. `slots` are a picture's positions that it covers, as (first, last, of how many).
    `earlier` says that the message was answered already.

    The words are somebody's, and stay with who asked: logs, headers, metrics and spans have none.
    """

    reading: Reading
    message: int
    role: str
    part: int | None = None
    kind: Modality | None = None
    start: int | None = None
    stop: int | None = None
    words: str = field(default="", repr=False)
    slots: tuple[int, int, int] | None = None
    earlier: bool = False

    def to_dict(self, *, words: bool = True) -> dict[str, object]:
        """Plain values, ready for JSON; what leaves the process goes without `words`."""
        kind = None if self.kind is None else str(self.kind)
        slots = None if self.slots is None else list(self.slots)
        plain = asdict(self) | {"kind": kind, "slots": slots}
        return {name: value for name, value in plain.items() if words or name != "words"}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Where:
        """What `to_dict` made these values of."""
        kind, slots = plain.get("kind"), plain.get("slots")
        typed = {
            "kind": None if kind is None else Modality(kind),
            "slots": None if slots is None else tuple(slots),
        }
        return cls(**{**plain, **typed})

    def __str__(self) -> str:
        """As it stands in a verdict's summary; without the words, which are somebody's."""
        whose = f"message {self.message + 1} ({self.role})"
        match self:
            case Where(reading="last"):
                return f"at the end of {whose}"
            case Where(reading="turn"):
                return f"at the end of {whose}, an earlier turn"
            case Where(slots=(first, last, count)):
                return f"in {whose}, {self.kind} positions {first + 1} to {last + 1} of {count}"
            case Where(reading="answer", start=int(start), stop=int(stop)):
                return f"in the answer, tokens {start + 1} to {stop}"
            case Where(start=int(start), stop=int(stop)):
                return f"in {whose}, tokens {start + 1} to {stop}"
            case _:
                return f"in {whose}"


def kind_of(media: Iterable[str]) -> str:
    """The offset kind (see `Request.offset_kind`) of what has parts of these kinds."""
    held = [*media]
    if Modality.VIDEO in held:
        return "video"
    return ("text", "image", "images")[min(held.count(Modality.IMAGE), 2)]


def _modality_of(part: Part) -> Modality:
    match part:
        case TextPart():
            return Modality.TEXT
        case ImagePart():
            return Modality.IMAGE
        case VideoPart() | VideoStream():
            return Modality.VIDEO
        case _:
            raise TypeError(f"a {type(part).__name__} is no part of a request")


_FOR_ALL = ("action", "would_be", "modality", "artefact_id", "mode", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the guard found in one request and what it did about it.

    `score` is the re-centred projection in units of the text gap (0 = text-safe centroid,
    1 = text-unsafe centroid); None only when the detector failed (`reason`). `action` is what was
    done, `would_be` what the thresholds ask for. They differ in shadow mode, where nothing is done,
    and where a steer cannot be: an artefact that only detects lets it pass, a model that the guard
    does not run is never steered. A prompt that is flagged because no edit can reach it has a flag
    in both, though its score asks for a steer. With the `reason` "answer" it is of what the model
    said, not of what it was asked: `where` says of which tokens, both thresholds are the answers'
    own, and without a score the answer was too short to be judged. `strength` is the length of the
    vector that was added to the residual stream (0 when nothing was). `folded` says that the score
    is that of the request in plain letters (see the policy's `fold_text`). `where` says which
    reading the score is from; None if that was of another prompt: a window of a long video, or the
    folded copy.

    A new field is named by hand wherever a verdict is made or told: `Detector.verdict` and
    `verdict_of` in `guardrail.online.answering`, `FakeGuard.check`, `summary` here,
    `guardrail.cli.output`, `verdict_headers` in `guardrail.asgi.wire`,
    `guardrail.observe.tracing`, and `VERDICT_FIELDS` in `guardrail.bulk.rows`.
    """

    action: Action
    would_be: Action
    score: float | None
    tau_steer: float
    tau_flag: float
    layers: tuple[int, ...]
    modality: Modality
    artefact_id: str
    strength: float = 0.0
    steering_layer: int | None = None
    mode: str = "enforce"
    reason: str = "score"  # score | answer | detector_failed
    window: Window | None = None  # of a video: where the score is from
    folded: bool = False
    where: Where | None = None

    def __post_init__(self) -> None:
        """Refuse a score that is no number: a silent NaN would compare as safe."""
        if self.score is None and self.reason == "score":
            raise ValueError("a verdict without a score needs another reason than 'score'")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score must be finite; got {self.score}")

    def to_dict(self, *, words: bool = True) -> dict[str, object]:
        """Plain values, ready for JSON and for stores that know no types of ours.

        Without `words` nothing that somebody wrote is among them (see `Where`).
        """
        plain = asdict(self) | {"layers": list(self.layers)}
        if self.where is not None:
            plain["where"] = self.where.to_dict(words=words)
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in plain.items()}

    def told(self, *, scores: bool) -> dict[str, object]:
        """What may leave the process, in plain values: no words, and scores for trusted ears only.

        Scores, thresholds and places help a search for a request that passes.
        """
        whole = self.to_dict(words=False)
        return whole if scores else {name: whole[name] for name in _FOR_ALL}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_dict` made these values of."""
        window, where = plain.get("window"), plain.get("where")
        typed = {
            "action": Action(plain["action"]),
            "would_be": Action(plain["would_be"]),
            "modality": Modality(plain["modality"]),
            "layers": tuple(plain["layers"]),
            "window": None if window is None else Window(**window),
            "where": None if where is None else Where.from_dict(where),
        }
        return cls(**{**plain, **typed})

    def summary(self) -> str:
        """One line for people."""
        score = "none" if self.score is None else f"{self.score:.2f}"
        shadow = "" if self.action == self.would_be else f" (would be {self.would_be})"
        where = "" if self.where is None else f" {self.where}"
        where += "" if self.window is None else f" ({self.window})"
        folded = " (in plain letters)" if self.folded else ""
        return (
            f"{self.action}{shadow}: score {score}, steer at {self.tau_steer:.2f}, "
            f"flag at {self.tau_flag:.2f}, {self.modality}{where}{folded}, reason {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer: its number, its text, its bytes, and the log of its probability.

    Of a token that is part of a character the bytes alone say anything. `top` are the likeliest
    tokens in its place, the chosen one among them if it is one of these.
    """

    id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As OpenAI's API has it."""
        own, *top = (
            {"token": each.text, "logprob": each.logprob, "bytes": list(each.raw)}
            for each in (self, *self.top)
        )
        return {**own, "top_logprobs": top}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer and its verdict. `finish_reason`: stop | length | flag.

    `refused_by_guard` is true when `text` is the policy's refusal message, not the model's words;
    `refusal` is that message then.
    `answer` is the verdict on the answer itself, where the policy has answers watched and this one
    was long enough; where it alone is a flag, `verdict` is the same. An answer that was cut has no
    words of the model's and no `token_ids`, but for what a stream had let out before: `text` begins
    with that then, and the refusal message follows.
    `tool_calls` are calls of the tools that came with the request; `text` is what stands beside
    them. An answer in a form (`json_schema`, a forced call) that its length ends is not complete:
    `text` is the beginning of one, and there is no call. `logprobs` has one entry for each of
    `token_ids`, the end of the turn among them; None where nobody asked. `metadata` holds
    `request_id` and, in s, `queue_s` (waiting for the model), `verdict_s` (from the start of the
    run to the verdict) and `total_s` (from asking to the end); it does not count when results are
    compared.
    """

    text: str
    verdict: Verdict
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    refused_by_guard: bool = False
    refusal: str | None = None
    answer: Verdict | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    metadata: Mapping[str, object] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a guard's model is: requests waiting and running, of all guards on it.

    `places` is how many may wait (the policy's `limits.queue`), `overdue_s` for how many seconds
    the model has not come back from requests whose time is over; 0 where it does, as it should
    within a token.
    """

    waiting: int
    running: int
    places: int
    overdue_s: float = 0.0
