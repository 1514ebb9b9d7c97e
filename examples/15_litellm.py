"""LiteLLM with our server behind it; its proxy's guardrail hook is in guardrail/server/README.md.

make examples, or: python examples/15_litellm.py
"""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks GitHub for prices

import litellm
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, served


def main() -> None:
    """Ask in words, with a picture and as a stream."""
    with served() as url:
        given = {"model": "openai/guarded", "api_base": f"{url}/v1", "api_key": "none is needed"}
        for text in (HARMLESS, HARMFUL):
            seen = {"type": "image_url", "image_url": {"url": data_url(drawn(text))}}
            for content in (text, [seen, {"type": "text", "text": FOLLOW}]):
                messages = [{"role": "user", "content": content}]
                answer = litellm.completion(**given, messages=messages, max_tokens=16)
                (choice,) = answer.choices
                print(f"{choice.finish_reason}: {choice.message.content!r}")
            stream = litellm.completion(**given, messages=messages, max_tokens=16, stream=True)
            said = [chunk.choices[0].delta.content or "" for chunk in stream]
            print(f"streamed: {''.join(said)!r}")


if __name__ == "__main__":
    main()
