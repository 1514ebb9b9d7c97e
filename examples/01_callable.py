"""Guard a plain function, here the client of a remote model, with a local guard that reads first.

make examples, or: python examples/01_callable.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, tiny_guard

from guardrail import guarded
from guardrail.front.wrap import last_verdict

guard = tiny_guard()


@guarded(guard=guard)
def ask(messages: list[dict[str, Any]]) -> str:
    """A remote model's client would stand here."""
    return f"(the remote model answers {len(messages)} message(s))"


@guarded(guard=guard, messages=("image", "prompt"), fallback=lambda verdict, *_: "ask a person")
async def describe(prompt: str, image: str, user: str) -> str:
    """Several parameters are joined into one chat, in that order; `user` is not read."""
    return f"(a remote model describes the picture to {user})"


def main() -> None:
    """Ask for something harmless and something harmful, in words and in a picture."""
    for text in (HARMLESS, HARMFUL):
        print(f"{text} -> {ask([{'role': 'user', 'content': text}])}")
        print(f"  {last_verdict().summary()}")
        answer = asyncio.run(describe(FOLLOW, data_url(drawn(text)), user="eve"))
        print(f"  the same words in a picture -> {answer}")


if __name__ == "__main__":
    with guard:
        main()
