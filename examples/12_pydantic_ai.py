"""A Pydantic-AI agent, on any model, that reads nothing which was not judged.

make examples, or: python examples/12_pydantic_ai.py
"""

from __future__ import annotations

import asyncio
import io

from guardrail_pydantic_ai import Guardrail
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.test import TestModel
from tiny_guard import HARMFUL, HARMLESS, screen, tiny_guard

SCREEN = {"text": HARMLESS}


def screenshot() -> BinaryContent:
    """Look at the screen."""
    buffer = io.BytesIO()
    screen(SCREEN["text"]).save(buffer, "PNG")
    return BinaryContent(buffer.getvalue(), media_type="image/png")


async def main() -> None:
    """Look at a harmless and a harmful screen; then ask for something harmful."""
    with tiny_guard() as guard:
        # In your own code: Agent("openai:gpt-5.4", ...), or any other model.
        model = TestModel(custom_output_text="I see.")
        agent = Agent(model, tools=[screenshot], capabilities=[Guardrail(guard)])
        for text in (HARMLESS, HARMFUL):
            SCREEN["text"] = text
            result = await agent.run("What is on my screen?")
            parts = [part for message in result.all_messages() for part in message.parts]
            [seen] = [part.content for part in parts if isinstance(part, ToolReturnPart)]
            print(f"the screen says: {text!r}")
            print(f"  the model gets {seen if isinstance(seen, str) else 'the picture'}")
            print(f"  it says {result.output!r}")
        result = await agent.run(HARMFUL)
        print(f"asked: {HARMFUL!r}")
        print(f"  {result.response.metadata['guardrail']['action']}: {result.output}")


if __name__ == "__main__":
    asyncio.run(main())
