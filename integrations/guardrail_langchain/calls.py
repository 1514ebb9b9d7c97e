"""The calls of an answer, from wherever LangChain and the providers behind it keep them.

The same call often stands in several places, and counts once. What else is said there goes beside
the answer's words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from guardrail.inputs.strict_json import strict_json
from guardrail_langchain.words import legible, without

CALL_BLOCKS = {
    "tool_call": "args",
    "tool_call_chunk": "args",
    "invalid_tool_call": "args",
    "tool_use": "input",
    "function_call": "arguments",
}
"""Blocks that are calls, and the key of their arguments."""


class Calls:
    """The calls of one answer; the same id with other arguments is another call."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self._known: set[str] = set()

    def of_message(self, call: Mapping[str, Any]) -> list[str]:
        """Take a call of `tool_calls` or `invalid_tool_calls`; gives what else it says."""
        self._take(call.get("name"), call.get("args") or {}, call.get("id"))
        return legible(without(call, {"name", "args", "id"}))

    def of_block(self, block: Mapping[str, Any]) -> list[str]:
        """Take the call of a block, unless it is there; gives what else it says."""
        arguments = CALL_BLOCKS[block["type"]]
        label = "call_id" if block.get("call_id") else "id"
        self._take(block.get("name"), block.get(arguments) or {}, block.get(label), again=False)
        return legible(without(block, {"type", "name", label, arguments}))

    def of_records(self, raw: Any) -> list[str]:
        """Take calls as OpenAI writes them, which some classes read; gives what else they say."""
        beside: list[str] = []
        for each in raw if isinstance(raw, list | tuple) else [raw]:
            function = each.get("function") if isinstance(each, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                beside += legible(each)
                continue
            arguments = function.get("arguments") or ""
            if not isinstance(arguments, str | Mapping):
                arguments = json.dumps(arguments, default=str)
            self._take(function["name"], arguments, each.get("id"), again=False)
            beside += legible(without(function, {"name", "arguments"}))
            beside += legible(without(each, {"id", "function"}))
        return beside

    def _take(
        self,
        name: str | None,
        arguments: Mapping[str, Any] | str,
        label: str | None,
        *,
        again: bool = True,
    ) -> None:
        function = {"name": name or "", "arguments": arguments}
        call = {"type": "function", "id": label or None, "function": function}
        written = _written(call)
        if again or written not in self._known:
            self.all.append(call)
            self._known.add(written)


def _written(call: Mapping[str, Any]) -> str:
    """What makes two records the same call: arguments may be JSON, or what it stands for."""
    function = call["function"]
    arguments = function["arguments"] or {}
    if isinstance(arguments, str):
        try:
            arguments = strict_json(arguments)
        except (ValueError, RecursionError):  # as text, whatever another reader makes of it
            pass
    known = [function["name"], call["id"], arguments]
    try:
        return json.dumps(known, sort_keys=True, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys of several kinds, or no end
        return repr(known)
