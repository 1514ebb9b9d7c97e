from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel, Field, create_model, model_validator
from typer.testing import CliRunner

import guardrail
from guardrail.cli import serve_options as s
from guardrail.cli.derived import Derived, flag_of, with_options
from guardrail.cli.main import app
from guardrail.cli.options import GuardOptions
from guardrail.cluster import StartSettings
from guardrail.errors import ConfigurationError
from guardrail.model.source import LoadingOptions
from guardrail.server import ServerSettings
from guardrail.server.settings import Listening, UpstreamOptions, UpstreamSettings

ALL = Derived()
RULES = Derived(only=frozenset({"policy", "judged", "allow_mismatch"}))
GROUPS = {
    ("serve",): {
        s.KeyOptions: ALL,
        s.RecordOptions: ALL,
        s.UpstreamKey: s.UPSTREAM,
        ServerSettings: ALL,
        Listening: ALL,
        UpstreamOptions: s.UPSTREAM,
        GuardOptions: RULES,
        LoadingOptions: ALL,
    },
    ("cluster", "start"): {
        ServerSettings: ALL,
        StartSettings: ALL,
        LoadingOptions: ALL,
    },
}
OWN = {
    ("serve",): {"model": "model", "artefact": "--artefact", "engine": "--engine", "vllm": "vllm"},
    ("cluster", "start"): {"model": "model", "artefact": "--artefact", "vllm": "vllm"},
}


def offered(field):
    return (field.json_schema_extra or {}).get("option", True)


class Settings(BaseModel):
    wait_s: float = Field(default=2.5, gt=0, le=9, description="Seconds to wait.")
    places: int = Field(default=3, gt=0)
    colours: tuple[str, ...] = ()
    kind: Literal["round", "flat"] = "flat"
    sides: frozenset[Literal["left", "right"]] = frozenset({"left"})
    told: bool | None = Field(default=None, json_schema_extra={"off": "--untold"})
    strict: bool = False
    place: Path | bytes | None = None
    inside: bytes = Field(default=b"", json_schema_extra={"option": False})

    @model_validator(mode="after")
    def _fits(self):
        if self.strict and self.colours:
            raise ValueError("strict has no colours")
        if self.strict and self.told:
            raise ConfigurationError("strict is never told")
        return self


def run(*words, kind=Settings, how=ALL):
    """What the command got, and the result."""
    got = []

    def command(settings: kind) -> None:
        got.append(settings)

    command.__annotations__["settings"] = Annotated[kind, how]
    program = typer.Typer()
    program.command()(with_options(command))
    result = CliRunner().invoke(program, list(words), env={"COLUMNS": "200"})
    return (got or [None]), result


def got(*words, **more):
    found, result = run(*words, **more)
    assert result.exit_code == 0, result.output
    return found[0]


def told(*words, **more):
    found, result = run(*words, **more)
    assert result.exit_code == 2
    assert found == [None]
    return " ".join(result.output.replace("│", " ").split())


def test_without_options_the_model_has_its_own_defaults():
    assert got() == Settings()


def test_each_option_fills_its_field():
    words = ["--wait", "4", "--places", "2", "--colour", "red", "--colour", "blue", "--told"]
    assert got(*words, "--kind", "round") == Settings(
        wait_s=4, places=2, colours=("red", "blue"), kind="round", told=True
    )
    assert got("--side", "right").sides == {"right"}
    assert got("--side", "right", "--side", "left").sides == {"left", "right"}
    found = got("--strict", "--untold", "--place", "there")
    assert found == Settings(strict=True, told=False, place=Path("there"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--wait", "0"), "Invalid value for '--wait'"),
        (("--places", "0"), "Invalid value for '--places'"),
        (("--kind", "square"), "--kind is one of round, flat; got 'square'"),
        (("--side", "left", "--side", "top"), "--side is one of left, right; got 'top'"),
        (("--strict", "--colour", "red"), "strict has no colours"),
        (("--strict", "--told"), "strict is never told"),
        (("--inside", "x"), "No such option: --inside"),
    ],
)
def test_what_a_field_does_not_allow_is_wrong_usage(words, message):
    assert message in told(*words)


def test_help_says_what_the_field_says():
    found = " ".join(run("--help")[1].output.split())
    assert "Seconds to wait. [default: 2.5]" in found
    assert re.search(r"--kind round\|flat", found)
    assert re.search(r"--side left\|right", found)


def test_names_variables_and_panels_follow_the_group(monkeypatch):
    how = Derived(env="TEST_", prefix="far_", panel="Far away")
    monkeypatch.setenv("TEST_FAR_COLOURS", "red blue")
    monkeypatch.setenv("TEST_FAR_WAIT", "7")
    assert got(how=how) == Settings(colours=("red", "blue"), wait_s=7)
    assert got("--far-wait", "8", "--far-colour", "green", how=how).wait_s == 8
    assert "Far away" in run("--help", how=how)[1].output


def test_a_parameter_of_the_command_stands_for_the_field_of_its_name():
    seen = []

    def command(*, places: int, settings: Settings) -> None:
        seen.append((places, settings.places))

    command.__annotations__ |= {"places": int, "settings": Settings}
    program = typer.Typer()
    program.command()(with_options(command))
    assert CliRunner().invoke(program, ["6"]).exit_code == 0
    assert seen == [(6, 6)]


def test_a_field_that_no_option_can_hold_is_an_error_of_the_program():
    wrong = create_model("Wrong", inside=(bytes, b""))
    with pytest.raises(TypeError, match="inside: no option"):
        run(kind=wrong)


def test_a_field_added_to_the_servers_settings_is_an_option_at_once(monkeypatch):
    more = create_model(
        "More",
        __base__=ServerSettings,
        warm_s=(float, Field(default=7.5, ge=1, description="Seconds kept warm.")),
    )
    assert got(kind=more).warm_s == 7.5
    assert got("--warm", "3", kind=more).warm_s == 3
    monkeypatch.setenv("GUARDRAIL_SERVE_WARM", "4")
    assert got(kind=more, how=s.SERVED).warm_s == 4


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_options_and_fields_of_the_models_are_the_same_both_ways(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    shown = {one.opts[0]: (one.default or None, one.help) for one in command.params}
    derived = {}
    for kind, how in GROUPS[words].items():
        for name, field in kind.model_fields.items():
            if (how.only is None or name in how.only) and offered(field) and name not in OWN[words]:
                default = field.get_default(call_default_factory=True) or None
                derived[flag_of(name, field, how.prefix)] = (default, field.description)
    assert {flag: shown[flag] for flag in derived} == derived
    assert shown.keys() - derived.keys() == {*OWN[words].values(), "--debug"}


def test_no_default_of_a_server_is_written_twice():
    kinds = (ServerSettings, Listening, UpstreamSettings, StartSettings)
    defaults = [field.default for kind in kinds for field in kind.model_fields.values()]
    large = {value for value in defaults if isinstance(value, int) and value > 10_000}
    root = Path(guardrail.__file__).parent
    places = [root / "policy.py", *(root / "policy").glob("*.py")]
    for room in ("asgi", "cli", "cluster", "server"):
        places += (root / room).rglob("*.py")
    found = [
        node.value
        for path in places
        if path.exists()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in large
    ]
    assert sorted(found) == sorted(large)
