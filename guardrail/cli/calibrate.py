"""`guardrail calibrate`: thresholds from your own benign traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.info import show_artefact, show_thresholds
from guardrail.cli.inputs import open_guard, read_artefact, ready_to_write
from guardrail.cli.output import progress, say, session
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.fit.traffic import Placed


def calibrate(
    *,
    artefact: Annotated[
        str, typer.Argument(metavar="ARTEFACT", help="The artefact to start from.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=o.MODEL_HELP)],
    benign: Annotated[
        Path,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Benign requests, one JSON a line."
        ),
    ],
    out: o.Out,
    steer_rate: o.SteerRate = 0.05,
    flag_rate: o.FlagRate = 0.01,
    keep: Annotated[
        int, typer.Option(min=1, help="Scores kept of each modality; more are sampled from.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the sample, where one is drawn.")] = 0,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out what cannot be scored, up to 1 %.")
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers",
            help="Set the threshold of answers instead, on what the model answers to them.",
        ),
    ] = False,
    answer_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Target share of answers that are cut, with --answers."),
    ] = 0.01,
    answer_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of an answer, with --answers.")
    ] = 256,
    guarding: o.GuardOptions,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Set ARTEFACT's thresholds on your own benign requests and write a new artefact."""
    with session(debug=debug) as stdout:
        ready_to_write(out)
        total = count_benign(benign)  # a line that cannot be used ends this before a model loads
        say(f"{total} requests in {benign}")
        fitted, rules = read_artefact(artefact), guarding.rules()

        from guardrail.fit.calibrate import calibrate as run_calibrate

        with open_guard(model, fitted, rules, guarding, loading) as guard, progress() as report:
            requests = _requests(benign, total, report)
            if answers:
                from guardrail.fit.answers import calibrate_answers

                made = calibrate_answers(guard, requests, rate=answer_rate, tokens=answer_tokens)
            else:
                made = run_calibrate(
                    guard,
                    requests,
                    steer_rate=steer_rate,
                    flag_rate=flag_rate,
                    keep=keep,
                    seed=seed,
                    skip_errors=skip_errors,
                )
        made.save(out)
        show_artefact(stdout, made, as_json=as_json, path=out)
        if not as_json:
            show_thresholds(stdout, made, before=fitted)


def _requests(path: Path, total: int, report: Callable[[str, int, int], None]) -> Iterator[Placed]:
    """The file's requests with their places; lines added since they were counted are left out."""
    from guardrail.fit.traffic import Placed

    for done, (where, request) in enumerate(islice(benign_lines(path), total), start=1):
        yield Placed(where, request)
        report("requests read", done, total)


def benign_lines(path: Path) -> Iterator[tuple[str, object]]:
    """The requests of a JSONL file, in order, each with its place for errors to name.

    Lines are rows as `guardrail.inputs.rows` reads them; a `label` must not say that the line is
    something else than benign.

    Raises:
        DatasetError: a line that is none of these; the message names it.
    """
    from guardrail.inputs.rows import LABELS, Row, read_rows

    for number, row in read_rows(path, Row):
        where = f"{path}, line {number}"
        label = row.label
        is_benign = isinstance(label, str) and LABELS.get(label.lower()) == "harmless"
        if label is not None and not is_benign:
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
        yield where, row.request(path.parent)


def count_benign(path: Path) -> int:
    """How many requests a JSONL file holds; every line and every file it names is checked.

    Nothing is kept, so the file may be of any size.

    Raises:
        ConfigurationError: a pipe or device, which cannot be read twice.
        DatasetError: a line that is no benign request, or a picture or video that is not there.
    """
    from guardrail.inputs.messages import Chat
    from guardrail.inputs.rows import missing_file

    if not path.is_file():
        raise ConfigurationError(f"{path} is no regular file and is read twice; save it first")
    count = 0
    for where, request in benign_lines(path):
        chat = request.messages if isinstance(request, Chat) else request
        if isinstance(chat, list) and (missing := missing_file(chat)):
            raise DatasetError(f"{where}: {missing}")
        count += 1
    return count
