"""`guardrail cluster`: the guarded model behind HTTP, on several replicas, with Ray Serve."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.derived import with_options
from guardrail.cli.output import ERROR, say, session, write_json, write_rows
from guardrail.cli.serve_options import SERVED, VllmWords, engine_options
from guardrail.cluster.settings import StartSettings
from guardrail.errors import ClusterError
from guardrail.extras import require
from guardrail.model.source import LoadingOptions
from guardrail.server.settings import ServerSettings

if TYPE_CHECKING:
    from types import FrameType

cluster = typer.Typer(no_args_is_help=True, help="Replicas of a guarded server on Ray Serve.")

_HERE = "auto"
_SPARE_S = 60.0
_NAME = StartSettings.model_fields["name"].default
Address = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The Ray cluster; auto: the one of this machine.")
]
Name = Annotated[str, typer.Option(help="The deployment's name.")]
Within = Annotated[float, typer.Option(min=0.1, help="Seconds for all to go over.")]


@cluster.command("start")
@with_options
def start(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    settings: StartSettings,
    server: Annotated[ServerSettings, SERVED],
    load: LoadingOptions,
    vllm: VllmWords = None,
    debug: o.Debug = False,
) -> None:
    """Start replicas and answer until SIGTERM or Ctrl-C, then end what is under way."""
    with session(debug=debug):
        _import_ray()
        how = engine_options(settings.engine, load, vllm or [])["options"]
        _answer(settings.model_copy(update={"server": server, "loading": how}))


def _answer(settings: StartSettings) -> None:
    """Serve until a signal comes; a second one ends the process as usual."""
    from guardrail.cluster import start as deploy
    from guardrail.cluster import stop as end
    from guardrail.cluster.local import connected

    asked_to_end = threading.Event()
    with connected(settings) as address:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: _first_signal(asked_to_end, number, frame))
        try:
            say(f"the Ray cluster is at {address}; replicas are starting")
            deploy(settings)
            say(f"{settings.replicas} replicas answer at http://{settings.host}:{settings.port}/v1")
            asked_to_end.wait()
            _end_within(settings.server.drain_s + _SPARE_S)
            say("no more requests are taken; answers under way end")
        finally:
            end(settings.name)


def _end_within(seconds: float) -> None:
    """Give up after a time: where Ray's own processes were ended, too, nothing ever answers."""
    timer = threading.Timer(seconds, os._exit, (ERROR,))
    timer.daemon = True
    timer.start()


def _first_signal(asked: threading.Event, number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    asked.set()


@cluster.command("update")
def update(
    artefact: o.ArtefactName,
    address: Address = _HERE,
    name: Name = _NAME,
    within: Within = 300.0,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Roll another artefact out; returns when all replicas answer under it.

    The file is at the same place on every machine, this one included. If a replica cannot use it,
    all stay as they are. Requests are answered meanwhile, each under one of the two.
    """
    with session(debug=debug) as stdout:
        with _linked(address):
            from guardrail.cluster import update as bring

            told = bring(artefact, name=name, within_s=within).model_dump()
        if as_json:
            write_json(stdout, told)
        else:
            write_rows(stdout, [(key, str(value)) for key, value in told.items()])


@cluster.command("status")
def status(
    address: Address = _HERE,
    name: Name = _NAME,
    snapshot: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Save all replicas' counts, for `guardrail monitor`."),
    ] = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """What Ray says of the deployment, each replica's artefact, and how many verdicts they gave."""
    with session(debug=debug) as stdout:
        with _linked(address):
            from guardrail.cluster import status as ask

            told = ask(name)

        from guardrail.monitor import MonitorSnapshot

        counts = told["monitor"] and MonitorSnapshot.model_validate(told["monitor"])
        if snapshot is not None:
            if counts is None:
                raise ClusterError("no replica answers, so there are no counts to save")
            counts.save(snapshot)
        if as_json:
            write_json(stdout, told)
            return
        rows = [(key, str(told[key])) for key in ("status", "message", "artefact_id", "source")]
        rows += [(f"replica {key}", str(value)) for key, value in told["replicas"].items()]
        write_rows(stdout, [*rows, ("verdicts", str(counts.n if counts else 0))])


@cluster.command("stop")
def stop(address: Address = _HERE, name: Name = _NAME, debug: o.Debug = False) -> None:
    """Take no more requests, let those under way end, and end the replicas."""
    with session(debug=debug), _linked(address):
        from guardrail.cluster import stop as end

        end(name)


def _import_ray() -> None:
    """Have Ray ask for its token, and send it; Ray reads this when it is imported.

    Raises:
        MissingExtraError: the extra `ray` is not installed.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    require("ray")


@contextmanager
def _linked(address: str) -> Iterator[None]:
    _import_ray()
    from guardrail.cluster.local import linked

    with linked(address):
        yield
