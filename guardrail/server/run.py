"""A server as a process: signals, draining, and the bounds on connections."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import uvicorn

from guardrail.server.listening import address_of, bound_socket
from guardrail.server.protocol import bounded_protocol
from guardrail.server.starting import handled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType

    from fastapi import FastAPI

    from guardrail.server.reload import Reloader
    from guardrail.server.settings import Listening
    from guardrail.server.starting import Start

_log = logging.getLogger(__name__)
_HEADER_BYTES = 32_768
_FORCED = 1


class Server(uvicorn.Server):
    """uvicorn that goes on answering while it drains, and reloads on SIGHUP.

    SIGTERM and SIGINT: new requests are refused, those under way have `drain_s`; the second one
    ends the process. uvicorn itself would stop listening at once, so that a load balancer meets
    refused connections before it has heard that the server is ending.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        reloader: Reloader | None,
        socket_file: Path | None = None,
    ) -> None:
        super().__init__(config)
        self._lifecycle, self._reloader = app.state.service.lifecycle, reloader
        self._socket_file = socket_file  # not left behind, however the process ends
        self._reload_asked = False
        self._reloads: set[asyncio.Task[bool]] = set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.should_exit:
            if self._socket_file is not None:
                self._socket_file.unlink(missing_ok=True)
            os._exit(_FORCED)  # what is left waits for the model, and it is asked for no answer
        elif self._lifecycle.draining:
            self._lifecycle.end_now()
            self.should_exit = self.force_exit = True
        else:
            self._lifecycle.drain()

    def ask_reload(self, *_signal: object) -> None:
        """The handler of SIGHUP; the reload itself runs in the event loop."""
        self._reload_asked = True

    async def on_tick(self, counter: int) -> bool:
        """What uvicorn calls ten times a second; whether the server stops listening now."""
        if self._reload_asked and self._reloader is not None:
            self._reload_asked = False
            task = asyncio.create_task(self._reloader.reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)
        if self._lifecycle.drained():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop listening and end what is left."""
        self._lifecycle.drain()
        for task in self._reloads:
            task.cancel()
        await super().shutdown(sockets)


def config_of(app: FastAPI, listening: Listening) -> uvicorn.Config:
    """Uvicorn's settings: no header tells of it, none of a proxy is believed, one process."""
    protocol = bounded_protocol(
        most=listening.max_connections,
        header_s=listening.header_timeout_s,
        stall_s=listening.stall_timeout_s,
    )
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_graceful_shutdown=2,  # the draining is over when uvicorn's own begins
        ssl_certfile=listening.tls_cert,
        ssl_keyfile=listening.tls_key,
    )


def serve(
    app: FastAPI,
    listening: Listening,
    reloader: Reloader | None = None,
    *,
    facts: Mapping[str, object] | None = None,
    start: Start | None = None,
) -> None:
    """Answer until a signal ends it; a second signal ends the process with exit code 1.

    `facts` are told in the log beside the address; `start` has the signals that came before.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    server = Server(config_of(app, listening), app, reloader, listening.unix_socket)
    # from before the address is taken and told: uvicorn's own handlers come a little later
    ends = {signal.SIGTERM: server.handle_exit, signal.SIGINT: server.handle_exit}
    with handled(ends, server.ask_reload), bound_socket(listening) as listener:
        if start is not None and start.reload_asked:
            server.ask_reload()
        _log.info("serving", extra={"address": address_of(listener, listening), **(facts or {})})
        server.run(sockets=[listener])
    if server.force_exit:
        _log.warning("ended by a second signal; answers were cut")
        logging.shutdown()
        os._exit(_FORCED)  # the model's thread may be inside a long step, and nobody waits for it
