"""`guardrail cluster`: the guarded model behind HTTP, on several replicas, with Ray Serve."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.derived import Derived, with_options
from guardrail.cli.output import ERROR, say, session, write_json, write_rows
from guardrail.cli.serve_options import ENV, SERVED, KeyOptions
from guardrail.cluster.settings import ClusterSettings
from guardrail.extras import require
from guardrail.model.source import LoadingOptions
from guardrail.server.keys import read_keys
from guardrail.server.settings import Listening, ServerSettings

if TYPE_CHECKING:
    from types import FrameType
    from typing import Any

cluster = typer.Typer(
    no_args_is_help=True, help="Replicas of a guarded server on Ray Serve, under one artefact."
)

_HERE = "auto"
_SPARE_S = 60.0
_NAME = ClusterSettings.model_fields["name"].default
_AT = Derived(env=ENV, only=frozenset({"host", "port"}))
Address = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="The Ray cluster; auto: the one of this machine."),
]
Name = Annotated[str, typer.Option(help="The deployment's name.")]
Prepare = Annotated[float, typer.Option(min=0.1, help="Seconds for all to load the artefact.")]
Pause = Annotated[
    float, typer.Option(min=0.1, help="Seconds for which new requests may have to wait.")
]


@cluster.command("start")
@with_options
def start(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    settings: ClusterSettings,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A Ray cluster; default: a new one, on loopback."),
    ] = None,
    access: Annotated[KeyOptions, SERVED],
    server: Annotated[ServerSettings, SERVED],
    listening: Annotated[Listening, _AT],
    load: LoadingOptions,
    debug: o.Debug = False,
) -> None:
    """Start replicas and answer until SIGTERM or Ctrl-C, then end what is under way."""
    with session(debug=debug):
        _import_ray()
        from guardrail.cluster.deploy import whole_path

        insecure = access.insecure_no_keys
        kept = server.kept_to(read_keys(access.api_keys), listening.host, insecure=insecure)
        given = {
            "model": whole_path(model),
            "artefact": artefact,
            "audit": settings.audit and settings.audit.absolute(),
            "server": kept,
            "loading": dict(load),
        }
        _answer(
            settings.model_copy(update=given),
            host=listening.host,
            port=listening.port,
            address=address,
            insecure=insecure,
        )


def _answer(settings: Any, **where: Any) -> None:
    """Serve until a signal comes; a second one ends the process as usual."""
    from guardrail.cluster import start as deploy
    from guardrail.cluster import stop as end
    from guardrail.cluster.deploy import plan_of
    from guardrail.cluster.local import connected, ray_address

    asked_to_end = threading.Event()
    with connected(plan_of(settings), **where):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: _first_signal(asked_to_end, number, frame))
        try:
            say(f"the Ray cluster is at {ray_address()}; replicas are starting")
            deploy(settings)
            say(f"{settings.replicas} replicas answer at http://{where['host']}:{where['port']}/v1")
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
    prepare: Prepare = 60.0,
    pause: Pause = 10.0,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Bring all replicas to another artefact at once, or, where one cannot, none.

    The file is at the same place on every machine, this one included.
    """
    with session(debug=debug) as stdout:
        _import_ray()
        from guardrail.cluster import update as bring

        with _linked(address):
            outcome = bring(artefact, name=name, prepare_s=prepare, pause_s=pause)
        told = {"artefact_id": outcome.agreed.artefact_id, "epoch": outcome.agreed.epoch}
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
    """Which artefact is agreed on, which replicas answer, and how many verdicts they gave."""
    with session(debug=debug) as stdout:
        _import_ray()
        from guardrail.cluster import status as ask
        from guardrail.errors import ClusterError
        from guardrail.monitor import MonitorSnapshot

        with _linked(address):
            told = ask(name)
        counts = told["monitor"] and MonitorSnapshot.model_validate(told["monitor"])
        if snapshot is not None:
            if counts is None:
                raise ClusterError("no replica answers, so there are no counts to save")
            counts.save(snapshot)
        if as_json:
            write_json(stdout, told)
            return
        rows = [(key, str(told[key])) for key in ("artefact_id", "source", "phase")]
        rows += [(f"replica {key}", str(value)) for key, value in told["replicas"].items()]
        write_rows(stdout, [*rows, ("verdicts", str(counts.n if counts else 0))])


@cluster.command("stop")
def stop(address: Address = _HERE, name: Name = _NAME, debug: o.Debug = False) -> None:
    """Take no more requests, let those under way end, and end the replicas."""
    with session(debug=debug):
        _import_ray()
        from guardrail.cluster import stop as end

        with _linked(address):
            end(name)


def _import_ray() -> None:
    """Have Ray ask for its token, and send it; Ray reads this when it is imported.

    Raises:
        MissingExtraError: the extra `ray` is not installed.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    require("ray")


def _linked(address: str) -> Any:
    from guardrail.cluster.local import linked

    return linked(address)
