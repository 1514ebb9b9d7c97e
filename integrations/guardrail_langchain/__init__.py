"""LangChain adapters: a guarded chat model, steps of chains and graphs, middleware, guarded tools.

from guardrail_langchain import ChatGuardedVLM

model = ChatGuardedVLM(guard=guard, temperature=0)
model.invoke("What is the capital of France?").response_metadata["verdict"]
"""

from __future__ import annotations

from guardrail.extras import require

require("langchain_core")
require("langchain")

from guardrail_langchain.chat_model import ChatGuardedVLM
from guardrail_langchain.graph import guard_node
from guardrail_langchain.messages import to_chat
from guardrail_langchain.middleware import GuardrailMiddleware
from guardrail_langchain.retrieval import GuardrailDocumentCompressor
from guardrail_langchain.runnable import GuardrailRunnable
from guardrail_langchain.tools import guard_tool

__all__ = [
    "ChatGuardedVLM",
    "GuardrailDocumentCompressor",
    "GuardrailMiddleware",
    "GuardrailRunnable",
    "guard_node",
    "guard_tool",
    "to_chat",
]
