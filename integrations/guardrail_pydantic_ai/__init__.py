"""A guard in front of a Pydantic-AI agent's model and around its tools.

from guardrail_pydantic_ai import Guardrail

agent = Agent("openai:gpt-4.1", tools=[search], capabilities=[Guardrail(guard)])
"""

from guardrail.extras import require

require("pydantic_ai")

from guardrail_pydantic_ai.model import GuardedModel
from guardrail_pydantic_ai.tools import GuardedToolset, Guardrail, guard_toolset

__all__ = ["GuardedModel", "GuardedToolset", "Guardrail", "guard_toolset"]
