"""`guardrail mcp`, started by a real client as its server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from guardrail.front.chats import RESULT_WITHHELD
from tests.mcp.sessions import WAYS, survives, written
from tests.waiting import until

SERVER = """
import os, sys
from mcp.server.mcpserver import Image, MCPServer

made = MCPServer("script")

@made.tool(structured_output=False)
def look() -> Image:
    return Image(path=sys.argv[1])

@made.tool()
def die() -> str:
    os._exit(3)

made.run()
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "name one server"),
        (["--url", "http://127.0.0.1:1/mcp", "--", "python"], "name one server"),
        (["--url", "stdio:x"], "begins with http"),
        (["--key-env", "NOWHERE", "--", "python"], "missing or empty"),
        (["--http", "--host", "0.0.0.0", "--", "python"], "--host is to be of this machine"),
        (["--port", "70000", "--", "python"], "65535"),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(options, told, run):
    result = run("mcp", "nowhere", "-a", "nowhere.safetensors", *options)
    assert result.exit_code == 2
    assert told in " ".join(result.output.replace("│", " ").split())


def test_without_the_package_its_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp", None)
    result = run("mcp", "nowhere", "-a", "nowhere.safetensors", "--", "python")
    assert result.exit_code == 2
    assert "guardrail-vlm[mcp]" in result.stderr


async def test_a_client_starts_it_in_the_servers_place(saved, tmp_path):
    script, rules = tmp_path / "server.py", tmp_path / "policy.toml"
    script.write_text(SERVER)
    rules.write_text("[thresholds.image]\nsteer = -1e9\nflag = -1e9\n")
    words = ["-m", "guardrail", "mcp", saved.model, "-a", saved.artefact["pass"]]
    words += ["--policy", str(rules), "--", sys.executable, str(script), saved.picture]
    how = StdioServerParameters(command=sys.executable, args=words)
    with (tmp_path / "log").open("w+") as log:
        async with Client(stdio_client(how, errlog=log), mode="legacy") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"look", "die"}
            result = await client.call_tool("look")
            with pytest.raises(MCPError, match="ended"):
                await client.call_tool("die")
        log.seek(0)
        told = log.read()
    assert (result.content[0].text, result.is_error) == (RESULT_WITHHELD, True)
    assert "error: the MCP server ended" in told
    assert "Traceback" not in told


@pytest.fixture(scope="module")
def served(saved, tmp_path_factory):
    """Where `guardrail mcp --http` listens, and the folder of the program behind each session."""
    folder = tmp_path_factory.mktemp("mcp")
    words = ["-m", "guardrail", "mcp", saved.model, "-a", saved.artefact["pass"], "--http"]
    words += ["--port", "0", "--", *written(folder)]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen([sys.executable, *words], stderr=log, stdout=subprocess.DEVNULL)
        try:

            def found():
                return re.search(
                    r"listening at (\S+)\n", (folder / "log").read_text(errors="replace")
                )

            until(lambda: child.poll() is not None or found(), seconds=120)
            assert child.poll() is None, (folder / "log").read_text(errors="replace")
            yield found()[1], folder
            assert child.poll() is None
        finally:
            child.terminate()
            child.wait(30)


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_dies_and_the_others_of_the_command_go_on(way, served):
    await survives(*served, way)
