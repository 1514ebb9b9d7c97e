"""What a cache's key must hold: the pixels of pictures, and the rules an answer was made under."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from guardrail.inputs.media import sniffed_format

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage


def digest(value: Any) -> str:
    """A short name of JSON values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_data(message: BaseMessage) -> BaseMessage:
    """The message with pictures and bytes as data, as LangChain writes messages down.

    In a cache's key a Pillow picture would stand as the address it has in memory, where another
    picture may be found later.
    """
    if isinstance(message.content, str):
        return message
    content = [_with_data(block) for block in message.content]
    if all(a is b for a, b in zip(content, message.content, strict=True)):
        return message
    return message.model_copy(update={"content": content})


def _with_data(block: Any) -> Any:
    if not isinstance(block, Mapping):
        return block
    for key in ("image", "base64", "data"):
        value = block.get(key)
        if isinstance(value, Image.Image | bytes | bytearray):
            rest = {name: item for name, item in block.items() if name != key}
            return {**rest, "base64": _encoded(value), "mime_type": _kind(value, block)}
    return block


def _kind(value: Any, block: Mapping[str, Any]) -> str:
    if isinstance(value, Image.Image):
        return "image/png"
    found = sniffed_format(bytes(value[:64])) or "PNG"
    return str(block.get("mime_type") or f"image/{found.lower()}")


def _encoded(value: Image.Image | bytes | bytearray) -> str:
    if not isinstance(value, Image.Image):
        return base64.b64encode(value).decode()
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(value)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    upright.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
