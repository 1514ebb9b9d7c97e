"""One guarded model behind many replicas, with Ray Serve.

    from guardrail.cluster import StartSettings, start, update

    start(StartSettings(model="path-or-hub-id", artefact="model.guard.safetensors", replicas=2))
    update("newer.guard.safetensors")

Needs the extra `ray`. `guardrail cluster` is the same from the command line. Ray pickles code and
arguments between its own processes: whoever reaches its ports can run code, so they belong on
loopback or on a network of their own. What comes out of files and requests is never unpickled.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from guardrail.extras import require

if TYPE_CHECKING:
    from guardrail.cluster.deploy import build, start, status, stop, update
    from guardrail.cluster.settings import ClusterSettings, StartSettings

__all__ = ["ClusterSettings", "StartSettings", "build", "start", "status", "stop", "update"]


def __getattr__(name: str) -> object:
    """Import a public name's module on first use: settings and replicas need no Ray."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "settings" if name.endswith("Settings") else "deploy"
    if home == "deploy":
        require("ray.serve")
    value: object = getattr(import_module(f"guardrail.cluster.{home}"), name)
    globals()[name] = value
    return value
