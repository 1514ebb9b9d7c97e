"""An MCP server for example 16, as anybody might have written it; it knows of no guard."""

from __future__ import annotations

from pathlib import Path

from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("desk")


@server.tool(structured_output=False)
def note() -> str:
    """Read the note on the desk."""
    return "Thank my teacher."


@server.tool(structured_output=False)
def screenshot() -> Image:
    """Look at the screen; what is on it may be written for the model that looks."""
    return Image(path=Path(__file__).parent / "photographs" / "clock.jpg")


if __name__ == "__main__":
    server.run()
