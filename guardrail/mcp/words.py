"""What in the protocol's messages are words, and what are its own labels, tokens and icons.

The rule is that of all adapters (`guardrail.inputs.labels`): a text is a label only where labels
are known to stand, if it is short and has no blank. Where that is in this protocol the forms below
say, by the place of a key and not by its name alone: what a server puts into data or metadata of
its own is words, whatever its keys are called. Keys themselves are words, but for the protocol's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mcp.types
from pydantic import BaseModel

from guardrail.inputs.labels import is_unspoken

if TYPE_CHECKING:
    from collections.abc import Sequence

_OURS = "io.modelcontextprotocol/"  # the prefix of the protocol's own keys in `_meta`
_INFO_KEY = f"{_OURS}serverInfo"
_TASK_KEY = f"{_OURS}related-task"
# A number, a date, or an id that is only hexadecimal digits.
_WORDLESS = re.compile(r"(?=.*[0-9])[0-9A-Fa-f.:,+/_-]{1,64}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
_ICON_SOURCE = re.compile(r"(https?://[!-~]{1,2048}|data:[!-~]*)", re.IGNORECASE)
_ICON_SIZE = re.compile(r"\d{1,5}x\d{1,5}|any", re.ASCII)
_ICON_TYPE = re.compile(r"[\w.+-]{1,32}/[\w.+-]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Form:
    """Where labels stand in an object of the protocol; everything else in it is words.

    `tokens` are keys of what only goes back to the server as it came: it is as long as it likes,
    but has no blank. `inner` has the forms of what stands under a key.
    """

    labels: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    inner: Mapping[str, Form] = field(default_factory=dict)


FREE = Form()
"""A server's own data, without a place for labels."""
_INFO = Form(frozenset({"name", "version"}))
_TASK = Form(frozenset({"taskId", "status"}))
_META = Form(
    frozenset({"progressToken"} | {_OURS + each for each in ("protocolVersion", "logLevel")})
    | {f"{_OURS}subscriptionId"},
    inner={_INFO_KEY: _INFO, _TASK_KEY: _TASK},
)
RESULT = Form(
    frozenset({"protocolVersion", "supportedVersions", "resultType", "cacheScope"}) | _TASK.labels,
    tokens=frozenset({"nextCursor", "requestState"}),
    inner={"_meta": _META, "serverInfo": _INFO, "task": _TASK, "tasks": _TASK},
)
"""An answer of the server."""
NOTICE = Form(
    frozenset({"level", "logger", "progressToken", "requestId", "uri", "elicitationId"})
    | _TASK.labels,
    inner={
        "_meta": _META,
        "notifications": Form(frozenset({"resourceSubscriptions", "taskIds"})),
    },
)
"""The parameters of a notification."""
REQUEST = Form(inner={"_meta": _META})
"""The parameters of a request of the server."""


def _keys() -> frozenset[str]:
    """The names of all fields of the protocol, and its keys in `_meta`."""
    kinds = [each for each in vars(mcp.types).values() if isinstance(each, type)]
    models = [each for each in kinds if issubclass(each, BaseModel)]
    named = {
        each.alias or name for model in models for name, each in model.model_fields.items()
    } | {"progressToken", "traceparent", "tracestate", "baggage"}
    return frozenset(named) | _META.labels | _META.inner.keys()


_KEYS = _keys()


def holds_words(value: Mapping[Any, Any] | Sequence[Any], form: Form = FREE) -> bool:
    """Whether an object, or a list, says more than labels, numbers and the protocol's keys."""
    waiting: list[tuple[object, Any, Form]] = [("", value, Form(inner={"": form}))]
    while waiting:
        key, held, holder = waiting.pop()
        match held:
            case None | bool() | int() | float():
                pass
            case str():
                if not _is_mute(held) and not is_unspoken(key, held, holder.labels, holder.tokens):
                    return True
            case Mapping():
                inner = holder.inner.get(str(key), FREE)
                if not all(each in _KEYS or _is_mute(str(each)) for each in held):
                    return True
                waiting += [(each, item, inner) for each, item in held.items()]
            case list() | tuple():
                waiting += [(key, item, holder) for item in held]
            case _:
                return True
    return False


def worded(value: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """What of an object holds words."""
    return {key: item for key, item in value.items() if holds_words({key: item}, form)}


def _is_mute(text: str) -> bool:
    """Whether a text holds no word, wherever it stands."""
    return not text or bool(_WORDLESS.fullmatch(text) or _DATE.fullmatch(text))


def undrawn(value: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a list, or a result, without icons that are what the protocol says.

    Clients draw those for people. The server's own stand within what it says of itself.
    """
    bare = _without_icons(value)
    if isinstance(info := value.get("serverInfo"), Mapping):
        bare["serverInfo"] = _without_icons(info)
    if isinstance(meta := value.get("_meta"), Mapping):
        info = meta.get(_INFO_KEY)
        if isinstance(info, Mapping):
            bare["_meta"] = {**meta, _INFO_KEY: _without_icons(info)}
    return bare


def _without_icons(value: Mapping[str, Any]) -> dict[str, Any]:
    icons = value.get("icons")
    drawn = isinstance(icons, list) and all(map(_is_icon, icons))
    return {key: item for key, item in value.items() if key != "icons" or not drawn}


def _is_icon(icon: object) -> bool:
    if not isinstance(icon, Mapping) or not icon.keys() <= {"src", "mimeType", "sizes", "theme"}:
        return False
    sizes = icon.get("sizes") or []
    sizes = [sizes] if isinstance(sizes, str) else sizes
    return (
        _matches(_ICON_SOURCE, icon.get("src"))
        and (icon.get("mimeType") is None or _matches(_ICON_TYPE, icon["mimeType"]))
        and icon.get("theme") in (None, "light", "dark")
        and isinstance(sizes, list)
        and all(_matches(_ICON_SIZE, size) for size in sizes)
    )


def _matches(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None


def repeats(structured: object, blocks: Sequence[Any]) -> bool:
    """Whether structured content only says what a block of text says."""
    for block in blocks:
        text = block.get("text") if isinstance(block, Mapping) else None
        if not isinstance(text, str):
            continue
        if structured == {"result": text}:
            return True
        try:
            if json.loads(text) == structured:
                return True
        except (ValueError, RecursionError):
            continue
    return False


def called(item: object) -> str:
    """How the log calls an item of a list."""
    if not isinstance(item, Mapping):
        return item[:80] if isinstance(item, str) else f"a {type(item).__name__}"
    names = (item.get(key) for key in ("name", "uri", "uriTemplate"))
    return str(next(filter(None, names), None))[:80]
