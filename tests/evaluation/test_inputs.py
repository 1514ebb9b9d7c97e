from __future__ import annotations

import pytest

from guardrail.errors import DatasetError
from guardrail.evaluation.inputs import Troubles
from guardrail.evaluation.items import EvalItem


def test_a_trouble_is_raised_or_kept():
    item = EvalItem(id="x", label="harmful", messages=[], text="")
    with pytest.raises(DatasetError, match="input 'x' \\(reading\\): KeyError"):
        Troubles().note(item, "reading", KeyError("k"))
    kept = Troubles(skip=True)
    kept.note(item, "reading", ValueError("a\nb"))
    assert kept.found == {"x": "reading: ValueError: a b"}
    assert kept.kinds == {"x": "reading: ValueError"}
    kept.note(item, "reading", ValueError("\ud800"))
    assert kept.found["x"].isascii()
