"""`guardrail info`, and what an artefact says of itself, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from guardrail.cli import options as o
from guardrail.cli.inputs import read_artefact
from guardrail.cli.output import say, session, write_json, write_rows
from guardrail.errors import CalibrationError
from guardrail.model.source import LoadingOptions
from guardrail.types import Modality

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Header, Steering
    from guardrail.types import Modality

_COLUMNS = ("inputs", "action", "before", "now", "target", "true rate (95 %)", "n")


def info(
    *,
    name: Annotated[
        str, typer.Argument(metavar="ARTEFACT|MODEL", help="An artefact's file, or a model.")
    ],
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Describe an artefact (a .safetensors file or its folder) or a model (a folder or hub id)."""
    with session(debug=debug) as stdout:
        if _is_artefact(name):
            show_artefact(stdout, read_artefact(name), as_json=as_json)
            return
        known = _model_facts(name, loading)
        if as_json:
            write_json(stdout, known)
        else:
            write_rows(stdout, [(key, str(value)) for key, value in known.items()])


def _is_artefact(name: str) -> bool:
    path = Path(name)
    holds_no_model = path.is_dir() and not (path / "config.json").exists()
    return path.is_file() or path.suffix == ".safetensors" or holds_no_model


def _model_facts(name: str, loading: LoadingOptions) -> dict[str, object]:
    from guardrail.model.decoder import decoder_layers
    from guardrail.model.fingerprint import fingerprint
    from guardrail.model.load import load_model

    loaded = load_model(name, **dict(loading))
    decoder_layers(loaded.model)  # a model a guard cannot work inside says so here
    return {
        "source": loaded.source,
        "layers": loaded.layer_count,
        "d_model": loaded.d_model,
        "pictures": loaded.is_multimodal,
        "device": str(loaded.device),
        "fingerprint": fingerprint(loaded).model_dump(mode="json"),
    }


def show_artefact(
    stdout: TextIO, artefact: Artefact, *, as_json: bool, path: Path | None = None
) -> None:
    """Print an artefact's facts, and where it was written; its warnings go to stderr, too."""
    header = artefact.header
    for warning in header.warnings:
        say(f"warning: {warning}", style="yellow")
    if as_json:
        write_json(stdout, ({} if path is None else {"path": str(path)}) | facts(header))
        return
    written = [] if path is None else [("written to", str(path))]
    write_rows(stdout, [*written, *_rows(header), ("videos", _videos(artefact))])


def facts(header: Header) -> dict[str, Any]:
    """The header as plain values, without the scores of single prompts."""
    scores: Any = {
        "answers": {"scores"},
        "calibration": {"__all__": {"scores"}},
        "extra": {"reference"},
    }
    return header.model_dump(mode="json", exclude=scores)


def _rows(header: Header) -> list[tuple[str, str]]:
    model, readout, steering = header.fingerprint, header.readout, header.steering
    many = "s" if len(readout.layers) > 1 else ""
    rows = [
        ("artefact", f"{header.artefact_id} of {header.created}"),
        ("model", f"{model.architecture}, {model.dtype}"),
        ("detection", f"{readout.estimator}, layer{many} {', '.join(map(str, readout.layers))}"),
        ("steering", "none: only detects" if steering is None else _steering(steering, header)),
    ]
    # nested figures are for programs: they stand in the JSON
    plain = {k: v for k, v in readout.figures.items() if isinstance(v, float | int | str)}
    rows += [(name, _figure(value)) for name, value in plain.items() if name != "estimator"]
    if (windows := header.windows) is not None:
        layers = ", ".join(map(str, windows.layers))
        rows.append(("windows", f"up to {windows.width} tokens, layers {layers}"))
    if (answers := header.answers) is not None:
        rows.append(
            (
                "answers",
                f"flag at {answers.threshold:.3f} (target {answers.target:.1%}), "
                f"n = {len(answers.scores)}, up to {answers.tokens} tokens, {answers.source}",
            )
        )
    rows += [
        (
            f"beside {kind}",
            f"safe {row.safe:+.2f}, unsafe {row.unsafe:+.2f}, slope {row.slope:.2f} (n = {row.n})",
        )
        for kind, row in header.recentring.items()
    ]
    rows += [(modality, _thresholds(found)) for modality, found in header.calibration.items()]
    rows += earlier_rows(header)
    return rows + ([("parent", header.parent)] if header.parent else [])


