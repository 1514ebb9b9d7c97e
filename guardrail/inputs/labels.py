"""Labels, the only texts that go unjudged, and the one rule of what is one.

Ids, kinds and the like stand beside the words of every message. A text is a label where labels are
known to stand, if it is short and has no blank. Everywhere else, and wherever it is longer, a model
may be shown it as words, so it is judged. Ciphers that only a provider reads are as long as they
like, but have no blank either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from guardrail.types import Request

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

CIPHERS = frozenset({"encrypted_content", "signature", "thought_signature", "thought_signatures"})
"""Keys of ciphers that providers want back beside a message."""

_CIPHER = re.compile(r"[\w.:|+/=-]*", re.ASCII)
_LABEL = re.compile(r"[\w.:|+/=-]{0,64}", re.ASCII)


def is_label(text: str) -> bool:
    """Whether a text can be an id and no more: short, and without a blank."""
    return _LABEL.fullmatch(text) is not None


def is_unspoken(
    key: object, value: object, labels: Collection[str], ciphers: Collection[str] = CIPHERS
) -> bool:
    """Whether what stands under a key is a label or a cipher, which no model reads as words.

    Args:
        key: of a mapping.
        value: what it holds; only a text can be a label.
        labels: the keys under which labels are known to stand.
        ciphers: those under which ciphers are.
    """
    if not isinstance(value, str):
        return False
    if key in labels and is_label(value):
        return True
    return key in ciphers and _CIPHER.fullmatch(value) is not None


def shown_labels(chat: object, tools: Sequence[Mapping[str, object]]) -> list[str]:
    """Texts in the place of labels, each once: the names of speakers, and ids that are none.

    Some models' templates show them, the guard's own perhaps does not. Names of tools that are
    offered or called are not among them: the guard reads them there. `chat` is whatever a guard
    reads, or the items of a response's input.
    """
    if isinstance(chat, Request):
        return _shown_in(chat, tools)
    messages = _mappings(chat if isinstance(chat, list | tuple) else [chat])
    calls = [call for each in messages for call in _mappings(each.get("tool_calls"))]
    older = _mappings([each.get("function_call") for each in messages])
    bodies = [each.get(key) for each in messages for key in ("content", "output")]
    parts = [part for body in bodies for part in _mappings(body)]
    known: set[object] = {_function_name(each) for each in (*tools, *calls)}
    items = [each for each in messages if each.get("type") == "function_call"]
    known |= {each["name"] for each in items if isinstance(each.get("name"), str)}
    ids = [each.get(key) for each in messages for key in ("tool_call_id", "call_id")]
    ids += [each.get("id") for each in (*messages, *calls, *older, *parts)]
    return _shown([each.get("name") for each in messages], known, ids)


def _shown_in(request: Request, tools: Sequence[Mapping[str, object]]) -> list[str]:
    messages = request.messages
    calls = [call for message in messages for call in message.tool_calls]
    known = {*(_function_name(each) for each in tools), *(call.name for call in calls)}
    ids = [*(message.tool_call_id for message in messages), *(call.id for call in calls)]
    return _shown([message.name for message in messages], known, ids)


def _shown(names: Sequence[object], known: Collection[object], ids: Sequence[object]) -> list[str]:
    found = [each for each in names if isinstance(each, str) and each and each not in known]
    found += [each for each in ids if isinstance(each, str) and not is_label(each)]
    return [*dict.fromkeys(found)]


def worded(value: object) -> list[str]:
    """Every text in JSON values, keys among them, that is no label, each once."""
    found: dict[str, None] = {}
    waiting: list[object] = [value]
    while waiting:
        match waiting.pop():
            case str(text) if text.strip() and not is_label(text):
                found[text] = None
            case Mapping() as held:
                waiting += reversed([*held, *held.values()])
            case list() | tuple() as items:
                waiting += reversed(items)
    return [*found]


def _mappings(value: object) -> list[Mapping[str, object]]:
    if not isinstance(value, list | tuple):
        return []
    return [each for each in value if isinstance(each, Mapping)]


def _function_name(owner: Mapping[str, object]) -> str | None:
    function = owner.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
