"""A guarded model, any other LLM behind a guard, guarded tools and guarded retrieval.

from guardrail_llamaindex import GuardedLLM, GuardedVLM, GuardrailNodePostprocessor, guard_tool

llm = GuardedVLM(guard=guard)               # the guard's own model answers
llm = GuardedLLM(llm=other, guard=guard)    # another LLM does
tools = [guard_tool(search, guard=guard)]
engine = index.as_query_engine(
    llm=llm, node_postprocessors=[GuardrailNodePostprocessor(guard=guard)]
)
"""

from guardrail.extras import require

require("llama_index.core")

from guardrail_llamaindex.guarded import GuardedLLM
from guardrail_llamaindex.llm import GuardedVLM
from guardrail_llamaindex.messages import to_messages
from guardrail_llamaindex.postprocessor import GuardrailNodePostprocessor
from guardrail_llamaindex.replies import end_streams
from guardrail_llamaindex.tools import guard_tool

end_streams()

__all__ = ["GuardedLLM", "GuardedVLM", "GuardrailNodePostprocessor", "guard_tool", "to_messages"]
