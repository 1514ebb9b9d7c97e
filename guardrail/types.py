"""What travels between the rooms: requests, actions, verdicts, results."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image as PILImage


class Action(StrEnum):
    """What the guard does with a request."""

    PASS = "pass"
    STEER = "steer"
    FLAG = "flag"


class Modality(StrEnum):
    """The richest part of a request."""

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


Part = TextPart | ImagePart


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
    def modality(self) -> Modality:
        """Image when any message holds a picture, else text."""
        return Modality.IMAGE if self.images else Modality.TEXT

    @property
    def offset_kind(self) -> str:
        """Which re-centring offset applies: `text`, `image` (one picture) or `images` (more)."""
        return ("text", "image", "images")[min(len(self.images), 2)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the guard found in one request and what it did about it.

    `score` is the re-centred projection in units of the text gap (0 = text-safe centroid,
    1 = text-unsafe centroid); None only when the detector failed (`reason`). `would_be` is the
    action the thresholds ask for; it differs from `action` in shadow mode. `strength` is the length
    of the vector that was added to the residual stream (0 when nothing was).
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
    reason: str = "score"  # score | detector_failed

    def __post_init__(self) -> None:
        """Refuse a score that is no number: a silent NaN would compare as safe."""
        if self.score is None and self.reason == "score":
            raise ValueError("a verdict without a score needs another reason than 'score'")
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"score must be finite; got {self.score}")

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON and for stores that know no types of ours."""
        plain = asdict(self) | {"layers": list(self.layers)}
        return {k: str(v) if isinstance(v, StrEnum) else v for k, v in plain.items()}

    def summary(self) -> str:
        """One line for people."""
        score = "none" if self.score is None else f"{self.score:.2f}"
        shadow = "" if self.action == self.would_be else f" (would be {self.would_be})"
        return (
            f"{self.action}{shadow}: score {score}, steer at {self.tau_steer:.2f}, "
            f"flag at {self.tau_flag:.2f}, {self.modality}, reason {self.reason}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An answer and its verdict. `finish_reason`: stop | length | flag.

    `refused_by_guard` is true when `text` is the policy's refusal message, not the model's words.
    `tool_calls` are calls of the tools that came with the request; `text` is what stands beside
    them.
    """

    text: str
    verdict: Verdict
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    refused_by_guard: bool = False
    metadata: Mapping[str, object] = field(default_factory=dict)
