"""A guard in front of an MCP server: what it says is read before the client hears it.

pip install 'guardrail-vlm[mcp]', then: python examples/16_mcp.py

In a client's settings it is a command in the place of the server's own:
`guardrail mcp ./my-model -a mine.guard.safetensors -- npx some-server`. The guard here has random
weights, and thresholds by which every picture is flagged and no text.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from mcp import Client
from mcp.shared.memory import create_client_server_memory_streams

from guardrail import Guard, Policy
from guardrail.mcp import McpProxy, program
from guardrail.testing import tiny_artefact, tiny_model

SERVER = Path(__file__).parent / "desk_server.py"


@asynccontextmanager
async def guarded(guard):
    """A client's end of the proxy; behind it is a server that is a program."""
    server = program([sys.executable, str(SERVER)])
    async with create_client_server_memory_streams() as (client, ours), server() as behind:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(McpProxy(guard).relay, ours, behind)
            yield client


async def main() -> None:
    """List the server's tools, and call each of them."""
    model, processor = tiny_model()
    fitted = tiny_artefact(model, processor, tau_steer=9, tau_flag=9)
    policy = Policy(thresholds={"image": {"steer": -9, "flag": -8}})
    with Guard((model, processor), fitted, policy=policy) as guard:
        async with Client(guarded(guard)) as client:
            for tool in (await client.list_tools()).tools:
                [block] = (await client.call_tool(tool.name)).content
                print(f"{tool.name}: {block.text if block.type == 'text' else 'a picture'}")


if __name__ == "__main__":
    asyncio.run(main())
