"""Chats with one word planted, by what becomes of it."""

from __future__ import annotations

import json

from tests.channels._bodies import (
    BASES,
    CHAT,
    PICTURE,
    body_with,
    call,
    format_of,
    message_with,
    messages,
    part_with,
    schema,
    tool,
    ways,
    words,
)

CHATS = [
    *ways(
        CHAT,
        "judged",
        "judged",
        {
            "system prompt": {
                "system message": lambda w: messages({"role": "system", "content": w}),
                "developer message": lambda w: messages({"role": "developer", "content": w}),
            },
            "user's message": {
                "text": lambda w: messages({"role": "user", "content": w}),
                "text part": lambda w: messages(part_with(text=w)),
                "bare text among parts": lambda w: messages({"role": "user", "content": [w]}),
            },
            "history": {
                "assistant's message": lambda w: messages({"role": "assistant", "content": w}),
                "refusal": lambda w: messages({"role": "assistant", "content": None, "refusal": w}),
                "refusal part": lambda w: messages(
                    {"role": "assistant", "content": [{"type": "refusal", "refusal": w}]}
                ),
                "speaker's name": lambda w: messages(message_with(name=w)),
            },
            "tool call": {
                "arguments": lambda w: messages(call(arguments=json.dumps({"a": w}))),
                "arguments as an object": lambda w: messages(call(arguments={"a": w})),
                "name of an argument": lambda w: messages(call(arguments={w: 1})),
                "name": lambda w: messages(call(name=w)),
                "older form": lambda w: messages(
                    {
                        "role": "assistant",
                        "content": None,
                        "function_call": {"name": "find", "arguments": w},
                    }
                ),
                "id": lambda w: messages(
                    {**call(), "tool_calls": [{**call()["tool_calls"][0], "id": words(w)}]}
                ),
                "id in the older form": lambda w: messages(
                    {
                        "role": "assistant",
                        "content": None,
                        "function_call": {"name": "find", "arguments": "", "id": words(w)},
                    }
                ),
            },
            "tool result": {
                "text": lambda w: messages(
                    call(), {"role": "tool", "tool_call_id": "c1", "content": w}
                ),
                "text part": lambda w: messages(
                    call(),
                    {
                        "role": "tool",
                        "tool_call_id": "c1",
                        "content": [{"type": "text", "text": w}],
                    },
                ),
                "id of its call": lambda w: messages(
                    call(), {"role": "tool", "tool_call_id": words(w), "content": "fine"}
                ),
                "name": lambda w: messages(
                    call(), {"role": "tool", "tool_call_id": "c1", "name": w, "content": "fine"}
                ),
            },
            "tool name": {
                "tools": lambda w: body_with(CHAT, tools=[tool(name=w)]),
            },
            "tool description": {
                "tools": lambda w: body_with(CHAT, tools=[tool(description=w)]),
            },
            "schema strings": {
                "description": lambda w: body_with(CHAT, tools=[tool(parameters=schema(w))]),
                "name of a parameter": lambda w: body_with(
                    CHAT, tools=[tool(parameters={"type": "object", "properties": {w: {}}})]
                ),
                "choice": lambda w: body_with(
                    CHAT,
                    tools=[tool(parameters={"type": "object", "properties": {"a": {"enum": [w]}}})],
                ),
                "strictness": lambda w: body_with(CHAT, tools=[tool(strict=w)]),
            },
            "form of the answer": {
                "schema": lambda w: body_with(
                    CHAT, response_format=format_of({"schema": schema(w)})
                ),
                "name": lambda w: body_with(CHAT, response_format=format_of({"name": w})),
                "description": lambda w: body_with(
                    CHAT, response_format=format_of({"description": w})
                ),
            },
        },
    ),
    *ways(
        CHAT,
        "judged",
        "never",
        {
            "history": {
                "message's id": lambda w: messages(message_with(id=words(w))),
                "part's id": lambda w: messages(part_with(id=words(w))),
            },
            "metadata": {
                "value": lambda w: body_with(CHAT, metadata={"a": words(w)}),
                "key": lambda w: body_with(CHAT, metadata={words(w): "a"}),
                "user": lambda w: body_with(CHAT, user=words(w)),
                "safety identifier": lambda w: body_with(CHAT, safety_identifier=words(w)),
                "cache key": lambda w: body_with(CHAT, prompt_cache_key=words(w)),
            },
            "settings": {
                "stop": lambda w: body_with(CHAT, stop=words(w)),
                "stops": lambda w: body_with(CHAT, stop=["a", words(w)]),
            },
        },
    ),
    *ways(
        CHAT,
        "refused",
        "refused",
        {
            "history": {
                "id in parts": lambda w: messages(message_with(id=[w])),
                "message's status": lambda w: messages(message_with(status=words(w))),
                "message's type": lambda w: messages(message_with(type=w)),
                "role": lambda w: messages({"role": w, "content": "hello"}),
                "cache control": lambda w: messages(message_with(cache_control={"type": words(w)})),
                "key of cache control": lambda w: messages(
                    message_with(cache_control={words(w): 1})
                ),
                "key of a message that holds nothing": lambda w: messages(
                    message_with(**{words(w): ""})
                ),
                "key of a message": lambda w: messages(message_with(**{w: 1})),
                "reasoning": lambda w: messages(
                    {"role": "assistant", "content": "a", "reasoning_content": w}
                ),
                "annotations": lambda w: messages(
                    {"role": "assistant", "content": "a", "annotations": [{"title": w}]}
                ),
                "earlier audio": lambda w: messages(
                    {"role": "assistant", "content": "a", "audio": {"id": w}}
                ),
                "part's index": lambda w: messages(part_with(index={"a": words(w)})),
                "part's cache control": lambda w: messages(
                    part_with(cache_control={"type": words(w)})
                ),
                "part's detail": lambda w: messages(part_with(detail=words(w))),
                "cache breakpoint": lambda w: messages(
                    part_with(prompt_cache_breakpoint={"mode": w})
                ),
                "key of a part that holds nothing": lambda w: messages(
                    part_with(**{words(w): None})
                ),
                "detail of a picture": lambda w: messages(
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": PICTURE, "detail": words(w)}}
                        ],
                    }
                ),
                "media type of a picture": lambda w: messages(
                    {
                        "role": "user",
                        "content": [{"type": "image", "url": PICTURE, "mime_type": words(w)}],
                    }
                ),
                "part of an unknown type": lambda w: messages(
                    {"role": "user", "content": [{"type": w, w: w}]}
                ),
                "audio": lambda w: messages(
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_audio", "input_audio": {"data": w, "format": "wav"}}
                        ],
                    }
                ),
            },
            "resource": {
                "file": lambda w: messages(
                    {
                        "role": "user",
                        "content": [{"type": "file", "file": {"filename": w, "file_data": w}}],
                    }
                ),
            },
            "tool call": {
                "index": lambda w: messages(
                    {**call(), "tool_calls": [{**call()["tool_calls"][0], "index": words(w)}]}
                ),
                "custom": lambda w: messages(
                    {
                        **call(),
                        "tool_calls": [
                            {"type": "custom", "id": "c1", "custom": {"name": "find", "input": w}}
                        ],
                    }
                ),
            },
            "tool result": {
                "older form": lambda w: messages(
                    {"role": "function", "name": "find", "content": w}
                ),
            },
            "tool description": {
                "beside the function": lambda w: body_with(
                    CHAT, tools=[{**tool(), "description": w}]
                ),
                "key beside the function that holds nothing": lambda w: body_with(
                    CHAT, tools=[{**tool(), words(w): ""}]
                ),
                "custom tool": lambda w: body_with(
                    CHAT, tools=[{"type": "custom", "custom": {"name": "a", "description": w}}]
                ),
            },
            "settings": {
                "name of a chosen tool": lambda w: body_with(
                    CHAT,
                    tools=[tool()],
                    tool_choice={"type": "function", "function": {"name": words(w)}},
                ),
                "description of a chosen tool": lambda w: body_with(
                    CHAT,
                    tools=[tool()],
                    tool_choice={
                        "type": "function",
                        "function": {"name": "find", "description": w},
                    },
                ),
                "names of allowed tools": lambda w: body_with(
                    CHAT,
                    tools=[tool()],
                    tool_choice={
                        "type": "allowed_tools",
                        "allowed_tools": {
                            "mode": "auto",
                            "tools": [{"type": "function", "function": {"name": words(w)}}],
                        },
                    },
                ),
                "chosen custom tool": lambda w: body_with(
                    CHAT, tool_choice={"type": "custom", "custom": {"name": w}}
                ),
                "older function call": lambda w: body_with(CHAT, function_call={"name": words(w)}),
                "prediction": lambda w: body_with(
                    CHAT, prediction={"type": "content", "content": w}
                ),
                "effort": lambda w: body_with(CHAT, reasoning_effort=words(w)),
                "voice": lambda w: body_with(CHAT, audio={"voice": words(w), "format": "wav"}),
                "search": lambda w: body_with(
                    CHAT, web_search_options={"user_location": {"city": w}}
                ),
                "moderation": lambda w: body_with(CHAT, moderation={"model": w}),
                "unknown key": lambda w: body_with(CHAT, **{w: True}),
                "more instructions beside a chat": lambda w: body_with(CHAT, instructions=w),
            },
            "retrieved text": {
                "documents": lambda w: body_with(CHAT, documents=[{"text": w}]),
            },
            "prompt template": {
                "chat template": lambda w: body_with(CHAT, chat_template=w),
                "its arguments": lambda w: body_with(CHAT, chat_template_kwargs={"a": w}),
            },
        },
    ),
    *ways(
        CHAT,
        "judged",
        "refused",
        {
            "tool name": {
                "older functions": lambda w: body_with(CHAT, functions=[{"name": w}]),
            },
            "tool description": {
                "older functions": lambda w: body_with(
                    CHAT, functions=[{"name": "a", "description": w}]
                ),
            },
            "form of the answer": {
                "unknown type": lambda w: body_with(CHAT, response_format={"type": w}),
            },
            "settings": {
                "model": lambda w: {**BASES[CHAT], "model": words(w)},
                "token of a bias": lambda w: body_with(CHAT, logit_bias={words(w): 1}),
            },
        },
    ),
    *ways(
        CHAT,
        "refused",
        "never",
        {
            "metadata": {
                "nested value": lambda w: body_with(CHAT, metadata={"a": {"b": w}}),
            },
        },
    ),
]
