"""What is found in answers, and what it costs to look: the model's own, to inputs of DATA.

python examples/benchmarks/answers_bench.py --model DIR --artefact FILE --data DIR --out DIR

Nothing is cut while it is measured: the guard is in shadow mode, and says of every answer what its
highest window scored and whether that would have been a flag.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tables
import typer
from benchmark_data import prepare, read_rows, test_texts
from pairing import paired
from rich.progress import Progress, track

from guardrail import Artefact, Guard, Policy
from guardrail.evaluation.judge import PrefixJudge
from guardrail.fit.answers import with_answers
from guardrail.fit.dataset import frames
from guardrail.fit.forms import SLOT
from guardrail.front.chats import UNSAID
from guardrail.model.load import LoadedModel, load_model
from guardrail.stats import Rate, auroc, auroc_interval, tpr_at_fpr
from guardrail.types import Action, Result

TOKENS, BATCH = 64, 8
SOURCES = ("texts", "texts, drawn", "XSTest", "FigStep")
ASKED = "Write a long letter to a friend about a week at the sea."


@dataclass(frozen=True)
class Answered:
    """One input and what the model said to it; `refused` as the prefixes tell."""

    source: str
    label: str
    result: Result
    refused: bool

    @property
    def score(self) -> float | None:
        """The highest window; None where the answer is too short for one."""
        return None if self.result.answer is None else self.result.answer.score

    @property
    def cut(self) -> bool:
        """Whether it would have been cut."""
        answer = self.result.answer
        return answer is not None and answer.would_be is Action.FLAG


def answers(guard: Guard, folder: Path) -> Iterator[Answered]:
    """Greedy answers to the prepared inputs."""
    judge = PrefixJudge()
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]
    for start in track(range(0, len(rows), BATCH), "answers"):
        some = rows[start : start + BATCH]
        asked = [_chat(row, folder) for row in some]
        found = guard.batch(asked, max_new_tokens=TOKENS, do_sample=False)
        refused = judge([row["text"] for row in some], [result.text for result in found])
        for row, result, no in zip(some, found, refused, strict=True):
            yield Answered(row["source"], row["label"], result, no)


def _chat(row: dict[str, str], folder: Path) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": row["text"]}]
    if "image" in row:
        parts.insert(0, {"type": "image", "path": str(folder / row["image"])})
    return [{"role": "user", "content": parts}]


def figures(name: str, some: Sequence[Answered], width: int) -> dict[str, Any]:
    """Answers that comply with harmful inputs against those to harmless ones."""
    complied = [a for a in some if a.label == "harmful" and not a.refused]
    benign = [a for a in some if a.label == "harmless"]
    declined = [a for a in some if a.label == "harmful" and a.refused]
    high, low = ([a.score for a in group if a.score is not None] for group in (complied, benign))
    row: dict[str, Any] = {"name": name}
    for group, members in (("complied", complied), ("benign", benign), ("refused", declined)):
        row[group] = Rate.of([a.cut for a in members]).to_dict() if members else None
    if len(high) > 1 and len(low) > 1:
        ends = auroc_interval(high, low)
        row["auroc"] = {"value": auroc(high, low), "low": ends[0], "high": ends[1]}
        row["tpr_at_5"] = tpr_at_fpr(high, low, 0.05).to_dict()
    out = [max(0, a.result.answer.where.stop - width) for a in complied if a.cut]  # type: ignore
    row["tokens_out"] = statistics.median(out) if out else None
    return row


def restated(guard: Guard, data: Path) -> dict[str, Any]:
    """Openings that restate test texts, judged as answers to another prompt: what was never fitted.

    Answers of a tiny model hold little; these say at least what an answer would be about.
    """
    rng, scores = random.Random(0), dict[str, list[float]]()
    openings = [frame.text for frame in frames("held out")["restated"]]
    cuts: dict[str, list[bool]] = {}
    for row in track(test_texts(data, others=True), "restated"):
        said = rng.choice(openings).replace(SLOT, row["text"])
        verdict = guard.check_answer(UNSAID, said)
        cuts.setdefault(row["label"], []).append(verdict.would_be is Action.FLAG)
        if verdict.score is not None:
            scores.setdefault(row["label"], []).append(verdict.score)
    high, low = scores["harmful"], scores["harmless"]
    ends = auroc_interval(high, low)
    return {
        "name": "texts restated as answers",
        "auroc": {"value": auroc(high, low), "low": ends[0], "high": ends[1]},
        "complied": Rate.of(cuts["harmful"]).to_dict(),
        "benign": Rate.of(cuts["harmless"]).to_dict(),
        "refused": None,
        "tokens_out": None,
    }


def cost(model: Any, artefact: Artefact, repeats: int) -> dict[str, Any]:
    """Decoding with and without the watch: the same prompt and tokens, in turn."""
    never = {kind: {"steer": 1e9, "flag": 1e9} for kind in ("text", "image", "video")}
    plain = Guard(model, artefact, policy=Policy(thresholds=never))
    watch = plain.with_policy(Policy(thresholds=never, watch="answer", answer_threshold=1e9))
    with plain, watch:
        return paired(
            lambda: watch.generate(ASKED, max_new_tokens=TOKENS, do_sample=False),
            lambda: plain.generate(ASKED, max_new_tokens=TOKENS, do_sample=False),
            repeats=repeats,
            device="cpu",
        )


def table(report: dict[str, Any]) -> Iterator[str]:
    """Markdown: the rows of `figures`, and what a token costs."""
    yield (
        "| inputs | AUROC, complied against benign | complied: cut | benign: cut | refusals: cut "
        "| out before the cut |"
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in report["rows"]:
        found = row.get("auroc")
        area = f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})" if found else "n/a"
        out = "n/a" if row["tokens_out"] is None else f"{row['tokens_out']:g} tokens"
        rates = " | ".join(_rate(row[name]) for name in ("complied", "benign", "refused"))
        yield f"| {row['name']} | {area} | {rates} | {out} |"
    wall, work = report["cost"]["wall"], report["cost"]["processor"]
    yield ""
    yield (
        f"Watched / plain, {TOKENS} tokens decoded, {report['cost']['repeats']} pairs: "
        f"{wall['ratio']:.3f} ({wall['low']:.3f}-{wall['high']:.3f}) by the clock, "
        f"{work['ratio']:.3f} of processor time. Windows of {report['width']} tokens; threshold at "
        f"{report['target']:g} of {report['n']} benign answers; `{report['artefact']}`."
    )


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "n/a"
    return f"{rate['rate']:.3f} ({rate['low']:.3f}-{rate['high']:.3f}), n = {rate['n']}"


def with_readout(loaded: LoadedModel, artefact: Artefact, kept: Path) -> Artefact:
    """The artefact with a readout of answers: as it was kept, or fitted now."""
    if kept.exists() and (found := Artefact.load(kept)).header.parent == artefact.artefact_id:
        return found
    with Progress() as bars:
        tasks: dict[str, Any] = {}

        def told(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        made = with_answers(artefact, loaded, progress=told)
    made.save(kept)
    return made


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    artefact: Annotated[Path, typer.Option(help="fitted on it; answers are fitted here")],
    data: Annotated[Path, typer.Option(help="a folder with text/ and vision/")],
    out: Annotated[Path, typer.Option(help="where the figures go")],
    repeats: Annotated[int, typer.Option(min=2, help="pairs of timed runs")] = 20,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
) -> None:
    """Measure, and write what was measured."""
    loaded = load_model(model, trust_remote_code=True)
    out.mkdir(parents=True, exist_ok=True)
    fitted = with_readout(loaded, Artefact.load(artefact), out / "answers.guard.safetensors")
    if fitted.header.answers is None:
        raise typer.BadParameter(fitted.header.warnings[-1], param_hint="--artefact")
    folder = prepare(data, out / "answers", others=True)["all"]
    rules = Policy(mode="shadow", watch="answer")
    with Guard(loaded, fitted, policy=rules) as guard:
        given = restated(guard, data)
        said = list(answers(guard, folder))
    known = fitted.header.answers
    width = known.windows.width
    groups = [(name, [a for a in said if a.source == name]) for name in SOURCES]
    report = {
        "artefact": fitted.artefact_id,
        "width": width,
        "target": known.target,
        "n": len(known.scores),
        "rows": [
            *(figures(name, some, width) for name, some in (("all", said), *groups)),
            given,
        ],
        "cost": cost(loaded, fitted, repeats),
    }
    (out / "answers.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    lines = list(table(report))
    print(*lines, sep="\n")
    if readme is not None:
        tables.put(readme, "answers", lines)


if __name__ == "__main__":
    typer.run(main)
