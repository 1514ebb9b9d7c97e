"""The types of the `openai` package that say what a request may hold, and what becomes of each."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai.types import chat, completion_create_params, responses, shared_params
from openai.types.chat import (
    chat_completion_assistant_message_param,
    chat_completion_content_part_image_param,
    chat_completion_function_tool_param,
    chat_completion_message_function_tool_call_param,
)
from openai.types.chat import (
    completion_create_params as chat_create_params,
)
from openai.types.responses import response_create_params, response_input_item_param

from tests.channels._bodies import (
    BASES,
    CHAT,
    COMPLETIONS,
    PICTURE,
    RESPONSES,
    call,
    messages,
    tool,
)
from tests.channels.contract import LibraryClass

if TYPE_CHECKING:
    from collections.abc import Callable

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """A type, what becomes of its fields, and a body that holds one of it."""

    known: LibraryClass
    base: Body
    path: str
    place: Callable[[Body], Body]


def _messages(row: Body) -> Body:
    return messages(row)


def _items(row: Body) -> Body:
    return messages(row, path=RESPONSES)


def _parts(part: Body) -> Body:
    return messages({"role": "user", "content": [part]})


def _said(part: Body) -> Body:
    return messages({"role": "assistant", "content": [part]})


def _input_parts(part: Body) -> Body:
    return messages({"role": "user", "content": [part]}, path=RESPONSES)


def _output_parts(part: Body) -> Body:
    return messages({"role": "assistant", "content": [part]}, path=RESPONSES)


def _url(inner: Body) -> Body:
    return _parts({"type": "image_url", "image_url": inner})


def _function(function: Body) -> Body:
    return {**BASES[CHAT], "tools": [{"type": "function", "function": function}]}


def _tool(made: Body) -> Body:
    return {**BASES[CHAT], "tools": [made]}


def _older(function: Body) -> Body:
    return {**BASES[CHAT], "functions": [function]}


def _response_tool(made: Body) -> Body:
    return {**BASES[RESPONSES], "tools": [made]}


def _call(made: Body) -> Body:
    return messages({**call(), "tool_calls": [made]})


def _older_call(made: Body) -> Body:
    return messages({"role": "assistant", "content": None, "function_call": made})


def _schema(made: Body) -> Body:
    return {**BASES[CHAT], "response_format": {"type": "json_schema", "json_schema": made}}


def _text(made: Body) -> Body:
    return {**BASES[RESPONSES], "text": made}


def _whole(body: Body) -> Body:
    return body


# What is refused is so unless it is empty, and `never` has no place for words.
_NO_WORDS_IN_CHATS = (
    "frequency_penalty logprobs max_completion_tokens max_tokens n parallel_tool_calls"
    " presence_penalty seed store stream_options temperature top_logprobs top_p"
)
_NO_WORDS_IN_RESPONSES = (
    "background max_output_tokens max_tool_calls parallel_tool_calls store stream_options"
    " temperature top_logprobs top_p truncation"
)
_ONE_WORD = "modalities prompt_cache_retention reasoning_effort service_tier verbosity audio"
_USER = {"role": "user", "content": "hello"}
_FUNCTION_CALL = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"}

PLACED = [
    Placed(
        LibraryClass(
            kind=chat_create_params.CompletionCreateParamsBase,
            judged="messages functions response_format tools stop logit_bias metadata",
            labels=f"model prompt_cache_key safety_identifier user tool_choice function_call"
            f" {_ONE_WORD}",
            refused="moderation prediction prompt_cache_options web_search_options",
            never=_NO_WORDS_IN_CHATS,
        ),
        BASES[CHAT],
        CHAT,
        _whole,
    ),
    Placed(
        LibraryClass(
            kind=response_create_params.ResponseCreateParamsBase,
            judged="input instructions text tools metadata",
            labels="model prompt_cache_key safety_identifier user tool_choice include reasoning"
            " prompt_cache_retention service_tier",
            refused="access_programs background_options context_management conversation image"
            " moderation previous_response_id prompt prompt_cache_options",
            never=_NO_WORDS_IN_RESPONSES,
        ),
        BASES[RESPONSES],
        RESPONSES,
        _whole,
    ),
    Placed(
        LibraryClass(
            kind=completion_create_params.CompletionCreateParamsBase,
            judged="prompt stop logit_bias",
            labels="model user",
            refused="suffix",
            never="best_of echo frequency_penalty logprobs max_tokens n presence_penalty seed"
            " stream_options temperature top_p",
        ),
        BASES[COMPLETIONS],
        COMPLETIONS,
        _whole,
    ),
    *(
        Placed(
            LibraryClass(kind=kind, judged="content name", refused="role"),
            {"role": role, "content": "hello"},
            CHAT,
            _messages,
        )
        for kind, role in (
            (chat.ChatCompletionSystemMessageParam, "system"),
            (chat.ChatCompletionDeveloperMessageParam, "developer"),
            (chat.ChatCompletionUserMessageParam, "user"),
        )
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionAssistantMessageParam,
            judged="content function_call name refusal tool_calls",
            refused="role audio",
        ),
        {"role": "assistant", "content": "hello"},
        CHAT,
        _messages,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionToolMessageParam,
            judged="content",
            labels="tool_call_id",
            refused="role",
        ),
        {"role": "tool", "tool_call_id": "c", "content": "hello"},
        CHAT,
        _messages,
    ),
    Placed(
        LibraryClass(kind=chat.ChatCompletionFunctionMessageParam, refused="content name role"),
        {"role": "function", "name": "find", "content": "hello"},
        CHAT,
        _messages,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionContentPartTextParam,
            judged="text",
            refused="type prompt_cache_breakpoint",
        ),
        {"type": "text", "text": "hello"},
        CHAT,
        _parts,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionContentPartRefusalParam, judged="refusal", refused="type"
        ),
        {"type": "refusal", "refusal": "no"},
        CHAT,
        _said,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionContentPartImageParam,
            judged="image_url",
            refused="type prompt_cache_breakpoint",
        ),
        {"type": "image_url", "image_url": {"url": PICTURE}},
        CHAT,
        _parts,
    ),
    Placed(
        LibraryClass(
            kind=chat_completion_content_part_image_param.ImageURL, judged="url", labels="detail"
        ),
        {"url": PICTURE},
        CHAT,
        _url,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionContentPartInputAudioParam,
            refused="input_audio type prompt_cache_breakpoint",
        ),
        {"type": "input_audio"},
        CHAT,
        _parts,
    ),
    Placed(
        LibraryClass(
            kind=chat.chat_completion_content_part_param.File,
            refused="file type prompt_cache_breakpoint",
        ),
        {"type": "file"},
        CHAT,
        _parts,
    ),
    Placed(
        LibraryClass(
            kind=chat_completion_function_tool_param.ChatCompletionFunctionToolParam,
            judged="function",
            refused="type",
        ),
        tool(),
        CHAT,
        _tool,
    ),
    Placed(
        LibraryClass(
            kind=shared_params.FunctionDefinition, judged="name description parameters strict"
        ),
        tool()["function"],
        CHAT,
        _function,
    ),
    Placed(
        LibraryClass(kind=chat.ChatCompletionCustomToolParam, refused="custom type"),
        {"type": "custom"},
        CHAT,
        _tool,
    ),
    Placed(
        LibraryClass(kind=chat_create_params.Function, judged="name description parameters"),
        {"name": "find"},
        CHAT,
        _older,
    ),
    Placed(
        LibraryClass(
            kind=chat_completion_message_function_tool_call_param.ChatCompletionMessageFunctionToolCallParam,
            judged="function",
            labels="id",
            refused="type",
        ),
        call()["tool_calls"][0],
        CHAT,
        _call,
    ),
    Placed(
        LibraryClass(
            kind=chat.ChatCompletionMessageCustomToolCallParam, labels="id", refused="custom type"
        ),
        {"id": "c", "type": "custom"},
        CHAT,
        _call,
    ),
    Placed(
        LibraryClass(
            kind=chat_completion_assistant_message_param.FunctionCall, judged="arguments name"
        ),
        {"name": "find", "arguments": ""},
        CHAT,
        _older_call,
    ),
    Placed(
        LibraryClass(
            kind=shared_params.response_format_json_schema.JSONSchema,
            judged="name description schema strict",
        ),
        {"name": "a", "schema": {"type": "object"}},
        CHAT,
        _schema,
    ),
    Placed(
        LibraryClass(kind=responses.ResponseTextConfigParam, judged="format", labels="verbosity"),
        {},
        RESPONSES,
        _text,
    ),
    Placed(
        LibraryClass(
            kind=responses.FunctionToolParam,
            judged="name description parameters strict",
            refused="type defer_loading allowed_callers output_schema async",
        ),
        {"type": "function", "name": "find"},
        RESPONSES,
        _response_tool,
    ),
    Placed(
        LibraryClass(
            kind=responses.EasyInputMessageParam, judged="content", refused="role phase type"
        ),
        _USER,
        RESPONSES,
        _items,
    ),
    Placed(
        LibraryClass(
            kind=response_input_item_param.Message,
            judged="content",
            labels="status",
            refused="role type",
        ),
        {"type": "message", **_USER},
        RESPONSES,
        _items,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseOutputMessageParam,
            judged="content",
            labels="id status",
            refused="role type phase",
        ),
        {"type": "message", "id": "m", "role": "assistant", "content": "hello"},
        RESPONSES,
        _items,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseFunctionToolCallParam,
            judged="name arguments",
            labels="id call_id status",
            refused="type namespace caller async",
        ),
        _FUNCTION_CALL,
        RESPONSES,
        _items,
    ),
    Placed(
        LibraryClass(
            kind=response_input_item_param.FunctionCallOutput,
            judged="output name",
            labels="id call_id status",
            refused="type caller namespace",
        ),
        {"type": "function_call_output", "call_id": "c", "output": "hello"},
        RESPONSES,
        _items,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseInputTextParam,
            judged="text",
            refused="type prompt_cache_breakpoint",
        ),
        {"type": "input_text", "text": "hello"},
        RESPONSES,
        _input_parts,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseInputImageParam,
            judged="image_url",
            labels="detail",
            refused="type file_id prompt_cache_breakpoint",
        ),
        {"type": "input_image", "image_url": PICTURE},
        RESPONSES,
        _input_parts,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseInputFileParam,
            refused="type detail file_data file_id file_url filename prompt_cache_breakpoint",
        ),
        {"type": "input_file"},
        RESPONSES,
        _input_parts,
    ),
    Placed(
        LibraryClass(
            kind=responses.ResponseOutputTextParam,
            judged="text",
            refused="type annotations logprobs",
        ),
        {"type": "output_text", "text": "hello"},
        RESPONSES,
        _output_parts,
    ),
    Placed(
        LibraryClass(kind=responses.ResponseOutputRefusalParam, judged="refusal", refused="type"),
        {"type": "refusal", "refusal": "no"},
        RESPONSES,
        _output_parts,
    ),
]

ITEMS = typing.get_args(response_input_item_param.ResponseInputItemParam)
READ_ITEMS = {
    "EasyInputMessageParam",
    "Message",
    "ResponseOutputMessageParam",
    "ResponseFunctionToolCallParam",
    "FunctionCallOutput",
}
REFUSED_ITEMS = {
    "AdditionalTools",
    "ApplyPatchCall",
    "ApplyPatchCallOutput",
    "CompactionTrigger",
    "ComputerCallOutput",
    "ImageGenerationCall",
    "ItemReference",
    "LocalShellCall",
    "LocalShellCallOutput",
    "McpApprovalRequest",
    "McpApprovalResponse",
    "McpCall",
    "McpListTools",
    "Program",
    "ProgramOutput",
    "ResponseCodeInterpreterToolCallParam",
    "ResponseCompactionItemParamParam",
    "ResponseComputerToolCallParam",
    "ResponseConfigurationUpdateItemParamParam",
    "ResponseCustomToolCallOutputParam",
    "ResponseCustomToolCallParam",
    "ResponseFileSearchToolCallParam",
    "ResponseFunctionWebSearchParam",
    "ResponseReasoningItemParam",
    "ResponseToolSearchOutputItemParamParam",
    "ShellCall",
    "ShellCallOutput",
    "ToolSearchCall",
}


def classes() -> list[LibraryClass]:
    """All that is looked at."""
    return [placed.known for placed in PLACED]
