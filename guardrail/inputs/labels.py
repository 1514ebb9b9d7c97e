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
    offered or called are not among them: the guard reads them there.
    """
    messages = _mappings(chat if isinstance(chat, list) else [chat])
    calls = [call for each in messages for call in _mappings(each.get("tool_calls"))]
    known = {_function_name(each) for each in (*tools, *calls)}
    names = [each.get("name") for each in messages]
    ids = [each.get("tool_call_id") for each in messages] + [call.get("id") for call in calls]
    found = [each for each in names if isinstance(each, str) and each and each not in known]
    found += [each for each in ids if isinstance(each, str) and not is_label(each)]
    return [*dict.fromkeys(found)]


def _mappings(value: object) -> list[Mapping[str, object]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _function_name(owner: Mapping[str, object]) -> str | None:
    function = owner.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None
