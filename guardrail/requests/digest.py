"""A request by its content, for what is kept of it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from guardrail.types import ImagePart, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from PIL.Image import Image

    from guardrail.types import Request


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

    def feed_picture(image: Image) -> None:
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
