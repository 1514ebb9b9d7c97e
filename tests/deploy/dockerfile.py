"""A Dockerfile read into stages, and its steps run in a folder where there is no docker.

It knows what `examples/deploy/Dockerfile` needs: ARG, FROM, WORKDIR, COPY, RUN, ENV, USER, EXPOSE,
STOPSIGNAL, HEALTHCHECK, ENTRYPOINT and CMD; anything else is an error, not skipped.

Every stage is run at one path, as in a container, and put aside when it ends: `COPY --from` takes
from there. Absolute paths of the image are moved under that path; those of the system are not.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

_PLAIN = {"RUN", "COPY", "WORKDIR", "ENV", "ARG"}
_FINAL = {"USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    """One FROM and what follows it; `facts` are what the image says of itself."""

    base: str
    name: str | None
    steps: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments on one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(w, rest) for w, _, rest in (line.partition(" ") for line in joined.splitlines())]


def read(text: str, arguments: dict[str, str]) -> list[Stage]:
    """The stages; `arguments` are build arguments, and take those before FROM, too."""
    stages: list[Stage] = []
    known = dict(arguments)
    for word, rest in instructions(text):
        if word == "FROM":
            base, _, name = Template(rest).substitute(known).partition(" AS ")
            stages.append(Stage(base, name or None))
        elif word == "ARG" and not stages:
            name, _, default = rest.partition("=")
            known.setdefault(name, default)
        elif word in _PLAIN:
            stages[-1].steps.append((word, rest))
        elif word in _FINAL:
            stages[-1].facts[word] = rest
        else:
            raise ValueError(f"unknown instruction {word}")
    return stages


def needed(stages: list[Stage]) -> list[Stage]:
    """The last stage, and before it those that it copies from, and these from."""
    found: list[Stage] = []
    wanted = {stages[-1].name}
    for stage in reversed(stages):
        if stage.name in wanted:
            found.append(stage)
            copied = " ".join(rest for word, rest in stage.steps if word == "COPY")
            wanted |= set(re.findall(r"--from=(\S+)", copied))
    return found[::-1]


class Build:
    """Runs stages at `root`, with files from `context` that `visible` lets through."""

    def __init__(self, root: Path, context: Path, environment: dict[str, str]) -> None:
        self.root, self._context = root, context
        self._given = environment
        self.environment: dict[str, str] = {}
        self._aside: dict[str, Path] = {}
        self._own: set[str] = {"/data", "/models", "/run/secrets"}
        self._here = root

    def moved(self, text: str) -> str:
        """The image's own absolute paths, under the root."""
        own = "|".join(re.escape(path) for path in sorted(self._own, key=len, reverse=True))
        return re.sub(rf"(?<![\w.:/-])({own})(?=[/\s\"':\]]|$)", rf"{self.root}\1", text)

    def run(self, stages: list[Stage]) -> None:
        """All stages in order; the last one stays at the root."""
        for stage in stages:
            for word, rest in stage.steps:
                self._own |= _new_paths(word, rest)
        for stage in stages:
            self.root.mkdir()
            (self.root / "tmp").mkdir()
            self._here, self.environment = self.root, dict(self._given)
            for word, rest in stage.steps:
                getattr(self, f"_{word.lower()}")(rest)
            if stage is not stages[-1]:
                aside = self.root.with_name(f"{self.root.name}-{stage.name}")
                self.root.rename(aside)
                self._aside[stage.name or ""] = aside

    def _arg(self, rest: str) -> None:
        name, _, default = rest.partition("=")
        self.environment.setdefault(name, default)

    def _env(self, rest: str) -> None:
        for name, value in re.findall(r"(\w+)=(\S+)", rest):
            self.environment[name] = Template(self.moved(value)).substitute(self.environment)

    def _workdir(self, rest: str) -> None:
        self._here = Path(self.moved(rest))
        self._here.mkdir(parents=True, exist_ok=True)

    def _copy(self, rest: str) -> None:
        *sources, target = rest.split()
        stage = ""
        if sources[0].startswith("--from="):
            stage = sources.pop(0).removeprefix("--from=")
        into = Path(self.moved(target)) if target.startswith("/") else self._here / target
        for source in sources:
            found = self._aside[stage] / source[1:] if stage else self._context / source
            place = into / found.name if target.endswith("/") else into
            place.parent.mkdir(parents=True, exist_ok=True)
            if found.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(found, place, symlinks=True, ignore=ignored)
            else:
                shutil.copy2(found, place)

    def _run(self, rest: str) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", self.moved(rest)],
            cwd=self._here,
            env=self.environment | {"TMPDIR": str(self.root / "tmp")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"RUN {rest}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _new_paths(word: str, rest: str) -> set[str]:
    """Absolute paths that a step makes."""
    if word == "WORKDIR":
        return {rest}
    if word == "COPY":
        *_, target = rest.split()
        return {target} if target.startswith("/") else set()
    if word == "RUN":
        return set(re.findall(r"(?:-m venv|--wheel-dir|mkdir(?: -m \d+)?) (/\S+)", rest))
    return set()


def exec_form(rest: str) -> list[str]:
    """The words of an ENTRYPOINT, CMD or HEALTHCHECK in its exec form."""
    words: list[str] = json.loads(rest[rest.index("[") :])
    return words
