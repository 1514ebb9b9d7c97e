"""Every class of the SDK that can carry words to a model, and what becomes of its fields."""

from __future__ import annotations

from typing import Any

from agents import Agent, Handoff, ModelSettings, RunConfig, tool
from agents.model_settings import MCPToolChoice
from openai.types import responses
from openai.types.responses import tool_param

from tests.channels._agents_items import ITEMS, SAMPLES, kind_of
from tests.channels.contract import LibraryClass

LABELS = {"type", "id", "status", "phase", "call_id", "caller", "agent", "async", "execution"}
# Functions of the app, and what the SDK does with a tool in this process.
_CODE = "needs_approval on_approval custom_data_extractor"


def _item(kind: Any) -> LibraryClass:
    name = kind_of(kind)
    keys = set(SAMPLES[name][1]) if name in SAMPLES else set()
    refused = {"role"} & keys if name != "additional_tools" else set()
    return LibraryClass(
        kind=kind,
        judged=" ".join(keys - LABELS - refused),
        refused=" ".join(refused),
        labels=" ".join(keys & LABELS),
    )


def _known(where: Any, name: str, **about: str) -> list[LibraryClass]:
    """The class, where this version has it."""
    return [LibraryClass(kind=getattr(where, name), **about)] if hasattr(where, name) else []


PARTS = [
    *_known(responses, "ResponseInputTextParam", judged="text prompt_cache_breakpoint type"),
    *_known(
        responses,
        "ResponseInputImageParam",
        judged="image_url prompt_cache_breakpoint",
        refused="file_id type",
        labels="detail",
    ),
    *_known(
        responses,
        "ResponseInputFileParam",
        judged="prompt_cache_breakpoint",
        refused="file_data file_id file_url filename type",
        labels="detail",
    ),
    *_known(
        responses, "ResponseOutputTextParam", judged="text annotations logprobs", refused="type"
    ),
    *_known(responses, "ResponseOutputRefusalParam", judged="refusal", refused="type"),
]
TOOLS = [
    *_known(
        tool,
        "FunctionTool",
        judged="name description params_json_schema output_json_schema _tool_namespace"
        " _tool_namespace_description",
        # About how it is called; the SDK refuses callers other than its two, and shows titles to
        # people alone.
        never="on_invoke_tool strict_json_schema is_enabled tool_input_guardrails"
        " tool_output_guardrails timeout_seconds timeout_behavior timeout_error_function"
        " defer_loading allowed_callers _output_type_adapter _failure_error_function"
        " _use_default_failure_error_function _is_agent_tool _agent_tool_default_identity"
        " _is_codex_tool _agent_instance _mcp_title _tool_origin _emit_tool_origin"
        f" _mcp_tool_binding _mcp_annotations {_CODE}",
    ),
    *_known(
        tool,
        "FileSearchTool",
        judged="vector_store_ids max_num_results include_search_results ranking_options filters",
    ),
    *_known(
        tool,
        "WebSearchTool",
        judged="user_location filters search_context_size external_web_access search_content_types"
        " image_settings",
    ),
    # Of a computer the model is told the name of its system.
    *_known(tool, "ComputerTool", judged="computer", never="on_safety_check custom_data_extractor"),
    *_known(tool, "HostedMCPTool", judged="tool_config", never="on_approval_request"),
    *_known(tool, "CodeInterpreterTool", judged="tool_config"),
    *_known(tool, "ImageGenerationTool", judged="tool_config"),
    *_known(tool, "LocalShellTool", never="executor"),
    *_known(
        tool, "ShellTool", judged="name environment allowed_callers", never=f"executor {_CODE}"
    ),
    *_known(tool, "ApplyPatchTool", judged="name allowed_callers", never=f"editor {_CODE}"),
    *_known(
        tool,
        "CustomTool",
        judged="name description format allowed_callers defer_loading tool_config",
        never=f"on_invoke_tool {_CODE}",
    ),
    *_known(tool, "ToolSearchTool", judged="description execution parameters"),
    *_known(tool, "ProgrammaticToolCallingTool"),
    *_known(
        tool_param,
        "Mcp",
        judged="allowed_callers allowed_tools connector_id defer_loading require_approval"
        " server_description server_label tunnel_id type",
        labels="authorization headers server_url",
    ),
    *_known(tool_param, "CodeInterpreter", judged="allowed_callers container type"),
    *_known(
        tool_param,
        "ImageGeneration",
        judged="action background complexity frame_count frame_duration_ms input_fidelity"
        " input_image_mask model moderation output_compression output_format partial_images"
        " quality size svg type",
    ),
    *_known(
        responses,
        "CustomToolParam",
        judged="allowed_callers async defer_loading description format name type",
    ),
    *_known(tool, "ShellToolLocalSkill", judged="description name path"),
    *_known(tool, "ShellToolSkillReference", refused="type skill_id version"),
    *_known(tool, "ShellToolInlineSkill", refused="description name source type"),
    *_known(tool, "ShellToolLocalEnvironment", judged="type skills"),
    *_known(
        tool,
        "ShellToolContainerAutoEnvironment",
        judged="type file_ids memory_limit network_policy skills",
    ),
    *_known(tool, "ShellToolContainerReferenceEnvironment", judged="type container_id"),
]
SETTINGS = [
    LibraryClass(
        kind=ModelSettings,
        judged="tool_choice extra_body extra_args temperature top_p frequency_penalty"
        " presence_penalty parallel_tool_calls max_tokens store include_usage top_logprobs"
        " preserve_raw_usage",
        labels="truncation reasoning verbosity metadata prompt_cache_retention response_include"
        " extra_query extra_headers context_management prompt_cache_options",
        never="retry timeout",
    ),
    LibraryClass(kind=MCPToolChoice, judged="server_label name"),
    LibraryClass(
        kind=Handoff,
        judged="tool_name tool_description input_json_schema agent_name",
        # What a filter and a mapper make of a history is judged where it is sent.
        never="on_invoke_handoff input_filter nest_handoff_history strict_json_schema is_enabled"
        " _agent_ref _default_tool_identity",
    ),
    LibraryClass(
        kind=Agent,
        judged="name handoff_description tools mcp_servers instructions handoffs model_settings"
        " output_type",
        refused="prompt",
        never="mcp_config model input_guardrails output_guardrails hooks tool_use_behavior"
        " reset_tool_choice",
    ),
    LibraryClass(
        kind=RunConfig,
        judged="model_settings handoff_input_filter nest_handoff_history handoff_history_mapper"
        " session_input_callback call_model_input_filter tool_error_formatter sandbox"
        " tool_not_found_behavior output_guardrail_blocked_message session_settings",
        # A model there takes the place of the agent's: that is a limit of the adapter.
        never="model model_provider input_guardrails output_guardrails tracing_disabled tracing"
        " trace_include_sensitive_data workflow_name trace_id group_id trace_metadata"
        " reasoning_item_id_policy tool_execution tool_name_collision_policy",
    ),
]
CLASSES: list[LibraryClass] = [*map(_item, ITEMS), *PARTS, *TOOLS, *SETTINGS]
