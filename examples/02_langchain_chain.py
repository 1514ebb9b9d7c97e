"""A LangChain chain around the guarded model, and a guard as a step in front of any other model.

make examples, or: python examples/02_langchain_chain.py
"""

from __future__ import annotations

from guardrail_langchain import ChatGuardedVLM, GuardrailRunnable
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, tiny_guard

PICTURE = {"type": "image_url", "image_url": {"url": "{picture}"}}
PROMPT = ChatPromptTemplate.from_messages([("human", [PICTURE, {"type": "text", "text": FOLLOW}])])


def main() -> None:
    """The same two pictures through both chains."""
    with tiny_guard() as guard:
        ours = PROMPT | ChatGuardedVLM(guard=guard, temperature=0, max_tokens=16)
        other = FakeListChatModel(responses=["(some other model answers)"])
        fallback = RunnableLambda(lambda _: "(a person will answer)")
        step = GuardrailRunnable(guard=guard, fallback=fallback)
        any_model = PROMPT | (step | (other | StrOutputParser()))
        for text in (HARMLESS, HARMFUL):
            given = {"picture": data_url(drawn(text))}
            answer = ours.invoke(given)
            action = answer.response_metadata["verdict"]["action"]
            print(f"a picture that says {text!r}")
            print(f"  guarded model, {action}: {answer.content!r}")
            print(f"  streamed: {[chunk.content for chunk in ours.stream(given)]}")
            print(f"  another model behind a guard: {any_model.invoke(given)}")


if __name__ == "__main__":
    main()
