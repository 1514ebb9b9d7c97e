"""Content blocks of LangChain and of the providers behind it -> parts that a guard reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from langchain_core.messages import HumanMessage

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.folding import is_label
from guardrail.inputs.parts import MEDIA_KEYS

Part = dict[str, Any]

_READ = frozenset(
    "text input_text output_text image image_url input_image video video_url input_video".split()
)
_PICTURES = frozenset({"image", "image_url", "input_image"})
_LABELS = frozenset({"id", "index"})
# How to handle a block, never what is in it.
_HINTS = frozenset({"cache_control", "detail", "item_id", "phase", "signature", "status"})
_SAID_BESIDE = ("annotations", "citations")
# Labels, as far as they look like some: whatever else stands in their place is read.
_LABELLING = _LABELS | _HINTS | {"type", "url", "file_id"}
_CIPHERS = frozenset({"encrypted_content", "data", "signature"})


def parts_of(block: str | Mapping[str, Any], what: str) -> list[Part]:
    """One block as parts; nothing in it is left out.

    Raises:
        UnsupportedContentError: a block that cannot be scored, by its type's name. Keys that the
            guard does not know are refused by the guard itself.
    """
    if isinstance(block, str):
        return [_text(block)]
    plain = _unwrapped(block)
    match plain.get("type"):
        case kind if kind in _READ:
            return _direct(plain, what)
        case "refusal":
            return [_without_labels(plain), *_aside(plain, _LABELS | _HINTS)]
        case "reasoning" | "thinking":
            return [_text("\n".join(_legible(plain)))]
        case "text-plain" if isinstance(plain.get("text"), str):
            return _document(plain, plain["text"], "text")
        case "document" if (text := _text_source(plain)) is not None:
            return _document(plain, text, "source")
        case kind:
            return _translated(plain, str(kind)[:80], what)


def picture_of(block: Mapping[str, Any], what: str) -> Part | None:
    """The part with a block's picture; None for blocks without one.

    Raises:
        UnsupportedContentError: a picture in no form that is read.
    """
    try:
        first, *_ = parts_of(block, what)
    except UnsupportedContentError:
        if _unwrapped(block).get("type") in _PICTURES:
            raise
        return None  # for whoever judges it to refuse
    return first if first.get("type") in _PICTURES else None


def legible(value: Any) -> str:
    """Every text in a value that is not a label or a cipher, a line each."""
    return "\n".join(_legible(value))


def legible_beside(values: Mapping[str, Any]) -> list[str]:
    """Every text in values that a guard does not know; names and the like count as labels."""
    return [text for text in _legible(dict(values)) if not is_label(text)]


def _direct(block: Mapping[str, Any], what: str) -> list[Part]:
    """A block in a form the guard knows; a source in Anthropic's form is opened."""
    rest = _without_labels(block)
    beside = [text for key in _SAID_BESIDE for text in _legible(rest.pop(key, None))]
    source = rest.pop("source", None)
    if isinstance(source, Mapping):
        kind = source.get("type")
        if kind not in ("base64", "url"):
            raise UnsupportedContentError(f"{what} has a source of type {kind!r}; send its bytes")
        if also := sorted(rest.keys() & MEDIA_KEYS):  # whose picture a model reads, nobody knows
            raise UnsupportedContentError(f"{what} has a source and {also[0]}; send one of them")
        rest |= {"base64": source.get("data")} if kind == "base64" else {"url": source.get("url")}
        rest.setdefault("mime_type", source.get("media_type"))
    elif source is not None:
        rest["source"] = source
    said = str(rest.get("text", ""))
    more = [_text(text) for text in beside if text not in said]
    return [rest, *more, *_aside(block, _LABELS | _HINTS)]


def _document(block: Mapping[str, Any], text: str, key: str) -> list[Part]:
    """A document's text, found under `key`, with what stands before it and beside it."""
    named = {"title", "context", key}
    before = _joined(block.get("title"), block.get("context"), text)
    return [_text(before), *_aside(block, set(_whole(block)) - named)]


def _without_labels(block: Mapping[str, Any]) -> Part:
    """The block less its labels and hints."""
    return {key: item for key, item in _whole(block).items() if key not in _LABELS | _HINTS}


def _aside(block: Mapping[str, Any], keys: Collection[str]) -> list[Part]:
    """Texts that stand where a block has labels and hints, and are none."""
    named = {key: item for key, item in _whole(block).items() if key in keys}
    return [_text(text) for text in legible_beside(named)]


def _whole(block: Mapping[str, Any]) -> Part:
    """The block with what LangChain moved into `extras` back in its place."""
    extras = block.get("extras")
    whole = {**(extras if isinstance(extras, Mapping) else {}), **block}
    whole.pop("extras", None)
    return whole


def _translated(block: Mapping[str, Any], kind: str, what: str) -> list[Part]:
    """A provider's own block, where LangChain can turn it into one of its standard ones."""
    try:
        found = HumanMessage(content=[dict(block)]).content_blocks
    except (KeyError, TypeError, ValueError):
        found = []
    if len(found) == 1 and (standard := _unwrapped(found[0])) != block:
        if standard.get("type") in _READ:
            return _direct(standard, what)
        kind = f"{kind} ({standard.get('type')})" if standard.get("type") != kind else kind
    raise UnsupportedContentError(
        f"{what} is a {kind!r} block, which a guard cannot score; convert it to text, pictures "
        "or videos first"
    )


def _unwrapped(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """What LangChain itself did not know, as it was sent."""
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        if others := block.keys() - {"type", "value", "id", "index"}:
            raise UnsupportedContentError(
                f"a non_standard block has the key {min(others)!r} beside its value, which is not "
                "read; put it into the value, or leave it out"
            )
        value: Mapping[str, Any] = block["value"]
        return value
    return block


def _text_source(block: Mapping[str, Any]) -> str | None:
    source = block.get("source")
    if isinstance(source, Mapping) and source.get("type") == "text":
        data = source.get("data")
        return data if isinstance(data, str) else None
    return None


def _legible(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str) and not is_label(key):
                yield key
            if not (isinstance(item, str) and _is_no_text(key, item)):
                yield from _legible(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _legible(item)


def _is_no_text(key: object, item: str) -> bool:
    return (key in _LABELLING and is_label(item)) or (key in _CIPHERS and len(item.split()) < 2)


def _joined(*texts: object) -> str:
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _text(text: str) -> Part:
    return {"type": "text", "text": text}
