"""What the guard may do, how sure it must be, and how much it accepts."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from guardrail.errors import LimitExceededError
from guardrail.types import Action, Modality

MAX_BODY_BYTES = 32_000_000  # of one HTTP request, wherever a guard reads one
REFUSAL = "I'm sorry, but I can't help with that."
CAUTION = (
    "The next request may ask for something harmful, in its text or inside a picture. "
    "If it does, refuse politely in one sentence. If it is harmless, answer it as usual."
)


Judged = Literal["turns", "tools", "system", "answers"]
_ROLE_OF: dict[Judged, str] = {
    "turns": "user",
    "tools": "tool",
    "system": "system",
    "answers": "assistant",
}
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Frozen):
    """Upper bounds on what one request may cost; every bound is inclusive."""

    image_bytes: int = Field(default=20_000_000, gt=0, description="encoded size of one picture")
    image_pixels: int = Field(default=40_000_000, gt=0, description="width x height of one picture")
    image_aspect: int = Field(
        default=200, gt=0, description="longer side of one picture / its shorter side"
    )
    total_pixels: int = Field(
        default=160_000_000,
        gt=0,
        description="width x height, summed over one request's pictures or one window of a video",
    )
    images: int = Field(default=16, ge=0, description="pictures in one request")
    frames: int = Field(default=512, gt=0, description="frames of one animated picture")
    videos: int = Field(default=4, ge=0, description="videos in one request")
    video_bytes: int = Field(default=500_000_000, gt=0, description="encoded size of one video")
    video_seconds: float = Field(default=3_600, gt=0, description="length of one video, in s")
    video_frames: int = Field(
        default=8_192, gt=0, description="frames judged, summed over one request's videos"
    )
    messages: int = Field(default=256, gt=0, description="turns in one chat")
    text_chars: int = Field(default=400_000, gt=0, description="characters of text in one request")
    prompt_tokens: int = Field(
        default=32_768, gt=0, description="tokens of one prompt, pictures included"
    )
    new_tokens: int = Field(default=8_192, gt=0, description="tokens of one answer")
    queue: int = Field(default=64, gt=0, description="requests waiting for the model")
    batch: int = Field(default=8, gt=0, description="requests answered together")
    batch_wait_s: float = Field(
        default=0.004, ge=0, description="how long to wait for company, in s"
    )
    timeout_s: float | None = Field(default=300.0, gt=0, description="from asking to answer, in s")

    def check(self, limit: str, found: float, *, what: str) -> None:
        """Refuse what exceeds the limit of that name; `what` is how the message calls it.

        Raises:
            LimitExceededError: it does; of seconds it tells tenths.
        """
        if found > (allowed := getattr(self, limit)):
            told = round(found, 1) if isinstance(found, float) else found
            raise LimitExceededError(limit=limit, allowed=allowed, found=told, what=what)


class Thresholds(_Frozen):
    """Scores from which a request is steered or flagged, in units of the text gap."""

    steer: float
    flag: float

    @model_validator(mode="after")
    def _ordered(self) -> Thresholds:
        if not self.steer <= self.flag:
            raise ValueError(f"steer ({self.steer}) must not exceed flag ({self.flag})")
        return self


class VideoSampling(_Frozen):
    """Which frames of a video are judged, and how many together.

    Frames are taken `fps` times a second and, with `scenes`, also where the picture changes at
    once, but never more than `max_fps` a second. They are judged in windows of `window` frames; a
    video that fits in one needs one prefill. The answer to a longer one is made from
    `answer_frames` of its frames, evenly spread, which are judged like a window.
    """

    fps: float = Field(default=2.0, gt=0, le=60)
    max_fps: float = Field(default=8.0, gt=0, le=60)
    scenes: bool = True
    window: int = Field(default=4, gt=0, le=256)
    answer_frames: int = Field(default=8, gt=0, le=256)

    @model_validator(mode="after")
    def _rates(self) -> VideoSampling:
        if self.max_fps < self.fps:
            raise ValueError(
                f"max_fps ({self.max_fps}) must not lie below fps ({self.fps}); raise it, too"
            )
        return self


class Policy(_Frozen):
    """One guard's rules. Immutable; `model_copy(update=...)` makes another.

    `thresholds` fixes scores by hand for a modality; otherwise `steer_rate` and `flag_rate`, the
    shares of *benign* inputs that may be hit, pick them from the artefact's calibration (None: the
    rates the artefact was calibrated for).

    Two fields are for what another model will answer. `fold_text`: it is scored a second time in
    plain letters, where that differs, and the higher score counts (`guardrail.inputs.folding`).
    `pictures`: what was judged is handed on in a form that all decoders read alike, or pictures
    that they may read in two ways are refused (`guardrail.inputs.canonical`).

    `fold_answers`: what the guarded model answers itself is scored in plain letters, too. It costs
    one more prefill where that differs, and nothing elsewhere; off by default, since a model that
    does not read such letters does not do what they ask.

    `judge` names the parts of a prompt whose windows count: users' `turns` and results of `tools`
    by default, and `system` prompts or the model's own `answers` if they are not trusted either.
    Every turn is judged at its end in any case. `earlier`: a request between the thresholds whose
    score is of a message that was answered already is steered, too, or flagged.

    `watch` "answer" has what the model says judged while it says it, by an artefact that was fitted
    for it: windows above `answer_threshold` are a flag. Without one that is the highest score which
    at most `answer_rate` of benign answers exceed (None: as calibrated). A stream is held back by a
    window for it.
    """

    mode: Literal["enforce", "shadow"] = "enforce"
    actions: frozenset[Action] = frozenset({Action.STEER, Action.FLAG})
    thresholds: dict[Modality, Thresholds] = Field(default_factory=dict)
    steer_rate: float | None = Field(default=None, gt=0, lt=1)
    flag_rate: float | None = Field(default=None, gt=0, lt=1)
    on_flag: Literal["refuse", "raise", "annotate"] = "refuse"
    refusal_message: str = REFUSAL
    unsteerable: Literal["flag", "caution", "pass"] = "caution"
    caution_prompt: str = CAUTION
    fail: Literal["closed", "open"] = "closed"
    pictures: Literal["canonical", "refuse"] = "canonical"
    limits: Limits = Field(default_factory=Limits)
    video: VideoSampling = Field(default_factory=VideoSampling)
    allowed_hosts: frozenset[str] = frozenset()
    local_files: bool = True
    fold_text: bool = True
    fold_answers: bool = False
    judge: frozenset[Judged] = frozenset({"turns", "tools"})
    earlier: Literal["steer", "flag"] = "steer"
    watch: Literal["answer"] | None = None
    answer_rate: float | None = Field(default=None, gt=0, lt=1)
    answer_threshold: float | None = None

    @field_validator("actions")
    @classmethod
    def _no_pass(cls, value: frozenset[Action]) -> frozenset[Action]:
        if Action.PASS in value:
            raise ValueError("`actions` lists what the guard may do beside passing: steer, flag")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: frozenset[str]) -> frozenset[str]:
        for entry in sorted(value):
            allowed_host(entry)
        return value

    @model_validator(mode="after")
    def _watchable(self) -> Policy:
        if self.answer_threshold is not None and math.isnan(self.answer_threshold):
            raise ValueError("`answer_threshold` is no number; nothing would ever exceed it")
        if self.answer_threshold is not None and self.answer_rate is not None:
            raise ValueError("`answer_rate` and `answer_threshold` both say when; give one")
        if self.watch is not None and Action.FLAG not in self.actions:
            raise ValueError(
                'an answer that is watched can only be flagged; add "flag" to `actions`'
            )
        return self

    @property
    def judged_roles(self) -> frozenset[str]:
        """The roles of the messages whose windows count."""
        return frozenset(_ROLE_OF[name] for name in self.judge)

    @field_serializer("actions", "allowed_hosts", "judge", when_used="json")
    def _sorted(self, value: frozenset[str]) -> list[str]:
        return sorted(value)  # sets have no order of their own, and what is written is compared


def allowed_host(entry: str) -> str:
    """The normal form of an entry of `allowed_hosts`; ValueError when it could never match."""
    try:
        return normal_host(entry.removeprefix("[").removesuffix("]"))
    except ValueError as exc:
        raise ValueError(
            f"`allowed_hosts` holds {entry!r}: {exc}; write the bare host, e.g. 'example.com'"
        ) from exc


def normal_host(host: str) -> str:
    """Lower-case ASCII form of a host name or IP literal; ValueError when there is none."""
    host = host.lower().removesuffix(".")
    if literal := ip_literal(host):
        return str(literal)
    if not host.isascii():
        ascii_host = host.encode("idna").decode("ascii")
        # Python's codec is IDNA 2003, which maps some names to others' ("ß" to "ss")
        if ascii_host.encode("ascii").decode("idna") != host:
            raise ValueError(f"write the host {host!r} in its xn-- form")
        host = ascii_host
    if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
        raise ValueError(f"{host!r} is no host name")
    return host


def ip_literal(host: str) -> IPAddress | None:
    """The address that `host` is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
