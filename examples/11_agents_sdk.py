"""An agent of the OpenAI Agents SDK, on any model, that reads nothing which was not judged.

make examples, or: python examples/11_agents_sdk.py
"""

from __future__ import annotations

import asyncio

from agents import (
    Agent,
    InputGuardrailTripwireTriggered,
    Runner,
    ToolOutputImage,
    function_tool,
    set_tracing_disabled,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from guardrail_agents import guarded_agent
from tiny_guard import HARMFUL, HARMLESS, data_url, screen, tiny_guard

SCREEN = {"text": HARMLESS}


@function_tool
def screenshot() -> ToolOutputImage:
    """Look at the screen."""
    return ToolOutputImage(image_url=data_url(screen(SCREEN["text"])))


async def main() -> None:
    """Look at a harmless and a harmful screen; then ask for something harmful."""
    with tiny_guard() as guard:
        for text in (HARMLESS, HARMFUL):
            SCREEN["text"] = text
            # In your own code: model="gpt-5.4", or any other of the SDK.
            steps = [[function_call("screenshot", {}, call_id="c1")], [assistant_message("I see.")]]
            agent = Agent("helper", model=ScriptedModel(steps), tools=[screenshot])
            result = await Runner.run(
                guarded_agent(agent, guard=guard),
                "What is on my screen?",
                error_handlers={"model_refusal": lambda given: str(given.error)},
            )
            (seen,) = [each.output for each in result.new_items if hasattr(each, "output")]
            print(f"the screen says: {text!r}")
            print(f"  the model gets {seen if isinstance(seen, str) else 'the picture'}")
            print(f"  it says {result.final_output!r}")
        model = ScriptedModel()
        try:
            await Runner.run(guarded_agent(Agent("helper", model=model), guard=guard), HARMFUL)
        except InputGuardrailTripwireTriggered as tripped:
            verdict = tripped.guardrail_result.output.output_info
            print(f"asked: {HARMFUL!r}")
            print(f"  {verdict['action']}; the model was asked {len(model.calls)} times")


if __name__ == "__main__":
    set_tracing_disabled(True)
    asyncio.run(main())
