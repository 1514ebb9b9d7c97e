"""One item of each kind that a run's input may hold, with all its fields."""

from __future__ import annotations

import base64
import io
import typing
from typing import TYPE_CHECKING, Any

from openai.types import responses
from openai.types.responses import response_input_param
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.channels.contract import Kind


def _picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "white").save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


PICTURE = _picture()
URL = f"data:image/png;base64,{PICTURE}"
CALLER = {"type": "program", "caller_id": "p1"}
FUNCTION = {
    "type": "function",
    "name": "look",
    "description": "Look.",
    "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    "strict": True,
}
LATER = {"type": "namespace", "name": "crm", "description": "Clients.", "tools": [FUNCTION]}
CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "look",
    "arguments": '{"where": "here"}',
}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "here"}
CITED = {
    "type": "url_citation",
    "title": "A page",
    "url": "https://a",
    "start_index": 0,
    "end_index": 1,
}
TOKEN = {"token": "so", "bytes": [115], "logprob": -0.1, "top_logprobs": []}
ABOUT = {"id": "i1", "status": "completed"}

_MESSAGES: dict[str, Any] = {
    "easy message": responses.EasyInputMessageParam,
    "message": response_input_param.Message,
    "answer": responses.ResponseOutputMessageParam,
}

SAMPLES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "easy message": (
        "user's message",
        {"type": "message", "role": "user", "content": "hi", "phase": "commentary"},
    ),
    "message": (
        "user's message",
        {
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [
                {
                    "type": "input_text",
                    "text": "hi",
                    "prompt_cache_breakpoint": {"mode": "explicit"},
                }
            ],
        },
    ),
    "answer": (
        "history",
        {
            "type": "message",
            "role": "assistant",
            "id": "m1",
            "status": "completed",
            "phase": "final_answer",
            "content": [
                {"type": "output_text", "text": "so", "annotations": [CITED], "logprobs": [TOKEN]},
                {"type": "refusal", "refusal": "no"},
            ],
        },
    ),
    "file_search_call": (
        "retrieved text",
        {
            "type": "file_search_call",
            **ABOUT,
            "queries": ["cats"],
            "results": [
                {
                    "file_id": "f",
                    "filename": "a.txt",
                    "text": "so",
                    "score": 1,
                    "attributes": {"a": "b"},
                }
            ],
        },
    ),
    "computer_call": (
        "tool call",
        {
            "type": "computer_call",
            **ABOUT,
            "call_id": "c1",
            "action": {"type": "type", "text": "hi"},
            "actions": [{"type": "type", "text": "hi"}],
            "pending_safety_checks": [{"id": "s1", "code": "bad", "message": "Look out."}],
        },
    ),
    "computer_call_output": (
        "tool result",
        {
            "type": "computer_call_output",
            **ABOUT,
            "call_id": "c1",
            "output": {"type": "computer_screenshot", "image_url": URL},
            "acknowledged_safety_checks": [{"id": "s1", "code": "bad", "message": "Look out."}],
        },
    ),
    "web_search_call": (
        "tool call",
        {
            "type": "web_search_call",
            **ABOUT,
            "action": {
                "type": "search",
                "query": "cats",
                "queries": ["cats"],
                "sources": [{"type": "url", "url": "https://a"}],
            },
        },
    ),
    "function_call": (
        "tool call",
        {**CALL, **ABOUT, "namespace": "crm", "caller": CALLER, "async": False},
    ),
    "function_call_output": (
        "tool result",
        {**RESULT, **ABOUT, "name": "look", "namespace": "crm", "caller": CALLER},
    ),
    "tool_search_call": (
        "tool call",
        {
            "type": "tool_search_call",
            **ABOUT,
            "call_id": "c1",
            "execution": "client",
            "arguments": {"query": "cats"},
        },
    ),
    "tool_search_output": (
        "tool namespace",
        {
            "type": "tool_search_output",
            **ABOUT,
            "call_id": "c1",
            "execution": "client",
            "tools": [LATER, FUNCTION],
        },
    ),
    "additional_tools": (
        "tool namespace",
        {"type": "additional_tools", "id": "i1", "role": "developer", "tools": [LATER, FUNCTION]},
    ),
    "configuration_update": (
        "settings",
        {
            "type": "configuration_update",
            "id": "i1",
            "reasoning": {"effort": "low"},
            "text": {"verbosity": "low"},
        },
    ),
    "reasoning": (
        "history",
        {
            "type": "reasoning",
            **ABOUT,
            "summary": [{"type": "summary_text", "text": "so"}],
            "content": [{"type": "reasoning_text", "text": "so"}],
            "encrypted_content": "gAAA=",
        },
    ),
    "compaction": ("history", {"type": "compaction", "id": "i1", "encrypted_content": "gAAA="}),
    "compaction_trigger": ("history", {"type": "compaction_trigger", "id": "i1"}),
    "image_generation_call": (
        "history",
        {
            "type": "image_generation_call",
            **ABOUT,
            "result": PICTURE,
            "revised_prompt": "a cat",
            "action": "generate",
            "background": "opaque",
            "error": {"code": "a", "message": "b"},
            "output_format": "png",
            "quality": "low",
            "size": "auto",
            "svg_usage": {"a": 1},
        },
    ),
    "code_interpreter_call": (
        "tool call",
        {
            "type": "code_interpreter_call",
            **ABOUT,
            "code": "1",
            "container_id": "k1",
            "outputs": [{"type": "logs", "logs": "1"}],
        },
    ),
    "local_shell_call": (
        "tool call",
        {
            "type": "local_shell_call",
            **ABOUT,
            "call_id": "c1",
            "action": {
                "type": "exec",
                "command": ["ls"],
                "env": {"A": "b"},
                "user": "u",
                "working_directory": "/",
            },
        },
    ),
    "local_shell_call_output": (
        "tool result",
        {"type": "local_shell_call_output", **ABOUT, "output": "a"},
    ),
    "shell_call": (
        "tool call",
        {
            "type": "shell_call",
            **ABOUT,
            "call_id": "c1",
            "caller": CALLER,
            "action": {"commands": ["ls"], "timeout_ms": 1, "max_output_length": 1},
            "environment": {
                "type": "local",
                "skills": [{"name": "a", "description": "b", "path": "/"}],
            },
        },
    ),
    "shell_call_output": (
        "tool result",
        {
            "type": "shell_call_output",
            **ABOUT,
            "call_id": "c1",
            "caller": CALLER,
            "max_output_length": 9,
            "output": [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 0}}],
        },
    ),
    "apply_patch_call": (
        "tool call",
        {
            "type": "apply_patch_call",
            **ABOUT,
            "call_id": "c1",
            "caller": CALLER,
            "operation": {"type": "create_file", "path": "a", "diff": "+b"},
        },
    ),
    "apply_patch_call_output": (
        "tool result",
        {
            "type": "apply_patch_call_output",
            **ABOUT,
            "call_id": "c1",
            "caller": CALLER,
            "output": "done",
        },
    ),
    "mcp_list_tools": (
        "tool description",
        {
            "type": "mcp_list_tools",
            "id": "i1",
            "server_label": "s",
            "error": "none",
            "tools": [
                {
                    "name": "a",
                    "description": "b",
                    "input_schema": {"type": "object", "title": "t"},
                    "annotations": {"title": "A tool"},
                }
            ],
        },
    ),
    "mcp_approval_request": (
        "tool call",
        {
            "type": "mcp_approval_request",
            "id": "i1",
            "server_label": "s",
            "name": "look",
            "arguments": "{}",
        },
    ),
    "mcp_approval_response": (
        "tool result",
        {
            "type": "mcp_approval_response",
            "id": "i1",
            "approval_request_id": "a1",
            "approve": True,
            "reason": "so",
        },
    ),
    "mcp_call": (
        "tool result",
        {
            "type": "mcp_call",
            **ABOUT,
            "server_label": "s",
            "name": "look",
            "arguments": "{}",
            "output": "here",
            "error": "none",
            "approval_request_id": "a1",
        },
    ),
    "custom_tool_call": (
        "tool call",
        {
            "type": "custom_tool_call",
            "id": "i1",
            "call_id": "c1",
            "name": "write",
            "input": "hi",
            "namespace": "crm",
            "caller": CALLER,
            "async": False,
        },
    ),
    "custom_tool_call_output": (
        "tool result",
        {
            "type": "custom_tool_call_output",
            "id": "i1",
            "call_id": "c1",
            "output": "done",
            "caller": CALLER,
        },
    ),
    "item_reference": ("history", {"type": "item_reference", "id": "i1"}),
    "program": (
        "tool call",
        {"type": "program", "id": "i1", "call_id": "c1", "code": "1", "fingerprint": "f1"},
    ),
    "program_output": (
        "tool result",
        {"type": "program_output", **ABOUT, "call_id": "c1", "result": "1"},
    ),
}


def kind_of(item: Any) -> str:
    """The name of the sample for a class of items."""
    for name, known in _MESSAGES.items():
        if item is known:
            return name
    hint = typing.get_type_hints(item)["type"]
    texts = [each for each in (*typing.get_args(hint), hint) if not isinstance(each, str)]
    kinds = [kind for each in (hint, *texts) for kind in typing.get_args(each)]
    return next(kind for kind in kinds if isinstance(kind, str))


ITEMS: list[Any] = [*typing.get_args(response_input_param.ResponseInputItemParam)]
"""The classes of items that the library knows."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every text in JSON values but the names of kinds."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "type":
                yield from leaves(item, (*path, key))


def planted(value: Any, path: tuple[Any, ...], text: Any) -> Any:
    """The same with a text put there."""
    if not path:
        return text
    key, *rest = path
    held = value.copy()
    held[key] = planted(value[key], tuple(rest), text)
    return held
