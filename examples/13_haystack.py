"""A Haystack pipeline whose generator of chats is our server.

make examples, or: python examples/13_haystack.py
"""

from __future__ import annotations

import os

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

from haystack import Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from tiny_guard import HARMFUL, HARMLESS, served


def main() -> None:
    """Ask in a pipeline, whole and as a stream; a refusal's finish reason tells it."""
    with served() as url:
        chunks: list[str] = []
        generator = OpenAIChatGenerator(
            api_key=Secret.from_token("none is needed"),
            model="guarded",
            api_base_url=f"{url}/v1",
            generation_kwargs={"max_tokens": 16},
            streaming_callback=lambda chunk: chunks.append(chunk.content),
        )
        question = ChatMessage.from_user("{{ question }}")
        pipeline = Pipeline()
        pipeline.add_component("prompt", ChatPromptBuilder([question], ["question"]))
        pipeline.add_component("llm", generator)
        pipeline.connect("prompt.prompt", "llm.messages")
        for text in (HARMLESS, HARMFUL):
            found = pipeline.run({"prompt": {"question": text}})
            [reply] = found["llm"]["replies"]
            print(f"{text} -> {reply.meta['finish_reason']}: {reply.text!r}")
            print(f"  streamed: {''.join(chunks)!r}")
            chunks.clear()


if __name__ == "__main__":
    main()
