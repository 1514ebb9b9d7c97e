"""A guard in front of any server of the Model Context Protocol (extra `mcp`).

`guardrail mcp` is the command; `McpProxy` joins any two transports of the SDK, `program` and
`address` are servers to stand in front of, `pipes` and `HttpFront` ways for clients to come.
"""

from __future__ import annotations

from guardrail.extras import require

require("mcp")

from guardrail.mcp.proxy import McpProxy
from guardrail.mcp.transports import HttpFront, address, pipes, program

__all__ = ["HttpFront", "McpProxy", "address", "pipes", "program"]
