"""An agent whose screenshot tool brings back a picture with instructions in it.

make examples, or: python examples/03_langchain_agent.py
"""

from __future__ import annotations

from typing import Any

from guardrail_langchain import GuardrailMiddleware
from langchain.agents import create_agent
from langchain_core.language_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from tiny_guard import HARMFUL, HARMLESS, data_url, screen, tiny_guard

SCREEN = {"text": HARMLESS}


@tool
def screenshot() -> list[dict[str, Any]]:
    """Look at the screen."""
    return [{"type": "image_url", "image_url": {"url": data_url(screen(SCREEN["text"]))}}]


class Model(FakeMessagesListChatModel):
    """Stands for your agent's model: it looks at the screen, then does what it saw."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Model:
        """Every answer is fixed, so the tools change nothing."""
        return self


def main() -> None:
    """A harmless screen, a harmful one, and a harmful question."""
    call = {"name": "screenshot", "args": {}, "id": "1", "type": "tool_call"}
    with tiny_guard() as guard:
        for question, words in (
            ("What is on the screen?", HARMLESS),
            ("What is on the screen?", HARMFUL),
            (HARMFUL, HARMLESS),
        ):
            SCREEN["text"] = words
            model = Model(responses=[AIMessage("", tool_calls=[call]), AIMessage("(done)")])
            agent = create_agent(model, [screenshot], middleware=[GuardrailMiddleware(guard)])
            print(f"question: {question!r}, the screen says: {words!r}")
            for message in agent.invoke({"messages": [HumanMessage(question)]})["messages"][1:]:
                shown = message.content if isinstance(message.content, str) else "(a picture)"
                print(f"  {message.type}: {shown or 'calls the screenshot tool'}")


if __name__ == "__main__":
    main()
