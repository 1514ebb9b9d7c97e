"""`guardrail score`: verdicts for a folder, a JSONL file or Parquet of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.inputs import open_guard, read_artefact
from guardrail.cli.output import ERROR, FINDING, progress, say, session, write_json, write_rows
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.bulk import Summary

STOPPED = 130  # as shells say it of Ctrl-C


def score(
    *,
    model: o.ModelName,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            exists=True,
            help="A folder of pictures, videos and texts; a JSONL file; Parquet, a file or folder.",
        ),
    ],
    artefact: o.ArtefactName,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", file_okay=False, help="A folder for the verdicts."
        ),
    ],
    text_column: Annotated[
        str | None, typer.Option(help="The column of words, if not `text`.")
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Of pictures: bytes, paths, or structs of both.")
    ] = None,
    video_column: Annotated[str | None, typer.Option(help="Of videos, likewise.")] = None,
    messages_column: Annotated[
        str | None, typer.Option(help="Of whole chats: lists, or JSON.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Of ids; `id` if there is one.")] = None,
    ignore_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out a column that looks like a part; repeatable."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Asked beside pictures and videos without words.")
    ] = None,
    output: Annotated[
        Literal["parquet", "jsonl"], typer.Option("--format", help="Of the verdicts.")
    ] = "parquet",
    part_rows: Annotated[
        int, typer.Option(min=1, help="Rows in a file; as many are done again after a stop.")
    ] = 1000,
    shard: Annotated[
        str, typer.Option(metavar="N/M", help="This process's share of M; all may share DIR.")
    ] = "1/1",
    readers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read and decode.")
    ] = None,
    guarding: o.GuardOptions,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Write a verdict for every row of SOURCE to DIR; start again to go on after a stop.

    Exits with 1 when a row is flagged, with 2 when a row has no score (it is counted, and its
    error is in its place), with 130 when stopped by Ctrl-C.
    """
    with session(debug=debug) as stdout, _stoppable():
        from guardrail.bulk import Columns, Shard, prepare

        fitted, rules = read_artefact(artefact), guarding.rules()
        columns = Columns(
            text=text_column,
            image=image_column,
            video=video_column,
            messages=messages_column,
            id=id_column,
            ignored=tuple(ignore_column or ()),
        )
        job = prepare(
            source,
            out,
            artefact_id=fitted.artefact_id,
            policy=rules,
            columns=columns,
            prompt=prompt,
            output=output,
            part_rows=part_rows,
            shard=Shard.parse(shard),
        )
        if job.pending():
            with open_guard(model, fitted, rules, guarding, loading) as guard, progress() as report:
                job.run(guard, progress=report, readers=readers)
        summary = job.summary()
        _show(stdout, summary, out, as_json=as_json)
    raise typer.Exit(exit_code(summary))


def exit_code(summary: Summary) -> int:
    """2 when a row has no score, else 1 when one is or would be flagged, else 0."""
    if summary.unreadable or summary.failed:
        return ERROR
    return FINDING if summary.flagged else 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """Say what Ctrl-C leaves behind; its exit code must not be 1, which is a finding."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; start the same command again to go on", style="yellow")
        raise typer.Exit(STOPPED) from None


def _show(stdout: TextIO, summary: Summary, out: Path, *, as_json: bool) -> None:
    plain = summary.to_dict()
    if as_json:
        write_json(stdout, plain | {"out": str(out)})
        return
    rows = [("rows", f"{summary.rows:,} of {summary.of:,}"), ("scored", f"{summary.scored:,}")]
    for kind in sorted(summary.actions):
        counts, would_be = summary.actions[kind], summary.would_be[kind]
        shown = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts))
        if counts != would_be:
            would = ", ".join(f"{name} {would_be[name]:,}" for name in sorted(would_be))
            shown += f" (would be {would})"
        rows.append((kind, shown))
    rows += [("unreadable", f"{summary.unreadable:,}"), ("failed", f"{summary.failed:,}")]
    rows += [(f"  {name}", f"{count:,}") for name, count in sorted(summary.errors.items())]
    rows.append(("verdicts", f"{out}{'' if summary.complete else ' (other shards are left)'}"))
    write_rows(stdout, rows)
