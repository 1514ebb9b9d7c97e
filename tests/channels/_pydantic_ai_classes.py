"""Every class of Pydantic-AI that can carry words to a model, and what becomes of its fields."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Any

from pydantic_ai import ToolReturn, messages, models, native_tools, settings, tools
from pydantic_ai.models.openai import OpenAIChatModelSettings, OpenAIResponsesModelSettings
from pydantic_ai.native_tools._tool_search import ToolSearchTool
from pydantic_ai.output import OutputObjectDefinition

from tests.channels.contract import LibraryClass

if TYPE_CHECKING:
    from collections.abc import Iterator


def _classes(
    where: Any,
    names: str,
    *,
    judged: str = "",
    refused: str = "",
    never: str = "",
    labels: str = "",
) -> list[LibraryClass]:
    """Those of the names that this version has."""
    # A part of another kind than its class's is refused by name.
    kinds = [getattr(where, name) for name in names.split() if hasattr(where, name)]
    about = {"judged": judged, "refused": refused, "never": never, "labels": labels}
    held = {
        kind: {each.name for each in dataclasses.fields(kind)}
        for kind in kinds
        if dataclasses.is_dataclass(kind)
    }
    return [
        LibraryClass(
            kind=kind,
            **about
            | {"refused": f"{refused} part_kind" if "part_kind" in held.get(kind, ()) else refused},
        )
        for kind in kinds
    ]


# What providers write beside a part. "never" is what the library says is for the application alone.
_OF_PROVIDERS = "id provider_name"
_FILE = {"never": "force_download", "labels": "_media_type _identifier kind"}
_RETURNED: dict[str, str] = {
    "judged": "content tool_name",
    "labels": "tool_call_id tool_kind ui_visibility outcome",
    "never": "metadata timestamp",
}
_CALLED: dict[str, str] = {
    "judged": "tool_name args provider_details",
    "labels": f"tool_call_id tool_kind ui_visibility {_OF_PROVIDERS}",
}
_PLACED: dict[str, str] = {
    "judged": "content rendering",
    "labels": "source scope capability_id kind",
    "never": "metadata timestamp record_id",
}

PARTS = [
    *_classes(
        messages,
        "SystemPromptPart",
        judged="content",
        labels="context_id scope",
        never="metadata timestamp dynamic_ref",
    ),
    *_classes(messages, "UserPromptPart", judged="content", never="timestamp"),
    *_classes(
        messages,
        "ToolReturnPart ToolSearchReturnPart LoadCapabilityReturnPart",
        **_RETURNED | {"judged": "content tool_name retry"},
    ),
    *_classes(
        messages,
        "NativeToolReturnPart NativeToolSearchReturnPart",
        **_RETURNED
        | {
            "judged": "content tool_name provider_details",
            "labels": f"{_RETURNED['labels']} provider_name",
        },
    ),
    *_classes(
        messages,
        "RetryPromptPart",
        judged="content tool_name",
        labels="tool_call_id",
        never="timestamp",
    ),
    *_classes(messages, "RetryFeedbackPart", judged="content retry", never="timestamp"),
    *_classes(
        messages,
        "InstructionDeltaPart",
        judged="content",
        labels="id base_hash authority",
    ),
    *_classes(messages, "InstructionBaselinePart", judged="instructions"),
    *_classes(messages, "ToolAvailabilityDeltaPart", labels="tools_added tool_call_id"),
    *_classes(messages, "CapabilityLoadDeltaPart", labels="loaded tool_call_id"),
    *_classes(messages, "ModelSettingsDeltaPart", judged="settings", never="top_level"),
    *_classes(
        messages,
        "CompactionPart",
        judged="content provider_details",
        labels=_OF_PROVIDERS,
        never="metadata",
    ),
    *_classes(
        messages,
        "SpeechPart",
        judged="transcript provider_details",
        refused="audio speaker",  # the library knows no other speaker than its two
        labels=_OF_PROVIDERS,
        never="timestamps interrupted_at_ms",
    ),
    *_classes(
        messages, "TextPart", judged="content provider_details citations", labels=_OF_PROVIDERS
    ),
    *_classes(
        messages,
        "ThinkingPart",
        judged="content provider_details",
        labels=f"signature {_OF_PROVIDERS}",
    ),
    *_classes(messages, "FilePart", judged="content provider_details", labels=_OF_PROVIDERS),
    *_classes(
        messages,
        "ToolCallPart ToolSearchCallPart LoadCapabilityCallPart "
        "NativeToolCallPart NativeToolSearchCallPart",
        **_CALLED,
    ),
    *_classes(messages, "CapabilityPart", **_PLACED | {"judged": "rendering"}),
    *_classes(
        messages,
        "DataCapabilityPart InstructionCapabilityPart _CapabilityContentPart "
        "_CapabilityInstructionPart _CapabilityInstructionsPart",
        **_PLACED,
    ),
    *_classes(messages, "UnknownCapabilityPart", **_PLACED | {"judged": "content rendering data"}),
]
"""All parts of messages."""

INSIDE = [
    *_classes(messages, "TextContent", judged="content", labels="kind", never="metadata"),
    *_classes(
        messages,
        "StructuredContent",
        judged="content value description",
        labels="tag kind",
        never="metadata",
    ),
    *_classes(messages, "ImageUrl VideoUrl", judged="url vendor_metadata", **_FILE),
    *_classes(messages, "AudioUrl DocumentUrl", refused="url vendor_metadata", **_FILE),
    *_classes(
        messages,
        "BinaryContent BinaryImage",
        judged="data vendor_metadata",
        labels="media_type _identifier kind",
    ),
    *_classes(messages, "BinaryAudio", refused="data vendor_metadata media_type _identifier kind"),
    *_classes(
        messages,
        "UploadedFile",
        refused="file_id provider_name vendor_metadata _media_type _identifier kind",
    ),
    *_classes(messages, "CachePoint", never="kind ttl"),
    *_classes(messages, "Citation", judged="sources anchor"),
    *_classes(messages, "WebCitationSource", judged="title excerpts", labels="url kind"),
    *_classes(
        messages, "DocumentCitationSource", judged="title excerpts", labels="document_id kind"
    ),
    *_classes(
        messages,
        "InstructionPart",
        judged="content",
        labels="id on_change",
        never="dynamic name",
    ),
    *_classes(messages, "InstructionId", labels="source name"),
    *_classes(messages, "AgentInstructionSource RunInstructionSource", labels="kind"),
    *_classes(messages, "ToolsetInstructionSource CapabilityInstructionSource", labels="id kind"),
    *_classes(messages, "InstructionDigest", never="id dynamic content_hash"),
    *_classes(messages, "RetryInfo", labels="cause", never="attempt max_retries"),
    *_classes(messages, "CapabilityPartRendering", judged="note attributes", labels="voice tag"),
    *_classes(messages, "OperatorSource UserSource", labels="source_kind"),
    *_classes(messages, "WorkspaceSource", labels="path authority source_kind"),
    *_classes(messages, "ToolResultSource", labels="tool_name tool_call_id source_kind"),
    *_classes(messages, "ModelSource", labels="author source_kind"),
    *_classes(messages, "CapabilitySource", labels="capability_id authority source_kind"),
    *_classes(settings, "RecordedModelSettings", labels="thinking"),
]
"""What parts hold."""

MESSAGES = [
    *_classes(
        messages,
        "ModelRequest",
        judged="parts instructions",
        labels="kind state",
        never="timestamp run_id conversation_id metadata",
    ),
    *_classes(
        messages,
        "ModelResponse",
        judged="parts provider_details",
        labels="kind provider_name provider_response_id finish_reason state",
        never="usage model_name model_id timestamp request_timestamp duration provider_url run_id "
        "canonical_system conversation_id metadata workspace_ref history_digest failed_attempts",
    ),
]

# A tool that the provider runs is judged as JSON, whatever it holds.
_NATIVE = [
    LibraryClass(kind=kind, judged=" ".join(each.name for each in dataclasses.fields(kind)))
    for name in (
        "WebSearchTool XSearchTool CodeExecutionTool WebFetchTool ImageGenerationTool "
        "MemoryTool ComputerTool FileSearchTool AdvisorTool"
    ).split()
    if (kind := getattr(native_tools, name, None)) is not None
]
NATIVE = [
    *_NATIVE,
    LibraryClass(kind=ToolSearchTool, judged="kind optional strategy"),
    *_classes(
        native_tools,
        "MCPServerTool",
        judged="kind id description allowed_tools optional",
        never="url authorization_token headers",
    ),
]
TOOLS = _classes(
    tools,
    "ToolDefinition",
    judged="name description parameters_json_schema return_schema",
    labels="outer_typed_dict_key kind ui_visibility unless_native with_native tool_kind "
    "unless_tool_kind",
    never="strict sequential metadata timeout durable defer_loading include_return_schema "
    "toolset_id capability_id",
)
PARAMETERS = [
    *_classes(
        models,
        "ModelRequestParameters",
        judged="function_tools native_tools output_tools output_object prompted_output_template "
        "instruction_parts deferred_capabilities",
        labels="output_mode thinking cache _framing_announcement",
        never="_telemetry_mcp_url_ids _telemetry_mcp_url_toolset_ids _telemetry_mcp_url_tool_names "
        "tool_visibility revealed_tool_names introduced_tool_names deferred_capability_ids "
        "instruction_visibility allow_text_output allow_image_output",
    ),
    *_classes(models, "DeferredCapabilityEntry", judged="description", labels="id", never="active"),
    LibraryClass(
        kind=OutputObjectDefinition, judged="name description json_schema", never="strict"
    ),
]
_SETTINGS = {
    "judged": "stop_sequences logit_bias extra_body",
    "labels": "framing_announcement tool_choice thinking cache service_tier",
    "never": "max_tokens temperature top_p top_k timeout request_timeout first_event_timeout "
    "max_retries parallel_tool_calls seed presence_penalty frequency_penalty extra_headers "
    "thinking_summary citations",
}
_CHAT = {
    "judged": f"{_SETTINGS['judged']} openai_prediction openai_moderation "
    "openai_prompt_cache_options",
    "labels": f"{_SETTINGS['labels']} openai_reasoning_effort openai_user openai_safety_identifier "
    "openai_text_verbosity openai_service_tier openai_prompt_cache_key "
    "openai_prompt_cache_retention",
    "never": f"{_SETTINGS['never']} openai_logprobs openai_top_logprobs openai_store "
    "openai_cache_instructions openai_continuous_usage_stats openai_include_raw_annotations "
    "openai_include_unmapped_response_data",
}
SETTINGS = [
    *_classes(settings, "ModelSettings", **_SETTINGS),
    LibraryClass(kind=settings.ToolOrOutput, labels="function_tools"),
    LibraryClass(kind=OpenAIChatModelSettings, **_CHAT),
    LibraryClass(
        kind=OpenAIResponsesModelSettings,
        judged=f"{_CHAT['judged']} openai_native_tools openai_builtin_tools "
        "openai_context_management",
        labels=f"{_CHAT['labels']} openai_reasoning_mode openai_reasoning_context "
        "openai_reasoning_summary openai_truncation openai_previous_response_id "
        "openai_conversation_id openai_transport",
        never=f"{_CHAT['never']} openai_send_reasoning_ids openai_include_code_execution_outputs "
        "openai_include_web_search_sources openai_include_web_search_results "
        "openai_include_file_search_results openai_background openai_prompt_cache_diagnostics",
    ),
]
RETURNS = [
    LibraryClass(
        kind=ToolReturn, judged="return_value content", labels="tools kind", never="metadata"
    ),
    *_classes(tools, "ToolDenied", judged="message", never="kind"),
    *_classes(tools, "ToolApproved", judged="override_args", never="kind"),
    *_classes(tools, "DeferredToolResults", judged="calls approvals", never="metadata answered_by"),
]
CLASSES = [*PARTS, *INSIDE, *MESSAGES, *NATIVE, *TOOLS, *PARAMETERS, *SETTINGS, *RETURNS]


def kinds_of(union: Any) -> Iterator[type]:
    """The classes of a union, however it is annotated."""
    if typing.get_origin(union) is typing.Annotated or hasattr(union, "__value__"):
        yield from kinds_of(getattr(union, "__value__", None) or typing.get_args(union)[0])
    elif inner := typing.get_args(union):
        for each in inner:
            yield from kinds_of(each)
    elif isinstance(union, type):
        yield union
