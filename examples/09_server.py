"""Serve a guarded model over HTTP, and ask it with the official OpenAI client.

make examples, or: python examples/09_server.py

`guardrail serve MODEL -a ARTEFACT` is the same in a process of its own, with keys and limits.
"""

from __future__ import annotations

from openai import OpenAI
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, served


def main() -> None:
    """Ask in words, with a picture and as a stream; the verdict comes with every answer."""
    with served() as url, OpenAI(base_url=f"{url}/v1", api_key="none is needed") as client:
        for text in (HARMLESS, HARMFUL):
            seen = {"type": "image_url", "image_url": {"url": data_url(drawn(text))}}
            for content in (text, [seen, {"type": "text", "text": FOLLOW}]):
                chat = {"model": "guarded", "messages": [{"role": "user", "content": content}]}
                answer = client.chat.completions.create(**chat, max_tokens=16)
                (choice,) = answer.choices
                print(f"{choice.finish_reason}: {choice.message.content!r}")
                print(f"  {answer.guardrail['action']}, score {answer.guardrail['score']:.2f}")
            stream = client.chat.completions.create(**chat, max_tokens=16, stream=True)
            said = [chunk.choices[0].delta.content or "" for chunk in stream]
            print(f"streamed: {''.join(said)!r}")


if __name__ == "__main__":
    main()
