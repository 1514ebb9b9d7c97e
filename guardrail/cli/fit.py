"""`guardrail fit`: find a model's refusal direction and write an artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.info import show_artefact
from guardrail.cli.inputs import ready_to_write
from guardrail.cli.output import progress, session
from guardrail.model.source import LoadingOptions


def fit(
    *,
    model: o.ModelName,
    out: o.Out,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Contrast prompts of your own (JSONL), beside the packaged ones.",
        ),
    ] = None,
    replace_data: Annotated[
        bool, typer.Option("--replace-data", help="Use --data instead of the packaged prompts.")
    ] = False,
    steer_rate: o.SteerRate = 0.05,
    flag_rate: o.FlagRate = 0.01,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one forward pass.")] = 16,
    per_kind: Annotated[
        int, typer.Option(min=0, help="Prompts of each kind to fit on; 0 reads all.")
    ] = 64,
    video: Annotated[
        bool | None,
        typer.Option(
            "--video/--no-video",
            help="Measure what a video adds: 8 clips of a window. Default: if the model takes it.",
        ),
    ] = None,
    videos: Annotated[
        int, typer.Option(min=0, help="Calibrate videos on so many drawn ones, a window each.")
    ] = 0,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Read what the model says, too: it answers 290 short prompts for it.",
        ),
    ] = False,
    answer_rate: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Target share of benign answers that are cut, with --answers."
        ),
    ] = 0.01,
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", file_okay=False, help="Keep finished stages; resumes a fit."),
    ] = None,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Find MODEL's refusal direction in text and write it to OUT."""
    if replace_data and data is None:
        raise typer.BadParameter("--replace-data needs --data: what should replace the prompts?")
    with session(debug=debug) as stdout:
        ready_to_write(out)

        from guardrail.fit.run import fit as run_fit
        from guardrail.model.load import load_model

        loaded = load_model(model, **dict(loading))
        with progress() as report:
            artefact = run_fit(
                loaded,
                data=data,
                extend=not replace_data,
                steer_rate=steer_rate,
                flag_rate=flag_rate,
                batch_size=batch_size,
                per_kind=per_kind or None,
                video=video,
                videos=videos,
                work_dir=work_dir,
                progress=report,
            )
            if answers:
                from guardrail.fit.answers import with_answers

                artefact = with_answers(
                    artefact,
                    loaded,
                    data=data,
                    extend=not replace_data,
                    rate=answer_rate,
                    batch_size=batch_size,
                    work_dir=work_dir,
                    progress=report,
                )
        artefact.save(out)
        show_artefact(stdout, artefact, as_json=as_json, path=out)
