"""What else an object of Pydantic-AI's holds than the words that its kind is read for.

Providers want much of it back, and a model may be shown it: details of thoughts, ids, media types,
settings. So every field is read, those of later versions too. Left out are labels, where labels are
known to stand, ciphers, and what the library says no model is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from guardrail.errors import UnsupportedContentError
from guardrail.front.tool_values import Reading, read_value, with_fields
from guardrail.inputs.labels import CIPHERS, is_label, is_unspoken

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from pydantic_ai.models import Model
    from pydantic_ai.settings import ModelSettings

    from guardrail.policy import Policy

Part = dict[str, Any]

# What the library keeps for the application alone, in whatever object.
UNSENT = frozenset({"metadata", "timestamp", "record_id"})
# Of parts and what they hold, of what providers keep beside them, and of tools.
_PART_LABELS = frozenset(
    "_media_type author authority base_hash capability_id cause content_hash context_id "
    "document_id finish_reason force_download format granularity id kind language loaded "
    "media_type on_change outcome part_kind path phase provider_name provider_response_id scope "
    "source_kind speaker state tag tool_call_id tool_kind tool_name tools tools_added type "
    "ui_visibility url voice".split()
)
_DETAIL_LABELS = frozenset(
    "call_id container container_id conversation_id detail downstream_provider end_offset file_id "
    "function_name google_interactions_text_sha256 item_id level media_resolution "
    "model namespace processing response_id retrieval_mode search_context_size server_label "
    "service_tier speed start_offset status strategy thread_fingerprint timestamp traffic_type "
    "transport version".split()
)
_TOOL_LABELS = frozenset(
    "_framing_announcement aspect_ratio background caching engine input_fidelity mode moderation "
    "outer_typed_dict_key output_format output_mode quality size unless_native unless_tool_kind "
    "with_native".split()
)
# Settings with one of a few values, or with a name that a provider knows something by.
_SETTING_LABELS = frozenset(
    "allowed_callers anthropic_betas anthropic_code_execution_tool_version anthropic_container "
    "anthropic_effort anthropic_inference_geo anthropic_previous_message_id "
    "anthropic_service_tier anthropic_speed anthropic_thinking_display "
    "anthropic_web_tools_allowed_callers bedrock_cache_instructions bedrock_cache_messages "
    "bedrock_cache_tool_definitions bedrock_inference_profile bedrock_thinking_display cache "
    "effort framing_announcement function_tools google_cached_content google_cloud_service_tier "
    "google_interactions_service_tier google_interactions_thinking_level "
    "google_interactions_thinking_summaries google_video_resolution groq_reasoning_effort "
    "groq_reasoning_format groq_service_tier mistral_prompt_cache_key openai_conversation_id "
    "openai_previous_response_id openai_prompt_cache_key openai_prompt_cache_retention "
    "openai_reasoning_context openai_reasoning_effort openai_reasoning_mode "
    "openai_reasoning_summary openai_safety_identifier openai_service_tier "
    "openai_text_verbosity openai_transport openai_truncation openai_user openrouter_models "
    "openrouter_preset openrouter_transforms reasoning_effort retention thinking tool_choice "
    "xai_previous_response_id xai_reasoning_effort xai_user".split()
)
_LABELS = _PART_LABELS | _DETAIL_LABELS | _TOOL_LABELS | _SETTING_LABELS
_CIPHERS = CIPHERS | {"encrypted_index", "encrypted_stdout"}
_UNSAID = frozenset({"extra_headers", "timeout"})  # of settings: they are for the connection


def read_rest(
    value: Any, taken: Collection[str], policy: Policy, what: str
) -> tuple[Any, list[Part]]:
    """An object as it goes on, and what its fields say but those that are taken.

    Raises:
        InputError: something in it that a guard cannot read.
    """
    held = {
        each.name: _plain(each.name, getattr(value, each.name))
        for each in fields(value)
        if each.name not in taken and each.name not in UNSENT
    }
    held = {name: item for name, item in held.items() if _may_speak(name, item)}
    if not held:
        return value, []
    reading, parts = _read(held, policy, what)
    changed = {name: item for name, item in reading.items() if item is not held[name]}
    return with_fields(value, changed), parts


def words_in(held: Mapping[str, Any], policy: Policy, what: str) -> list[Part]:
    """What named values say that go on as they are: settings, tools.

    Raises:
        InputError: something in it that a guard cannot read, or a picture.
    """
    held = {name: _plain(name, item) for name, item in held.items()}
    _, parts = _read({k: v for k, v in held.items() if _may_speak(k, v)}, policy, what)
    if any(part["type"] != "text" for part in parts):
        raise UnsupportedContentError(f"{what} hold a picture; put it into a message")
    return parts


def read_settings(
    settings: ModelSettings | None, policy: Policy, what: str = "the settings"
) -> list[list[Part]]:
    """What each setting says: each is a piece of its own.

    Raises:
        InputError: something in it that a guard cannot read, or a picture.
    """
    pieces: list[list[Part]] = []
    for name, item in (settings or {}).items():
        if name not in _UNSAID:
            pieces.append(words_in({name: item}, policy, f"{what} {name!r}"))
    return pieces


def models_in(model: Model) -> Iterator[Model]:
    """A model, and all that stand behind it: each has settings and a profile of its own."""
    yield model
    wrapped = vars(model).get("wrapped")
    for inner in (*([] if wrapped is None else [wrapped]), *vars(model).get("models", ())):
        yield from models_in(inner)


def _read(held: Mapping[str, Any], policy: Policy, what: str) -> tuple[dict[str, Any], list[Part]]:
    reading: Any = read_value(held, policy, what)
    said = _spoken(reading.said, "")
    return reading.value, Reading(reading.value, reading.parts, said).content


def _plain(name: str, value: Any) -> Any:
    """Ids of instructions by their text, as models are shown them; else the value itself."""
    return str(value) if name == "id" and is_dataclass(value) else value


def _may_speak(name: str, value: Any) -> bool:
    """Whether a field can say anything; most hold nothing, or a label."""
    if value is None or isinstance(value, bool | int | float):
        return False
    return not is_unspoken(name, value, _LABELS, _CIPHERS)


def _spoken(value: Any, key: object) -> Any:
    """JSON values without labels, ciphers and numbers; None where nothing is left."""
    match value:
        case str():
            silent = not value.strip() or is_unspoken(key, value, _LABELS, _CIPHERS)
            return None if silent else value
        case Mapping():
            spoken = {name: _spoken(item, name) for name, item in value.items()}
            left = {k: v for k, v in spoken.items() if v is not None or not is_label(str(k))}
            return left or None
        case list():
            items = [item for item in (_spoken(item, key) for item in value) if item is not None]
            return items or None
    return None
