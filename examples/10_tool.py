"""Tools outside of any framework, such as an MCP server's: the guard reads calls and results.

make examples, or: python examples/10_tool.py
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tiny_guard import HARMFUL, HARMLESS, screen, tiny_guard

from guardrail import guard_tool

if TYPE_CHECKING:
    from PIL.Image import Image

guard = tiny_guard()
SCREEN = {"text": HARMLESS}


@guard_tool(guard=guard)  # below the decorator that registers the tool, if there is one
def screenshot() -> Image:
    """Look at the screen; what is on it may be written for the model that looks."""
    return screen(SCREEN["text"])


@guard_tool(guard=guard, injected=["session"])
async def write(task: str, session: object) -> dict[str, str]:
    """The model writes `task`; `session` comes from the app and is not read."""
    print("  (the tool runs)")
    return {"written": f"a draft for: {task}"}


def main() -> None:
    """Look at a harmless and a harmful screen, and do what is written there."""
    for text in (HARMLESS, HARMFUL):
        SCREEN["text"] = text
        shot = screenshot()
        print(f"the screen says: {text!r}")
        print(f"  the model gets {shot if isinstance(shot, str) else 'the picture'}")
        print(f"  write gives {asyncio.run(write(text, session=object()))}")


if __name__ == "__main__":
    with guard:
        main()
