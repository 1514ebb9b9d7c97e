"""What the guard holds against somebody who wants through, on texts of DATA; see guardrail/attack.

python examples/benchmarks/attack_bench.py --model DIR --artefact FILE --data DIR --out DIR

With `--before FILE`, an earlier report of the same inputs stands beside it. Pixel noise cannot be
measured on the tiny VLM, whose pictures are read by a reader of letters; what it does to a random
LLaVA shows the mechanics, and nothing of a trained one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tables
import typer
from benchmark_data import test_texts

from guardrail import Artefact, Guard, Policy
from guardrail.attack.attacks import Budget, known
from guardrail.attack.making import Input, Settings
from guardrail.attack.placing import Drawn
from guardrail.attack.run import attack
from guardrail.attack.schema import PLAIN, AttackReport, AttackRow
from guardrail.cli.output import progress
from guardrail.inputs.messages import to_request
from guardrail.model.load import load_model
from guardrail.stats import Share
from guardrail.testing import tiny_artefact, tiny_model

BEHIND = ("random words behind", "greedy words behind", "GCG behind")
SHOWN = ("last", "turns", "windows", "joint", "ensemble", "folded")
_HEADS = ("flagged or steered", "benign hit")
NOISY = 24  # requests that are drawn for the random LLaVA


def inputs(data: Path, per_label: int) -> dict[str, list[Input]]:
    """So many test texts of each label, short enough for the tiny VLM's picture slots."""
    found: dict[str, list[Input]] = {"harmful": [], "harmless": []}
    for row in test_texts(data, others=False):
        request = to_request(row["text"], policy=Policy())
        found[row["label"]].append(Input(row["id"], request))
    return {label: some[:per_label] for label, some in found.items()}


def measured(
    guard: Guard,
    both: dict[str, list[Input]],
    settings: Settings,
    out: Path,
    names: Sequence[str],
) -> AttackReport:
    """A report, with the searches behind the request aimed at the last position too."""

    def run(names: Sequence[str], rules: Settings, told: Any) -> AttackReport:
        return attack(
            guard,
            both["harmful"],
            both["harmless"],
            names=names,
            settings=rules,
            work_dir=out / "attack_work",
            progress=told,
        )

    with progress() as bars:
        whole = run([name for name in names if name != "pixel noise"], settings, bars)
        of_last = replace(settings, aims=("last",))
        more = run([name for name in BEHIND if name in names], of_last, bars)
    return whole.model_copy(update={"rows": (*whole.rows, *more.attacks)})


def noise(both: dict[str, list[Input]]) -> AttackRow:
    """Pixel noise on a random LLaVA, with a threshold just under what all pictures score."""
    model, processor = tiny_model("llava")
    fitted = tiny_artefact(model, processor, tau_steer=9, tau_flag=9)
    asked = [one.request for one in both["harmful"][:NOISY]]
    drawn = [request for request in Drawn()(asked, None, Budget(), 0) if request is not None]
    with Guard((model, processor), fitted) as guard:
        lowest = min(guard.check(request).score or 0.0 for request in drawn)
    level = {"steer": lowest - 1e-3, "flag": lowest + 1e3}
    policy = Policy(thresholds={"text": level, "image": level})
    pictures = [Input(str(number), request) for number, request in enumerate(drawn)]
    settings = Settings(questions=40, searched=NOISY, gradients=NOISY, answers=0)
    with Guard((model, processor), fitted, policy=policy) as guard:
        return attack(guard, pictures, names=["pixel noise"], settings=settings).attacks[0]


def table(report: AttackReport, before: AttackReport | None, pixels: AttackRow) -> Iterator[str]:
    """Markdown: every attack by what is still found, and by reading."""
    earlier = {} if before is None else {row.title: row for row in before.rows}
    # what plain letters add stands beside, or is what the later of two reports was made with
    beside = ["before", "now"] if before is not None else ["", "in plain letters, too"]

    def both(row: AttackRow, benign: bool) -> list[str]:
        now = row.benign_hit if benign else row.hit
        if before is None:
            return [_share(now), _share(row.checked_benign if benign else row.checked)]
        then = earlier.get(row.title)
        was = None if then is None else then.benign_hit if benign else then.hit
        return [_share(was), _share(now)]

    rows = []
    for row in report.rows:
        found = row.readings["joint"].found if "joint" in row.readings else {}
        rows.append(
            [
                row.title,
                str(row.n),
                *both(row, False),
                _share(row.lost),
                _share(found.get("0.01")),
                _share(found.get("0.05")),
                *both(row, True),
                _share(row.complied),
                _share(row.through),
            ]
        )
    heads = (f"{what}, {when}".removesuffix(", ") for what in _HEADS for when in beside)
    first, second, third, fourth = heads
    yield from tables.markdown(
        [
            *("attack", "n", first, second, "lost", "at 1 % FPR", "at 5 % FPR", third, fourth),
            *("complied, plain", "complied and passed"),
        ],
        rows,
    )
    yield ""
    yield "By reading: harmful (benign) inputs above what 5 % of the latter exceed as they are:"
    yield ""
    yield from tables.markdown(
        ["attack", *SHOWN],
        [[row.title, *(_standing(row, name) for name in SHOWN)] for row in report.rows if row.n],
    )
    yield ""
    yield from _told(report, before, pixels)


