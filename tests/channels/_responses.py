"""Responses and completions with one word planted, by what becomes of it."""

from __future__ import annotations

import json

from tests.channels._bodies import (
    BASES,
    COMPLETIONS,
    RESPONSES,
    body_with,
    called,
    item_of,
    message_with,
    messages,
    output_with,
    schema,
    text_of,
    ways,
    words,
)

RESPONSE_WAYS = [
    *ways(
        RESPONSES,
        "judged",
        "judged",
        {
            "instructions": {
                "instructions": lambda w: body_with(RESPONSES, instructions=w),
            },
            "user's message": {
                "input": lambda w: {**BASES[RESPONSES], "input": w},
                "input text": lambda w: messages(
                    {"role": "user", "content": [{"type": "input_text", "text": w}]}, path=RESPONSES
                ),
            },
            "system prompt": {
                "developer message": lambda w: messages(
                    {"role": "developer", "content": w}, path=RESPONSES
                ),
            },
            "history": {
                "output text": lambda w: messages(
                    {
                        "type": "message",
                        "role": "assistant",
                        "id": "m",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": w, "annotations": []}],
                    },
                    path=RESPONSES,
                ),
            },
            "tool call": {
                "arguments": lambda w: called(arguments=json.dumps({"a": w})),
                "name": lambda w: called(name=w),
                "id of the call": lambda w: called(call_id=words(w)),
            },
            "tool result": {
                "text": lambda w: output_with(output=w),
                "text part": lambda w: output_with(output=[{"type": "input_text", "text": w}]),
                "name": lambda w: output_with(name=w),
                "id of the call": lambda w: output_with(call_id=words(w)),
            },
            "tool name": {
                "tools": lambda w: body_with(RESPONSES, tools=[{"type": "function", "name": w}]),
            },
            "tool description": {
                "tools": lambda w: body_with(
                    RESPONSES, tools=[{"type": "function", "name": "a", "description": w}]
                ),
            },
            "schema strings": {
                "tools": lambda w: body_with(
                    RESPONSES, tools=[{"type": "function", "name": "a", "parameters": schema(w)}]
                ),
            },
            "form of the answer": {
                "schema": lambda w: body_with(RESPONSES, text=text_of({"schema": schema(w)})),
                "name": lambda w: body_with(RESPONSES, text=text_of({"name": w})),
                "description": lambda w: body_with(RESPONSES, text=text_of({"description": w})),
            },
        },
    ),
    *ways(
        RESPONSES,
        "refused",
        "refused",
        {
            "history": {
                "annotations of a text": lambda w: messages(
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "output_text", "text": "a", "annotations": [{"title": w}]}
                        ],
                    },
                    path=RESPONSES,
                ),
                "item's status": lambda w: messages(message_with(status=words(w)), path=RESPONSES),
                "item's phase": lambda w: messages(message_with(phase=w), path=RESPONSES),
                "reasoning item": lambda w: item_of(
                    "reasoning", id="r", summary=[{"type": "summary_text", "text": w}]
                ),
                "compaction": lambda w: item_of("compaction", encrypted_content=w),
            },
            "resource": {
                "input file": lambda w: messages(
                    {
                        "role": "user",
                        "content": [{"type": "input_file", "file_data": w, "filename": w}],
                    },
                    path=RESPONSES,
                ),
                "reference to an item": lambda w: item_of("item_reference", id=w),
                "picture by its id": lambda w: messages(
                    {"role": "user", "content": [{"type": "input_image", "file_id": w}]},
                    path=RESPONSES,
                ),
            },
            "retrieved text": {
                "file search": lambda w: item_of(
                    "file_search_call",
                    id="f",
                    queries=[w],
                    status="completed",
                    results=[{"text": w}],
                ),
                "earlier response": lambda w: body_with(RESPONSES, previous_response_id=w),
                "conversation": lambda w: body_with(RESPONSES, conversation={"id": w}),
            },
            "tool call": {
                "id in an object": lambda w: called(id={"a": words(w)}),
                "status": lambda w: called(status=words(w)),
                "caller": lambda w: called(caller={"type": w}),
                "custom": lambda w: item_of("custom_tool_call", call_id="c", name="a", input=w),
                "of an MCP server": lambda w: item_of(
                    "mcp_call", id="c", name="a", arguments=w, server_label="s"
                ),
            },
            "tool namespace": {
                "of a call": lambda w: called(namespace=w),
                "tools": lambda w: body_with(
                    RESPONSES,
                    tools=[{"type": "namespace", "name": w, "description": w, "tools": []}],
                ),
                "of a function": lambda w: body_with(
                    RESPONSES, tools=[{"type": "function", "name": "a", "namespace": w}]
                ),
            },
            "tool result": {
                "status": lambda w: output_with(status=words(w)),
                "custom": lambda w: item_of("custom_tool_call_output", call_id="c", output=w),
            },
            "schema strings": {
                "of results": lambda w: body_with(
                    RESPONSES, tools=[{"type": "function", "name": "a", "output_schema": schema(w)}]
                ),
            },
            "tool description": {
                "MCP server": lambda w: body_with(
                    RESPONSES, tools=[{"type": "mcp", "server_label": w, "server_description": w}]
                ),
                "more tools": lambda w: item_of(
                    "additional_tools",
                    role="developer",
                    tools=[{"type": "function", "name": "a", "description": w}],
                ),
            },
            "form of the answer": {
                "verbosity": lambda w: body_with(RESPONSES, text={"verbosity": words(w)}),
            },
            "prompt template": {
                "variables": lambda w: body_with(
                    RESPONSES, prompt={"id": "p", "variables": {"a": w}}
                ),
            },
            "settings": {
                "effort": lambda w: body_with(RESPONSES, reasoning={"effort": words(w)}),
                "what is included": lambda w: body_with(RESPONSES, include=[words(w)]),
                "what of the context is kept": lambda w: body_with(
                    RESPONSES, context_management=[{"type": w}]
                ),
                "name of a chosen tool": lambda w: body_with(
                    RESPONSES,
                    tools=[{"type": "function", "name": "a"}],
                    tool_choice={"type": "function", "name": words(w)},
                ),
            },
        },
    ),
    *ways(
        RESPONSES,
        "refused",
        "never",
        {
            "history": {
                "probabilities of a text": lambda w: messages(
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "output_text", "text": "a", "logprobs": [{"token": w}]}
                        ],
                    },
                    path=RESPONSES,
                ),
            },
        },
    ),
    *ways(
        RESPONSES,
        "judged",
        "never",
        {
            "history": {
                "item's id": lambda w: messages(message_with(id=words(w)), path=RESPONSES),
            },
            "tool call": {
                "id of the item": lambda w: called(id=words(w)),
            },
            "tool result": {
                "id of the item": lambda w: output_with(id=words(w)),
            },
            "metadata": {
                "value": lambda w: body_with(RESPONSES, metadata={"a": words(w)}),
                "user": lambda w: body_with(RESPONSES, user=words(w)),
            },
            "settings": {
                "stop": lambda w: body_with(RESPONSES, stop=words(w)),
            },
        },
    ),
    *ways(
        COMPLETIONS,
        "judged",
        "refused",
        {
            "user's message": {
                "prompt": lambda w: {**BASES[COMPLETIONS], "prompt": w},
            },
            "metadata": {
                "user": lambda w: body_with(COMPLETIONS, user=words(w)),
            },
            "settings": {
                "stop": lambda w: body_with(COMPLETIONS, stop=words(w)),
            },
        },
    ),
    *ways(
        COMPLETIONS,
        "refused",
        "refused",
        {
            "user's message": {
                "several prompts": lambda w: {**BASES[COMPLETIONS], "prompt": [w]},
                "suffix": lambda w: body_with(COMPLETIONS, suffix=w),
            },
        },
    ),
]