def _steering(steering: Steering, header: Header) -> str:
    shares = {
        # Of different prompts under different conditions: not to be compared with each other.
        "induced refusal (of harmful held-out prompts, all steered)": steering.induced_refusal,
        "false refusal (of all benign prompts, behind the gate)": steering.false_refusal,
    }
    known = [f"{name}: {rate}" for name, rate in shares.items() if rate is not None]
    windows = () if header.windows is None else header.windows.layers
    at, read = steering.layer, max((*header.readout.layers, *windows))
    if at < read:  # decided too late for the first run
        again = f"layer {read} runs" if read == at + 1 else f"layers {at + 1} to {read} run"
        known.append(f"before the readout: for a steered request {again} twice")
    return "; ".join([f"layer {at}, gain {steering.gain:.3f}", *known])


def _videos(artefact: Artefact) -> str:
    """Whether videos can be scored, and whose thresholds they are held to."""
    if not artefact.reads_videos:
        return "cannot be scored: fitted without them"
    try:
        whose, _ = artefact.calibration_for(Modality.VIDEO)
    except CalibrationError:
        return "scored, but there are no thresholds for them"
    own = "thresholds of their own" if whose is Modality.VIDEO else f"the thresholds of {whose}"
    return f"scored, held to {own}"


def _thresholds(found: Calibration) -> str:
    levels, targets = found.thresholds, found.targets
    return (
        f"steer at {levels.steer:.3f} (target {targets.steer:.1%}), "
        f"flag at {levels.flag:.3f} (target {targets.flag:.1%}), "
        f"n = {found.n}, {found.source}"
    )


def _figure(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def earlier_rows(header: Header) -> list[tuple[str, str]]:
    """The thresholds that a calibration replaced, by modality."""
    match header.extra.get("calibrated_from"):
        case {"calibration": dict(rows)}:
            now = {name.value: _kept(row) for name, row in header.calibration.items()}
            told = {name: _told(row) for name, row in rows.items() if row != now.get(name)}
            return [(f"{name} before", text) for name, text in told.items() if text]
    return []


def _kept(row: Calibration) -> object:
    """A calibration as a later artefact remembers it."""
    return row.model_dump(mode="json", include={"thresholds", "targets", "source", "n"})


def _told(row: object) -> str:
    match row:
        case {
            "thresholds": {"steer": float(steer), "flag": float(flag)},
            "targets": {"steer": float(steered), "flag": float(flagged)},
            "source": str(source),
            "n": int(n),
        }:
            return (
                f"steer at {steer:.3f} (target {steered:.1%}), "
                f"flag at {flag:.3f} (target {flagged:.1%}), n = {n}, {source}"
            )
    return ""


def show_thresholds(stdout: TextIO, made: Artefact, *, before: Artefact) -> None:
    """A table of both artefacts' thresholds, and what rates the new ones may really have."""
    table = Table(*_COLUMNS, box=None, padding=(0, 2, 0, 0))
    for modality, now in made.header.calibration.items():
        old = before.header.calibration.get(modality)
        count = _count(made.header, modality)
        for action in ("steer", "flag"):
            table.add_row(modality, action, *_cells(action, now, old), count)
    Console(file=stdout, soft_wrap=True, highlight=False, markup=False).print(table)


def _cells(action: str, now: Calibration, old: Calibration | None) -> tuple[str, ...]:
    low, high = now.intervals.get(action, (None, None))
    return (
        "none" if old is None else f"{getattr(old.thresholds, action):.3f}",
        f"{getattr(now.thresholds, action):.3f}",
        f"{getattr(now.targets, action):.1%}",
        "" if low is None else f"{low:.2%} to {high:.2%}",
    )


def _count(header: Header, modality: Modality) -> str:
    """How many scores there are, and of how many where they are a sample."""
    n = header.calibration[modality].n
    match header.extra.get("calibration"):
        case {modality.value: {"seen": int(seen)}} if seen > n:
            return f"{n} of {seen}"
    return str(n)
