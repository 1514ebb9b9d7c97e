"""JSON schemas at random, as people and their tools write them; some ask for the impossible."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = ("a", "b", "name", "größe", "x/y", 'say "hi"', "")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "uri", "hostname")
PATTERNS = ("^[a-c]{1,3}$", "b", "^\\d{2}-\\d{2}$", "^(yes|no)$", "a|b", "^\\w+$", "é?$")
# What llguidance knows nothing of, and must say so.
UNKNOWN: tuple[dict[str, Any], ...] = (
    {"not": {"type": "null"}},
    {"type": "array", "uniqueItems": True},
    {"type": "array", "contains": {"type": "integer"}},
    {"type": "string", "pattern": "a(?=b)"},
    {"if": {"type": "string"}, "then": {"minLength": 2}},
    {"$ref": "https://example.org/schema.json"},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"enum": []},
    {"$ref": "#/$defs/loop", "$defs": {"loop": {"$ref": "#/$defs/loop"}}},
)

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(-100, 100, allow_nan=False, width=16)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=3,
)


@st.composite
def _strings(draw: st.DrawFn) -> dict[str, Any]:
    least = draw(st.integers(0, 3))
    kinds = [
        {"minLength": least, "maxLength": least + draw(st.integers(0, 3))},
        {"maxLength": draw(st.integers(0, 4))},
        {"pattern": draw(st.sampled_from(PATTERNS))},
        {"format": draw(st.sampled_from(FORMATS))},
        {},
    ]
    return {"type": "string", **draw(st.sampled_from(kinds))}


@st.composite
def _numbers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(("integer", "number")))
    low = draw(st.integers(-50, 50))
    bounds = [
        {"minimum": low, "maximum": low + draw(st.integers(0, 100))},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + draw(st.integers(2, 100))},
        {"minimum": low},
        {"minimum": 0, "maximum": 60, "multipleOf": draw(st.sampled_from((5, 2)))},
        {},
    ]
    return {"type": kind, **draw(st.sampled_from(bounds))}


@st.composite
def _arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array"}
    if draw(st.booleans()):
        made["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    made["items"] = draw(inner | st.just(False))
    if draw(st.integers(0, 3)):
        made["maxItems"] = draw(st.integers(0, 3))
    if draw(st.booleans()):
        made["minItems"] = draw(st.integers(0, 2))
    return made


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    properties = draw(st.dictionaries(st.sampled_from(NAMES), inner, max_size=3))
    made: dict[str, Any] = {"type": "object", "properties": properties}
    if properties:
        made["required"] = sorted(draw(st.sets(st.sampled_from(sorted(properties)))))
    further = draw(st.sampled_from(("none", "none", "none", "schema", "any", "pattern")))
    if further == "none":
        made["additionalProperties"] = False
    elif further == "schema":
        made["additionalProperties"] = draw(inner)
    elif further == "pattern":
        made |= {"patternProperties": {"^p_": draw(inner)}, "additionalProperties": False}
    if draw(st.integers(0, 5)) == 0:
        made["minProperties"] = draw(st.integers(0, 2))
    return made


def _combined(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        _objects(inner),
        _objects(inner),
        _arrays(inner),
        several.map(lambda each: {"anyOf": each}),
        several.map(lambda each: {"oneOf": each}),
        several.map(lambda each: {"allOf": each}),
    )


def _named(one: dict[str, Any]) -> dict[str, Any]:
    """What pydantic makes of a model in a model, and of one that holds itself."""
    both = {"type": "object", "properties": {"one": {"$ref": "#/$defs/one"}}, "required": ["one"]}
    more = {"anyOf": [{"$ref": "#/$defs/both"}, {"type": "null"}]}
    both |= {"additionalProperties": False}
    both["properties"] |= {"more": more}
    return {"$ref": "#/$defs/both", "$defs": {"one": one, "both": both}}


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """One schema in eight asks for what cannot be kept to."""
    leaves = st.one_of(
        _strings(),
        _numbers(),
        st.sampled_from(({"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"]}, {})),
        st.lists(_values, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        _values.map(lambda value: {"const": value}),
    )
    known = st.recursive(leaves, _combined, max_leaves=6)
    return st.one_of(*[known] * 6, known.map(_named), st.sampled_from(UNKNOWN))
