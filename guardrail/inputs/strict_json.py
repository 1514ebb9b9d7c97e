"""JSON that all readers read alike: nothing twice, no number that is none, no endless nesting."""

from __future__ import annotations

import json
import math
from typing import Any

_DEEPEST = 100


def strict_json(text: str) -> Any:
    """The value that `text` writes down.

    Raises:
        ValueError: it is no JSON, a key stands twice in one object (readers differ in which one
            they take), a number is not finite, or values are nested more than 100 deep (what can be
            read may still be too deep for whoever writes it down again).
        RecursionError: it is nested too deep to be read at all.
    """
    value = json.loads(
        text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite
    )
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for outer in level for item in _inside(outer)]
        if not level:
            return value
    raise ValueError(f"values are nested more than {_DEEPEST} deep")


def _inside(value: Any) -> list[Any]:
    """What stands in a list or an object and may hold more itself."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
