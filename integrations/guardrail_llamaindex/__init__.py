"""A guarded model, any other LLM behind a guard, guarded tools and guarded retrieval.

from guardrail_llamaindex import GuardedLLM, GuardedVLM, GuardrailNodePostprocessor, guard_tool

llm = GuardedVLM(guard=guard)               # the guard's own model answers
llm = GuardedLLM(llm=other, guard=guard)    # another LLM does
tools = [guard_tool(search, guard=guard)]
engine = index.as_query_engine(
    llm=llm, node_postprocessors=[GuardrailNodePostprocessor(guard=guard)]
)
"""

from guardrail.errors import MissingExtraError

try:
    import llama_index.core as _core  # noqa: F401  # looked for first, so that its absence is named
except ModuleNotFoundError as error:
    # A framework that misses one of its own dependencies is another problem.
    if error.name not in ("llama_index", "llama_index.core"):
        raise
    raise MissingExtraError("llama_index.core", extra="llamaindex") from error

from guardrail_llamaindex.guarded import GuardedLLM
from guardrail_llamaindex.llm import GuardedVLM
from guardrail_llamaindex.messages import to_messages
from guardrail_llamaindex.postprocessor import GuardrailNodePostprocessor
from guardrail_llamaindex.replies import end_streams
from guardrail_llamaindex.tools import guard_tool

end_streams()

__all__ = ["GuardedLLM", "GuardedVLM", "GuardrailNodePostprocessor", "guard_tool", "to_messages"]
