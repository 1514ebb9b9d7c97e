"""Guardrails of the OpenAI Agents SDK that run before the model, and a model behind a guard.

from guardrail_agents import guarded_agent

agent = guarded_agent(Agent("helper", tools=[search]), guard=guard)
result = await Runner.run(agent, "...")  # InputGuardrailTripwireTriggered where it is flagged
"""

from guardrail.extras import require

require("agents")

from guardrail_agents.guardrails import (
    guard_tool,
    guarded_agent,
    input_guardrail,
    output_guardrail,
    tool_guardrails,
)
from guardrail_agents.model import GuardedModel

__all__ = [
    "GuardedModel",
    "guard_tool",
    "guarded_agent",
    "input_guardrail",
    "output_guardrail",
    "tool_guardrails",
]
