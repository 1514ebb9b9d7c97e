"""Which texts beside a message's own words are read: all but labels and ciphers.

Providers put ids, kinds and ciphers beside words, and so do loaders of documents and settings of
models. Each such place has its keys here. Any other text, and any key that nobody knows, may be
shown to a model, so it is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

from guardrail.errors import UnsupportedContentError
from guardrail.inputs.labels import CIPHERS, is_label, is_unspoken

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_IDS = frozenset(
    "call_id container_id conversation_id doc_id document_id file_id id index item_id message_id"
    " __openai_function_call_ids__ response_id run_id session_id task_id thread_id tool_call_id"
    " tool_id tool_use_id user_id".split()
)
HINTS = frozenset("cache_control detail item_id phase signature status".split())
"""How to handle a block, never what is in it."""

LABELS = _IDS | frozenset(
    "code created_at detail encoding finish_reason format language lc_source media_type mime_type"
    " model model_name model_provider __openai_role__ phase role source source_type status"
    " stop_reason timestamp ttl type url".split()
)
"""Keys of messages and blocks under which labels stand."""

_CIPHERS = CIPHERS | {"__gemini_function_call_thought_signatures__"}
_OF_CIPHERS = frozenset({"redacted_thinking", "reasoning.encrypted"})  # their `data` is one
# Their items are ids, with what the last key says as their values.
_BY_ID = frozenset({"__openai_function_call_ids__", "__gemini_function_call_thought_signatures__"})

_LISTS = frozenset("betas include modalities response_modalities".split())  # of labels

# What else stands in messages and blocks of known providers; what it holds is read.
_NAMES = frozenset(
    "acknowledged_safety_checks action annotations args arguments asynchronous audio base64"
    " cache_control caller category citations cited_text confidence_scores content context data"
    " date defer_loading document_index document_title enabled encrypted_index end_block_index"
    " end_char_index end_index end_page_number error example executed_tools expires_at extras"
    " file_name file_search filename function google_ai_metadata grounding_chunk_index id images"
    " input lc_data message name output parsed partial_json prompt_cache_breakpoint queries query"
    " reasoning reasoning_content reasoning_details reasoning_steps refusal related_questions"
    " result results search_result_index search_results start_block_index start_char_index"
    " start_index start_page_number summary text thinking title tool_calls tool_outputs"
    " toolset_name transcript usage value videos web_search_queries".split()
)

SETTINGS = LABELS | frozenset(
    "background betas effort include inference_geo method modalities modality mode"
    " prompt_cache_key prompt_cache_retention reasoning_effort response_mime_type"
    " response_modalities safety_identifier service_tier speed summary truncation user verbosity"
    " voice".split()
)
"""Keys of a model's settings under which labels stand."""

DOCUMENTS = LABELS | frozenset(
    "chunk_id content_type creationdate creator file_name file_path filename _id last_modified md5"
    " moddate page_label parent_id pk producer sha256 trapped uuid version".split()
)
"""Keys of a document's metadata under which loaders and stores put labels."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place beside words: the keys of its labels, and the keys that say nothing.

    Without `names` every key that looks like a label says nothing: they are the app's own.
    """

    labels: Collection[str]
    names: Collection[str] | None = None
    ciphers: Collection[str] = _CIPHERS

    def says(self, key: str) -> bool:
        """Whether a key may be words."""
        return not is_label(key) if self.names is None else key not in self.names


IN_MESSAGES = Place(LABELS, LABELS | _CIPHERS | _NAMES)
WITH_DATA = Place(LABELS, IN_MESSAGES.names, _CIPHERS | {"data"})
IN_SETTINGS = Place(SETTINGS)
IN_DOCUMENTS = Place(DOCUMENTS)


def legible(value: Any, place: Place = IN_MESSAGES) -> list[str]:
    """Every text in a value, keys that may be words included, less labels and ciphers.

    Raises:
        UnsupportedContentError: it holds something that is neither JSON nor made of it.
    """
    return list(_legible(value, None, place))


def _legible(value: Any, key: object, place: Place) -> Iterator[str]:
    match value:
        case str():
            if value and not is_unspoken(key, value, place.labels, place.ciphers):
                yield value
        case None | bool() | int() | float() | Decimal() | date() | time() | timedelta() | UUID():
            return
        case Mapping():
            yield from _of_mapping(value, key, place)
        case list() | tuple() | set() | frozenset():
            for item in value:
                yield from _legible(item, key if key in _LISTS else None, place)
        case Enum():
            yield from _legible(value.value, key, place)
        case _ if (held := held_by(value)) is not None:
            yield from _of_mapping(held, None, place)
        case _:
            raise UnsupportedContentError(
                f"a {type(value).__name__} stands beside a message's words, which a guard cannot "
                "read; send text, JSON values, pydantic models or dataclasses"
            )


def _of_mapping(value: Mapping[Any, Any], key: object, place: Place) -> Iterator[str]:
    by_id = key in _BY_ID
    if value.get("type") in _OF_CIPHERS:
        place = WITH_DATA
    for name, item in value.items():
        written = name.value if isinstance(name, Enum) else name
        if isinstance(written, str) and (not is_label(written) if by_id else place.says(written)):
            yield written
        yield from _legible(item, key if by_id else written, place)


def without(values: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """What stands under all keys but these."""
    return {key: item for key, item in values.items() if key not in keys}


def held_by(value: Any) -> dict[str, Any] | None:
    """What a pydantic model or a dataclass holds, by name; None for other objects."""
    if isinstance(value, BaseModel):
        held = {name: getattr(value, name) for name in type(value).model_fields}
        return {**held, **(value.model_extra or {})}
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    return None
