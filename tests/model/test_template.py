from __future__ import annotations

from types import SimpleNamespace

import pytest

from guardrail.model.template import reads, template_text


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% for m in messages %}{{ m['tools'] }}{% endfor %}", False),
        ("the word tools stands here", False),
        ("{% set tools = [] %}{{ tools }}", False),
        ("{%- generation %}{{ tools }}{%- endgeneration %}", True),
        ("{% for m in messages %}{% break %}{% endfor %}{{ tools }}", True),
        ("{% broken", False),
    ],
)
def test_a_template_reads_tools_when_the_variable_is_used(template, expected):
    assert reads(template, "tools") is expected


def test_the_template_for_tools_counts_too():
    both = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    text = template_text(SimpleNamespace(chat_template=both))
    assert reads(text, "tools")
    assert template_text(SimpleNamespace(chat_template=None)) is None
    assert template_text(SimpleNamespace(chat_template={})) is None
