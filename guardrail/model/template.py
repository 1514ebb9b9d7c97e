"""A model's chat template as text, and what it can render."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import meta


class _Generation(jinja2.ext.Extension):
    """Reads the `{% generation %}` blocks of training templates."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        """The nodes inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_text(processor: Any) -> str | None:
    """The template that will be applied; the one for tools behind it where there are two."""
    template = getattr(processor, "chat_template", None)
    if isinstance(template, Mapping):
        parts = [template.get("default"), template.get("tool_use")]
        template = "".join(part for part in parts if isinstance(part, str)) or None
    return template if isinstance(template, str) else None


def reads(template: str, variable: str) -> bool:
    """Whether a template makes use of a variable; false for one that cannot be parsed."""
    environment = jinja2.Environment(
        extensions=["jinja2.ext.loopcontrols", _Generation],
        autoescape=False,
    )
    try:
        return variable in meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateError:
        return False
