"""Every class of LlamaIndex that can carry words to a model, field by field.

All that an LLM is sent is judged when it is sent, so what agents, engines and memory hold is judged
wherever it comes to an LLM at all.
"""

from __future__ import annotations

from typing import Any

from llama_index.core import memory, prompts, schema
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent, ReActAgent
from llama_index.core.base.llms import types
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts.base import LangchainPromptTemplate, SelectorPromptTemplate
from llama_index.core.tools import ToolMetadata, ToolOutput, ToolSelection

from tests.channels.contract import LibraryClass


def _those(module: Any, name: str, **fields: str) -> list[LibraryClass]:
    """A class, if this version has it."""
    found = getattr(module, name, None)
    return [] if found is None else [LibraryClass(kind=found, **fields)]


def _block(name: str, **fields: str) -> list[LibraryClass]:
    return _those(types, name, **{**fields, "never": f"block_type {fields.get('never', '')}"})


BLOCKS = [
    *_block("TextBlock", judged="text"),
    *_block("ImageBlock", judged="image path url", never="image_mimetype", labels="detail"),
    *_block("VideoBlock", judged="video path url", never="fps", labels="detail video_mimetype"),
    *_block("ThinkingBlock", judged="content additional_information", never="num_tokens"),
    *_block("ToolCallBlock", judged="tool_name tool_kwargs", labels="tool_call_id"),
    *_block("CachePoint", labels="cache_control"),
    *_block("AudioBlock", refused="audio path url format"),
    *_block("DocumentBlock", refused="data path url title document_mimetype"),
    *_block("CitableBlock", refused="title source content"),
    *_block("CitationBlock", refused="title source cited_content additional_location_info"),
]

# Numbers, names of keys, and what only retrievers and stores look at.
_OF_STORES = (
    "id_ embedding excluded_embed_metadata_keys excluded_llm_metadata_keys relationships "
    "start_char_idx end_char_idx mimetype metadata_seperator"
)
_NODE = "metadata metadata_template metadata_separator text_template"
_SEVERAL = {
    "judged": f"{_NODE} text_resource image_resource video_resource",
    "refused": "audio_resource",
    "never": _OF_STORES,
}
_LLM = {
    # Where LlamaIndex has an LLM use them, the prompt or the messages they make are judged.
    "judged": "system_prompt query_wrapper_prompt messages_to_prompt completion_to_prompt "
    "output_parser",
    "never": "callback_manager pydantic_program_mode rate_limiter",
}
_PROMPT: dict[str, str] = {
    "judged": "kwargs output_parser function_mappings",
    "never": "metadata template_vars template_var_mappings",
}
_AGENT = {
    "judged": "name description system_prompt tools tool_retriever initial_state state_prompt "
    "output_cls can_handoff_to llm",
    "never": "streaming structured_output_fn early_stopping_method",
}


def _prompt(kind: Any, judged: str) -> LibraryClass:
    return LibraryClass(kind=kind, judged=f"{_PROMPT['judged']} {judged}", never=_PROMPT["never"])


def _agent(kind: Any, judged: str = "", never: str = "") -> LibraryClass:
    return LibraryClass(
        kind=kind, judged=f"{_AGENT['judged']} {judged}", never=f"{_AGENT['never']} {never}"
    )


CLASSES: list[LibraryClass] = [
    *BLOCKS,
    LibraryClass(kind=types.ChatMessage, judged="additional_kwargs blocks", never="role"),
    LibraryClass(kind=types.CacheControl, labels="type ttl"),
    LibraryClass(kind=ToolMetadata, judged="name description fn_schema", never="return_direct"),
    LibraryClass(kind=ToolOutput, judged="blocks", never="tool_name raw_input raw_output is_error"),
    LibraryClass(kind=ToolSelection, judged="tool_name tool_kwargs", labels="tool_id"),
    LibraryClass(kind=LLM, **_LLM),
    LibraryClass(kind=FunctionCallingLLM, **_LLM),
    LibraryClass(
        kind=StructuredLLM, judged=f"{_LLM['judged']} output_cls llm", never=_LLM["never"]
    ),
    LibraryClass(kind=schema.TextNode, judged=f"{_NODE} text", never=_OF_STORES),
    LibraryClass(
        kind=schema.ImageNode,
        judged=f"{_NODE} text image image_path image_url",
        never=f"{_OF_STORES} image_mimetype text_embedding",
    ),
    LibraryClass(kind=schema.IndexNode, judged=f"{_NODE} text", never=f"{_OF_STORES} index_id obj"),
    LibraryClass(kind=schema.Node, **_SEVERAL),
    LibraryClass(kind=schema.Document, **_SEVERAL),
    LibraryClass(kind=schema.ImageDocument, **_SEVERAL),
    LibraryClass(
        kind=schema.MediaResource,
        judged="text data path url",
        never="embeddings",
        labels="mimetype",
    ),
    LibraryClass(kind=schema.RelatedNodeInfo, never="node_id node_type metadata hash"),
    LibraryClass(kind=schema.NodeWithScore, judged="node", never="score"),
    LibraryClass(
        kind=schema.QueryBundle,
        judged="query_str",
        never="image_path custom_embedding_strs embedding",
    ),
    _prompt(prompts.PromptTemplate, "template"),
    _prompt(prompts.ChatPromptTemplate, "message_templates"),
    _prompt(SelectorPromptTemplate, "default_template conditionals"),
    _prompt(LangchainPromptTemplate, "selector requires_langchain_llm"),
    *(
        _prompt(kind, "template_str")
        for kind in [getattr(prompts, "RichPromptTemplate", None)]
        if kind is not None
    ),
    *_those(
        memory,
        "Memory",
        judged="memory_blocks memory_blocks_template sql_store",
        never="audio_token_size_estimate chat_history_token_ratio document_token_size_estimate "
        "image_token_size_estimate insert_method token_flush_size token_limit tokenizer_fn "
        "video_token_size_estimate",
        labels="session_id",
    ),
    *_those(
        memory,
        "ChatMemoryBuffer",
        judged="chat_store",
        never="chat_store_key token_limit tokenizer_fn",
    ),
    *_those(
        memory,
        "StaticMemoryBlock",
        judged="name static_content",
        never="description priority accept_short_term_memory",
    ),
    *_those(
        memory,
        "FactExtractionMemoryBlock",
        judged="name facts fact_extraction_prompt_template fact_condense_prompt_template llm",
        never="description priority accept_short_term_memory max_facts",
    ),
    *_those(
        memory,
        "VectorMemoryBlock",
        judged="name vector_store format_template",
        never="description priority accept_short_term_memory embed_model node_postprocessors "
        "query_kwargs retrieval_context_window similarity_top_k",
    ),
    _agent(FunctionAgent, "initial_tool_choice", "allow_parallel_tool_calls scratchpad_key"),
    _agent(ReActAgent, "formatter output_parser", "reasoning_key"),
    _agent(CodeActAgent, "code_act_system_prompt", "code_execute_fn scratchpad_key"),
]
