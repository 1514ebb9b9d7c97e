"""Run every measurement on a data folder and write the tables.

python examples/benchmarks/benchmark.py --model FOLDER --out FOLDER --data FOLDER [--readme FILE]

The commands are those that users have: `guardrail evaluate`, `calibrate`, `monitor`. What costs
(`bench.py`) and what a changed checkpoint does (`drift_cases.py`) are measured, too. Residuals and
answers are kept in OUT/benchmark; with --resume, so are the reports that are there already.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import tables
import typer
from benchmark_data import SOURCES, prepare

from guardrail.model.load import load_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from demo import artefact_for

OWN_STEER_RATE, OWN_FLAG_RATE = 0.20, 0.10  # what thirty pictures of one's own can support


class Benchmark:
    """One model and the folder its measurements go to."""

    def __init__(self, model: Path, out: Path, *, resume: bool) -> None:
        self.model, self.out, self.resume = model, out / "benchmark", resume
        if not resume:
            shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True, exist_ok=True)
        loaded = load_model(model, trust_remote_code=True)
        self.artefact = out / "tiny_vlm.guard.safetensors"
        artefact_for(loaded, self.artefact, out / "work")

    def guardrail(self, *words: object) -> None:
        """Run the command line as a user would; stop if it fails."""
        command = [sys.executable, "-m", "guardrail", *map(str, words)]
        print("$ guardrail", *words, flush=True)
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}")

    def evaluate(self, name: str, data: Path, artefact: Path, *more: object) -> dict[str, Any]:
        """Evaluate a data set; the report is kept as JSON and as a page."""
        report = self.out / f"{name}.json"
        if not (self.resume and report.exists()):
            self.guardrail(
                *("evaluate", self.model, "--artefact", artefact, "--data", data),
                *("--work-dir", self.out / "work", "--out", report),
                *("--html", self.out / f"{name}.html", "--trust-remote-code", *more),
            )
        return self.read(report)

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON document."""
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    def lines(self, name: str) -> list[str]:
        """The lines of a table that another example wrote."""
        return (self.out / name).read_text("utf-8").splitlines()

    def calibrated(self, benign: Path) -> Path:
        """The artefact with thresholds of benign traffic."""
        own = self.out / "own.guard.safetensors"
        if self.resume and own.exists():
            return own
        self.guardrail(
            *("calibrate", self.artefact, "--model", self.model, "--benign", benign),
            *("--steer-rate", OWN_STEER_RATE, "--flag-rate", OWN_FLAG_RATE),
            *("--out", own, "--trust-remote-code"),
        )
        return own

    def script(self, name: str, *words: object, misses: bool = False) -> None:
        """Run another example; with `misses` 1 says that it measured what it should not have."""
        command = [sys.executable, str(HERE / name), *map(str, words)]
        found = subprocess.run(command, check=False).returncode
        if found and not (misses and found == 1):
            raise SystemExit(f"{name} ended with {found}")


def by_source(report: dict[str, Any]) -> dict[str, Any]:
    """The report's groups of one source each."""
    return {g["name"]: g for g in report["groups"] if g["by"] == "source"}


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    out: Annotated[Path, typer.Option(help="where the artefact and the figures go")],
    data: Annotated[Path, typer.Option(help="a folder with text/ and vision/")],
    readme: Annotated[Path | None, typer.Option(help="whose tables are replaced")] = None,
    only: Annotated[str, typer.Option(help="evaluate, drift, robustness, cost; or all")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="keep what was measured before")] = False,
) -> None:
    """Measure, and write what was measured."""
    if not (data / "vision").is_dir():
        typer.echo(f"skipped: there is no evaluation data in {data}")
        raise typer.Exit
    run = Benchmark(model, out, resume=resume)
    made: dict[str, list[str]] = {}
    if only in ("", "evaluate"):
        made |= evaluated(run, data)
    if only in ("", "drift"):
        run.script(
            *("drift_cases.py", "--model", model, "--artefact", run.artefact),
            *("--out", run.out / "drift", *(["--resume"] if resume else [])),
            misses=True,  # a wrong verdict stands in the table
        )
        made["drift"] = run.lines("drift/drift_cases.md")
    if only in ("", "robustness"):
        run.script(
            *("robustness.py", "--model", model, "--artefact", run.artefact),
            *("--out", run.out / "robustness", "--data", data),
        )
        made["robustness"] = run.lines("robustness/robustness.md")
    if only in ("", "cost"):
        if not (resume and (run.out / "bench.json").exists()):
            run.script("bench.py", "--model", model, "--out", out)
            shutil.copy(out / "bench.json", run.out)
        made["cost"] = list(tables.costs(run.read(run.out / "bench.json")))
    for name, lines in made.items():
        print(f"\n{name}\n", *lines, sep="\n")
        if readme is not None:
            tables.put(readme, name, lines)


def evaluated(run: Benchmark, data: Path) -> dict[str, list[str]]:
    """The tables of the evaluation: twice, and once more with thresholds of one's own."""
    inputs = prepare(data, run.out / "data")
    first = run.evaluate("evaluation", inputs["all"], run.artefact)
    sample = ("--judge-sample", HERE / "judged_answers.jsonl")
    second = run.evaluate("evaluation-again", inputs["all"], run.artefact, *sample)
    own = run.evaluate("evaluation-own", inputs["rest"], run.calibrated(inputs["benign"]))
    found = by_source(first)
    groups = {name: found[name] for name in SOURCES}
    groups["FigStep, own thresholds"] = by_source(own)["FigStep"]
    return {
        "evaluation": list(tables.separation(groups)),
        "controls": list(tables.controls(first)),
        "steering": list(tables.steering(first, SOURCES)),
        "quality": list(tables.quality(first, second)),
        "timings": list(tables.timings(first, second)),
    }


if __name__ == "__main__":
    typer.run(main)
