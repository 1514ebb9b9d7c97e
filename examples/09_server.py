"""Serve a guarded model over HTTP, and ask it with the official OpenAI client.

make examples, or: python examples/09_server.py

`guardrail serve MODEL -a ARTEFACT` is the same in a process of its own, with keys and limits.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from openai import OpenAI
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, data_url, drawn, tiny_guard

from guardrail.server import create_app


@contextmanager
def served() -> Iterator[str]:
    """The server's address, while the block runs."""
    with tiny_guard() as guard, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(guard), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


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
