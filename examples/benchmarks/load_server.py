"""One server in a process of its own, for the load test: guarded, or the same model plainly.

python examples/benchmarks/load_server.py SIDE MODEL ARTEFACT

MODEL is a folder, or `tiny` for a random model with an artefact made on the spot. The address is
printed once the server listens; SIGTERM ends it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEYS = {"many": "load-test-of-many", "one": "load-test-of-one"}  # of servers on loopback alone
# One thread: what is compared is the work, and the clients need a core of their own.
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
EXACT = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


@contextmanager
def served(
    side: str,
    model: str,
    artefact: str = "-",
    *,
    script: Path = Path(__file__),
    exact_memory: bool = False,
) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server, while the block runs.

    `exact_memory` lets the process give back at once what it has freed, at the price of speed.

    Raises:
        RuntimeError: it did not come up, or did not end well.
    """
    command = [sys.executable, str(script), side, model, artefact]
    environment = os.environ | QUIET | (EXACT if exact_memory else {})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = process.stdout.readline() if process.stdout else ""
            if not said.startswith("http"):
                raise RuntimeError(f"the {side} server did not start")
            yield said.strip(), process.pid
        finally:
            process.terminate()
    if process.returncode not in (0, -signal.SIGTERM):  # uvicorn passes the signal on at the end
        raise RuntimeError(f"the {side} server ended with status {process.returncode}")


def app_of(side: str, model: str, artefact: str) -> Any:
    """The app to serve."""
    from load_plain import PlainAnswerer
    from transformers.utils.logging import disable_progress_bar

    from guardrail import Guard, Policy, Thresholds
    from guardrail.artefact import Artefact
    from guardrail.model.load import load_model, wrap_model
    from guardrail.server import ServerSettings, create_app
    from guardrail.server.keys import api_key
    from guardrail.testing import tiny_artefact, tiny_model
    from guardrail.types import Modality

    disable_progress_bar()
    # It judges everything and changes nothing, so that all sides do the same work.
    never = dict.fromkeys(Modality, Thresholds(steer=1e6, flag=1e6))
    tiny = tiny_model()
    keys = tuple(api_key(name, token) for name, token in KEYS.items())
    settings = ServerSettings(keys=keys, max_concurrent=128)
    loaded = wrap_model(*tiny) if model == "tiny" else load_model(model, trust_remote_code=True)
    if side == "guarded":
        fitted = tiny_artefact(*tiny) if model == "tiny" else Artefact.load(artefact)
        return create_app(Guard(loaded, fitted, policy=Policy(thresholds=never)), settings)
    idle = tiny_model(seed=1)  # the app wants a guard; this one's model is never asked
    plain = PlainAnswerer(loaded, together=side == "together")
    guard = Guard(idle, tiny_artefact(*idle))
    return create_app(guard, settings, answerer=lambda _service: plain)


def serve(app: Any) -> None:
    """Serve an app at a free port of this machine, until SIGTERM."""
    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    sys.stdout.write(f"http://127.0.0.1:{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).run([listening])


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    serve(app_of(*sys.argv[1:4]))
