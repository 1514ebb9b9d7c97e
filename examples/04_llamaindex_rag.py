"""Retrieval over text and pictures with LlamaIndex: harmful nodes never reach the model.

make examples, or: python examples/04_llamaindex_rag.py
"""

from __future__ import annotations

import zlib
from typing import Any

from guardrail_llamaindex import GuardedVLM, GuardrailNodePostprocessor
from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import ImageNode, TextNode
from tiny_guard import HARMFUL, HARMLESS, data_url, drawn, tiny_guard


class WordEmbedding(BaseEmbedding):
    """Counts of hashed words: nothing to download."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.01] * 64
        for word in text.lower().split():
            counts[zlib.crc32(word.strip(".,?").encode()) % 64] += 1
        return counts

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def picture(caption: str, words: str) -> ImageNode:
    """A picture with words in it, found by its caption."""
    return ImageNode(text=caption, image=data_url(drawn(words)).partition(",")[2])


NODES: list[Any] = [
    TextNode(text="A letter to a teacher begins with Dear and the teacher's name."),
    TextNode(text=HARMFUL),
    picture("A picture of a letter, seen on a wall.", HARMFUL),
    picture("A picture of a letter to a teacher.", HARMLESS),
]

if __name__ == "__main__":
    with tiny_guard() as guard:
        index = VectorStoreIndex(NODES, embed_model=WordEmbedding())
        engine = index.as_query_engine(
            llm=GuardedVLM(guard=guard, max_new_tokens=24, do_sample=False),
            similarity_top_k=4,
            node_postprocessors=[GuardrailNodePostprocessor(guard=guard, action="drop")],
            text_qa_template=PromptTemplate("{context_str}\n\n{query_str}"),
        )
        for question in ("How does a letter to a teacher begin?", HARMFUL):
            response = engine.query(question)
            print(f"{question} -> {response}")
            print(f"  from {[node.text for node in response.source_nodes]}")
