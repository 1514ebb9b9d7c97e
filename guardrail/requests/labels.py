"""Names and ids in chats. Some models' templates show them, the guard's own perhaps does not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_ID = re.compile(r"[\w.:|+/=-]{0,64}", re.ASCII)


def shown_labels(chat: object, tools: Sequence[Mapping[str, object]]) -> list[str]:
    """Texts in the place of labels, each once: the names of speakers, and ids that are none.

    Names of tools that are offered or called are not among them: the guard reads them there.
    """
    messages = _mappings(chat if isinstance(chat, list) else [chat])
    calls = [call for each in messages for call in _mappings(each.get("tool_calls"))]
    known = {_function_name(each) for each in (*tools, *calls)}
    names = [each.get("name") for each in messages]
    ids = [each.get("tool_call_id") for each in messages] + [call.get("id") for call in calls]
    found = [each for each in names if isinstance(each, str) and each and each not in known]
    found += [each for each in ids if isinstance(each, str) and not is_label(each)]
    return [*dict.fromkeys(found)]


def is_label(text: str) -> bool:
    """Whether a text can be an id and no more: short, and without a space."""
    return _ID.fullmatch(text) is not None


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _function_name(owner: Mapping[str, object]) -> str | None:
    function = owner.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
