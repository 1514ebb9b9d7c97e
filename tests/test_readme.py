"""What the READMEs say holds: links lead somewhere, code runs, commands and figures are there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder in (".github", "examples", "guardrail", "integrations", "tests")
    for path in (ROOT / folder).rglob("*.md")
) + sorted(ROOT.glob("*.md"))
MAIN = ROOT / "README.md"
PACKAGE = ROOT / "guardrail"
BENCHMARKS = ROOT / "examples" / "benchmarks" / "README.md"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What a heading is called in an address: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_place_that_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), link
        if anchor:
            assert anchor in anchors(found), link


def test_rooms_and_examples_explain_themselves_where_their_readers_work() -> None:
    rooms = "server bulk evaluation attack drift fit inputs conformance observe front".split()
    rooms += ["policy", "asgi"]
    wanted = {*(f"guardrail/{room}/README.md" for room in rooms), "integrations/README.md"}
    assert wanted | {"examples/README.md", "examples/benchmarks/README.md"} <= set(map(name, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_python_block_is_python(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_a_page_names_is_a_target_or_a_command(page: Path) -> None:
    from guardrail.cli.main import app

    text = "\n".join(blocks(page)) + "\n" + "\n".join(blocks(page, "bash"))
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.M)) <= targets
    assert set(re.findall(r"`make ([a-z-]+)", prose(page))) <= targets
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^guardrail ([a-z]+)", text, re.M)) <= commands


def test_the_first_page_is_one_page() -> None:
    assert len(MAIN.read_text("utf-8").splitlines()) <= 150


def test_the_figures_of_the_first_page_are_those_of_the_benchmarks() -> None:
    table = prose(MAIN).split("## Figures\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    figures = re.findall(r"\d\.\d{3}(?: \(\d\.\d{3}-\d\.\d{3})?", "\n".join(rows))
    assert 0 < len(rows) <= 8
    assert len(figures) > 10
    measured = BENCHMARKS.read_text("utf-8")
    assert [figure for figure in figures if figure not in measured] == []


def ran(code: str, folder: Path) -> str:
    """What a block prints, run in `folder` as a reader would."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "integrations")])
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | quiet | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_first_block_runs_in_an_empty_folder_and_prints_what_it_says(tmp_path: Path) -> None:
    (code, *_), (said, *_) = blocks(MAIN, "python"), blocks(MAIN, "text")
    scores = re.compile(r"(?<=score )-?\d+\.\d+")  # of random weights, in this machine's arithmetic
    assert scores.sub("#", ran(code, tmp_path)) == scores.sub("#", said).strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_block_on_what_the_demonstration_leaves_prints_what_it_says() -> None:
    if not (ROOT / ".demo/tiny_vlm.guard.safetensors").exists():
        pytest.skip("run `make demo` first: the block uses what it leaves in .demo")
    page = ROOT / "examples" / "README.md"
    (code, *_), (said, *_) = blocks(page, "python"), blocks(page, "text")
    numbers = re.compile(r"-?\d+\.\d+")
    assert numbers.sub("#", ran(code, ROOT)) == numbers.sub("#", said).strip()


def test_every_room_of_the_code_is_told_to_contributors() -> None:
    page = ROOT / ".github" / "CONTRIBUTING.md"
    table = page.read_text("utf-8").split("## Where a change goes\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert all(len(cells) == 3 and all(cells) for cells in rows)
    told = {room for cells in rows for room in re.findall(r"`guardrail/(\w+)/`", cells[0])}
    code = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert code <= told
    assert all((PACKAGE / room).is_dir() for room in told)


def test_every_name_and_file_of_the_code_that_a_page_names_is_there() -> None:
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    text = "\n".join(prose(page) for page in pages)
    names = set(re.findall(r"`(guardrail(?:\.\w+)+)\b", text))
    files = set(re.findall(r"`((?:guardrail|tests|examples)/[\w/]+\.py)`", text))
    assert len(names) > 10
    lost = {file for file in files if not (ROOT / file).exists()}
    lost |= {name for name in names if not resolves(name)}
    assert not lost


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    found: object = import_module("guardrail")
    at = "guardrail"
    for part in name.split(".")[1:]:
        at = f"{at}.{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else import_module(at)
        except ModuleNotFoundError:
            return False
    return True
