"""What an artefact says about itself, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from guardrail.cli.output import say, write_json, write_rows
from guardrail.cli.thresholds import earlier_rows
from guardrail.errors import CalibrationError
from guardrail.types import Modality

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Header, Readout, Steering


def facts(header: Header) -> dict[str, Any]:
    """The header as plain values, without the scores of single prompts."""
    scores: Any = {"calibration": {"__all__": {"scores"}}, "extra": {"reference"}}
    return header.model_dump(mode="json", exclude=scores)


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


def _rows(header: Header) -> list[tuple[str, str]]:
    model, readout, steering = header.fingerprint, header.readout, header.steering
    many = "s" if len(readout.layers) > 1 else ""
    rows = [
        ("artefact", f"{header.artefact_id} of {header.created}"),
        ("model", f"{model.architecture}, {model.dtype}"),
        ("detection", f"{readout.estimator}, layer{many} {', '.join(map(str, readout.layers))}"),
        ("steering", "none: only detects" if steering is None else _steering(steering, readout)),
    ]
    # nested figures are for programs: they stand in the JSON
    plain = {k: v for k, v in readout.figures.items() if isinstance(v, float | int | str)}
    rows += [(name, _figure(value)) for name, value in plain.items() if name != "estimator"]
    rows += [
        (f"offset {kind}", f"{o.size:.3f} (spread {max(o.spread_colours, o.spread_prompts):.3f})")
        for kind, o in header.offsets.items()
    ]
    rows += [(modality, _thresholds(found)) for modality, found in header.calibration.items()]
    rows += earlier_rows(header)
    return rows + ([("parent", header.parent)] if header.parent else [])


def _steering(steering: Steering, readout: Readout) -> str:
    shares = {
        # Of different prompts under different conditions: not to be compared with each other.
        "induced refusal (of harmful held-out prompts, all steered)": steering.induced_refusal,
        "false refusal (of all benign prompts, behind the gate)": steering.false_refusal,
    }
    known = [f"{name}: {rate}" for name, rate in shares.items() if rate is not None]
    at, read = steering.layer, readout.layers[-1]
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