def _told(report: AttackReport, before: AttackReport | None, pixels: AttackRow) -> Iterator[str]:
    for row in report.rows:
        if row.name in BEHIND and row.aim == "joint" and row.fall is not None:
            points = ", ".join(f"{p.hit.rate:.2f} at {p.questions}" for p in row.budgets)
            fell = f"no input's highest window fell by more than {max(row.fall, 0):.4f} text gaps"
            yield f"- {row.title}: {fell}; hit by questions: {points} (n = {row.n})."
    for row in report.rows:
        if row.budgets and row.name not in BEHIND:
            points = ", ".join(f"{p.hit.rate:.2f} at {p.questions}" for p in row.budgets)
            yield f"- {row.title}: hit by questions: {points} (n = {row.n})."
    for what, shares in _means(report, before):
        told = ", ".join(f"{when} {_mean(some):.3f}" for when, some in shares.items())
        yield f"- encodings and wrappers, {what} inputs flagged or steered, mean of {told}."
    yield (
        f"- pixel noise of 8 of 255 levels, a random LLaVA: {_share(pixels.lost)} of "
        f"{pixels.n} drawn requests lost; median {pixels.asked or 0:.0f} questions asked."
    )


def _means(
    report: AttackReport, before: AttackReport | None
) -> Iterator[tuple[str, dict[str, list[Share | None]]]]:
    """Shares of harmful and benign inputs under each of these attacks, by when or how."""
    kinds = ("encoding", "wrapper")
    now = [row for row in report.rows if row.family in kinds]
    then = [row for row in (() if before is None else before.rows) if row.family in kinds]
    if then:
        yield "harmful", {"before": [r.hit for r in then], "now": [r.hit for r in now]}
        yield "benign", {"before": [r.benign_hit for r in then], "now": [r.benign_hit for r in now]}
    else:
        plain = "in plain letters, too:"
        yield "harmful", {"all:": [r.hit for r in now], plain: [r.checked for r in now]}
        yield (
            "benign",
            {"all:": [r.benign_hit for r in now], plain: [r.checked_benign for r in now]},
        )


def _mean(found: Sequence[Share | None]) -> float:
    return statistics.mean([share.rate for share in found if share is not None] or [math.nan])


def _share(found: Share | None) -> str:
    return "-" if found is None else f"{found.rate:.2f} ({found.low:.2f}-{found.high:.2f})"


def _standing(row: AttackRow, name: str) -> str:
    """What a reading finds, and of benign inputs under the same transformation."""
    reading = row.readings.get(name)
    if reading is None or "0.05" not in reading.found:
        return "-"
    mark = {"defeated": " **defeated**", "weakened": " weakened"}.get(reading.standing, "")
    benign = reading.benign.get("0.05")
    beside = "" if benign is None else f" ({benign.rate:.2f})"
    return f"{reading.found['0.05'].rate:.2f}{beside}{'' if row.name == PLAIN else mark}"


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    artefact: Annotated[Path, typer.Option(help="what was fitted on it")],
    data: Annotated[Path, typer.Option(help="a folder with text/")],
    out: Annotated[Path, typer.Option(help="where the figures go")],
    per_label: Annotated[int, typer.Option(min=4, help="inputs of each label")] = 40,
    searched: Annotated[int, typer.Option(min=1, help="inputs that are searched for")] = 8,
    gradients: Annotated[int, typer.Option(min=1, help="inputs for gradients")] = 4,
    questions: Annotated[int, typer.Option(min=1, help="questions about each of them")] = 200,
    answers: Annotated[int, typer.Option(min=0, help="answers without a guard, an attack")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="only these attacks")] = None,
    name: Annotated[str, typer.Option(help="of the report in the folder")] = "attack",
    fold_answers: Annotated[bool, typer.Option(help="the policy of that name")] = False,
    before: Annotated[Path | None, typer.Option(help="an earlier report")] = None,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
) -> None:
    """Measure, and write what was measured."""
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        questions=questions, seconds=600, searched=searched, gradients=gradients, answers=answers
    )
    both, rules = inputs(data, per_label), Policy(mode="shadow", fold_answers=fold_answers)
    loaded = load_model(str(model), trust_remote_code=True)
    with Guard(loaded, Artefact.load(artefact), policy=rules) as guard:
        report = measured(guard, both, settings, out, only or list(known()))
    (out / f"{name}.json").write_text(report.model_dump_json(indent=1) + "\n", "utf-8")
    pixels = noise(both)
    (out / f"{name}_pixels.json").write_text(json.dumps(pixels.model_dump(mode="json")), "utf-8")
    then = None if before is None else AttackReport.from_json(before.read_bytes())
    lines = list(table(report, then, pixels))
    (out / f"{name}.md").write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")
    if readme is not None:
        tables.put(readme, "attack", lines)


if __name__ == "__main__":
    typer.run(main)
