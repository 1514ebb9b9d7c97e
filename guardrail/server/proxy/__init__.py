"""The guard before another server: checked here by a local model, answered by an upstream.

    from guardrail.server.proxy import UpstreamSettings, through

    upstream = UpstreamSettings(url="http://127.0.0.1:8000/v1")
    app = create_app(guard, ServerSettings(), answerer=through(upstream))

The upstream is anything that speaks the OpenAI API. It is asked only after the check, and only for
what was checked. Needs the extra `serve`.
"""

from __future__ import annotations

from guardrail.server.proxy.answerer import ProxyAnswerer, through
from guardrail.server.settings import UpstreamSettings, read_key

__all__ = ["ProxyAnswerer", "UpstreamSettings", "read_key", "through"]
