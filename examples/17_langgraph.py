"""A guard as a node of a LangGraph graph, and a person who decides on what it flags.

pip install 'guardrail-vlm[langchain]', then: python examples/17_langgraph.py

The guard here has random weights, and thresholds by which pictures are flagged and texts pass.
"""

from __future__ import annotations

import base64
import io

from guardrail_langchain import guard_node
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command
from PIL import Image

from guardrail import Guard, Policy
from guardrail.testing import tiny_artefact, tiny_model


def graph_of(guard: Guard):
    """START -> guard -> model, or END."""
    graph = StateGraph(MessagesState)
    graph.add_node("guard", guard_node(guard, goto="model", review=True, flagged="remove"))
    graph.add_node("model", lambda state: {"messages": [AIMessage("(some model answers)")]})
    graph.add_edge(START, "guard")
    graph.add_edge("model", END)
    return graph.compile(checkpointer=InMemorySaver())


def picture() -> str:
    """A picture as stores and chats keep it."""
    Image.new("RGB", (64, 64), "navy").save(buffer := io.BytesIO(), "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Ask about words and a picture."""
    model, processor = tiny_model()
    fitted = tiny_artefact(model, processor, tau_steer=9, tau_flag=9)
    policy = Policy(thresholds={"image": {"steer": -9, "flag": -8}})
    with Guard((model, processor), fitted, policy=policy) as guard:
        graph = graph_of(guard)
        shown = HumanMessage([{"type": "image", "url": picture()}, "What is this?"])
        for asked, decision in (("Thank my teacher.", ""), (shown, "deny"), (shown, "approve")):
            thread = {"configurable": {"thread_id": decision}}
            state = graph.invoke({"messages": [asked]}, thread)
            if waiting := state.get("__interrupt__"):
                verdict = waiting[0].value["guardrail_verdict"]
                print(f"a person is asked about a {verdict['action']}, and says {decision}")
                state = graph.invoke(Command(resume=decision), thread)
            print(f"  {state['messages'][-1].content}")


if __name__ == "__main__":
    main()
