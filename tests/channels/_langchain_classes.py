"""Every class of LangChain and LangGraph that can carry words to a model, field by field."""

from __future__ import annotations

from typing import Any

from langchain.agents.middleware import types as of_middleware
from langchain.agents.structured_output import (
    AutoStrategy,
    ProviderStrategy,
    ToolStrategy,
    _SchemaSpec,
)
from langchain_core import messages, prompt_values
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ai, content, tool
from langchain_core.runnables.base import RunnableBinding
from langchain_core.tools import StructuredTool, Tool
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command, Send

from tests.channels.contract import LibraryClass


def _message(kind: Any, judged: str = "", never: str = "", labels: str = "") -> LibraryClass:
    """A message; how it came about is for apps, and no class of a provider's sends it."""
    return LibraryClass(
        kind=kind,
        judged=f"content additional_kwargs name example {judged}",
        never=f"type response_metadata {never}",
        labels=f"id {labels}",
    )


def _block(kind: str, judged: str = "", refused: str = "") -> list[LibraryClass]:
    """A block of content; one that a guard cannot read is refused, whatever stands in it."""
    found = getattr(content, kind, None)
    if found is None:  # younger than the lowest version
        return []
    beside = {"refused" if refused else "judged": f"{refused or judged} extras"}
    return [LibraryClass(kind=found, labels="type id index", **beside)]


_ANSWER = {"judged": "tool_calls invalid_tool_calls", "never": "usage_metadata"}
_RESULT = {"never": "artifact status", "labels": "tool_call_id"}
_TOOL: dict[str, Any] = {
    # `metadata` has a custom tool's grammar; what is said of errors is read as a result.
    "judged": "name description args_schema extras metadata handle_tool_error "
    "handle_validation_error",
    "never": "return_direct verbose callbacks tags response_format func coroutine",
}

MESSAGES = [
    _message(messages.HumanMessage),
    _message(messages.HumanMessageChunk),
    _message(messages.SystemMessage),
    _message(messages.SystemMessageChunk),
    _message(messages.AIMessage, **_ANSWER),
    # What is streamed becomes `tool_calls`, which is what is sent.
    _message(
        messages.AIMessageChunk,
        _ANSWER["judged"],
        f"{_ANSWER['never']} tool_call_chunks chunk_position",
    ),
    _message(messages.ToolMessage, **_RESULT),
    _message(messages.ToolMessageChunk, **_RESULT),
    _message(messages.FunctionMessage),
    _message(messages.FunctionMessageChunk),
    _message(messages.ChatMessage, "role"),
    _message(messages.ChatMessageChunk, "role"),
    LibraryClass(
        kind=messages.RemoveMessage,
        refused="content additional_kwargs response_metadata type name id",
    ),
]
BLOCKS = [
    *_block("TextContentBlock", "text annotations"),
    *_block("ReasoningContentBlock", "reasoning"),
    *_block("RefusalContentBlock", "refusal"),
    *_block("ToolCall", "name args"),
    *_block("ToolCallChunk", "name args"),
    *_block("InvalidToolCall", "name args error"),
    *_block("ServerToolCall", refused="name args"),
    *_block("ServerToolCallChunk", refused="name args"),
    *_block("ServerToolResult", refused="tool_call_id status output"),
    *_block("NonStandardContentBlock", "value"),
    *_block("AudioContentBlock", refused="url base64 file_id mime_type"),
    *_block("FileContentBlock", refused="url base64 file_id mime_type"),
    # One that names another place of its words or its picture is refused by that.
    *_block("PlainTextContentBlock", "text title context mime_type url base64 file_id"),
    *_block("ImageContentBlock", "url base64 mime_type file_id"),
    *_block("VideoContentBlock", "url base64 mime_type file_id"),
]
CLASSES: list[LibraryClass] = [
    *MESSAGES,
    *BLOCKS,
    LibraryClass(
        kind=content.Citation,
        judged="title cited_text extras",
        never="start_index end_index",  # numbers
        labels="type id url",
    ),
    LibraryClass(kind=content.NonStandardAnnotation, judged="value", labels="type id"),
    LibraryClass(kind=tool.ToolCall, judged="name args", labels="type id"),
    LibraryClass(kind=tool.ToolCallChunk, never="name args type id index"),
    LibraryClass(
        kind=ai.UsageMetadata,
        never="input_tokens output_tokens total_tokens input_token_details output_token_details",
    ),
    *(
        LibraryClass(kind=kind, judged="data", labels="source")
        for kind in [getattr(messages, "NotificationMetadata", None)]
        if kind is not None
    ),
    LibraryClass(kind=Document, judged="page_content metadata", never="type", labels="id"),
    LibraryClass(kind=prompt_values.StringPromptValue, judged="text", never="type"),
    LibraryClass(kind=prompt_values.ChatPromptValue, judged="messages"),
    LibraryClass(kind=prompt_values.ChatPromptValueConcrete, judged="messages", never="type"),
    LibraryClass(kind=prompt_values.ImagePromptValue, judged="image_url", never="type"),
    LibraryClass(kind=prompt_values.ImageURL, judged="url detail"),
    LibraryClass(
        kind=of_middleware.ModelRequest,
        judged="model messages system_message tool_choice tools response_format model_settings",
        never="state runtime",
    ),
    LibraryClass(kind=of_middleware.ModelResponse, judged="result", never="structured_response"),
    LibraryClass(kind=of_middleware.ExtendedModelResponse, judged="model_response command"),
    LibraryClass(
        kind=_SchemaSpec,
        judged="schema name description json_schema",
        never="schema_kind strict",
    ),
    # Said in a result that is one of the messages of the model's next turn.
    LibraryClass(
        kind=ToolStrategy, judged="schema schema_specs tool_message_content handle_errors"
    ),
    LibraryClass(kind=ProviderStrategy, judged="schema schema_spec"),
    LibraryClass(kind=AutoStrategy, judged="schema"),
    LibraryClass(kind=StructuredTool, **_TOOL),
    LibraryClass(kind=Tool, **_TOOL),
    LibraryClass(kind=ToolCallRequest, judged="tool_call", never="tool state runtime"),
    LibraryClass(kind=Command, judged="update resume goto", never="graph"),
    LibraryClass(kind=Send, judged="arg", never="node timeout"),
    LibraryClass(
        kind=RunnableBinding,
        judged="bound kwargs",
        never="config config_factories custom_input_type custom_output_type name",
    ),
    # Settings of a provider's class are read by name; those of all classes say nothing.
    LibraryClass(
        kind=BaseChatModel,
        never="name cache verbose callbacks tags metadata custom_get_token_ids rate_limiter "
        "disable_streaming output_version profile",
    ),
]
