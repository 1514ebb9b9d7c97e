from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.inputs.strict_json import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_plain_json_reads_as_it_was_written(value):
    assert strict_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 1}', '[{"a": 1, "a": 2}]', "NaN", "[-Infinity]", "1e999"]
)
def test_what_readers_would_read_differently_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        strict_json(text)


@pytest.mark.parametrize("pair", ["[]", ("{" + '"a":', "}")])
def test_nesting_has_a_bound(pair):
    opening, closing = pair

    def nested(depth: int) -> str:
        return opening * depth + "1" + closing * depth

    strict_json(nested(100))
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        strict_json(nested(101))
    with pytest.raises((ValueError, RecursionError)):
        strict_json(nested(100_000))
