"""Read a policy from a TOML, YAML or JSON file, or from environment variables.

    policy = load_policy("policy.toml")
    policy = policy_from_env()  # GUARDRAIL_POLICY_MODE=shadow

A name nobody knows is an error in both: a misspelt limit must not leave the default in force. That
is also why the environment is read here and not by pydantic-settings, which passes over unknown
variables and reads only the process's own environment.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_origin

from pydantic import BaseModel, ValidationError

from guardrail.errors import ConfigurationError
from guardrail.extras import require
from guardrail.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic_core import ErrorDetails


def load_policy(path: str | Path) -> Policy:
    """The policy in a `.toml`, `.yaml`, `.yml` or `.json` file.

    Raises:
        ConfigurationError: unreadable, malformed, or a setting that is unknown or cannot hold.
        MissingExtraError: a YAML file, and PyYAML is not installed.
    """
    path = Path(path)
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ConfigurationError(
            f"{path}: a policy file ends in {', '.join(_PARSERS)}; got {path.suffix or 'no ending'}"
        )
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{path}: a policy is a table of settings, not {type(data)}")
    return _policy(data, source=f"{path}: ", name=".".join)


def policy_from_env(
    prefix: str = "GUARDRAIL_POLICY_", environ: Mapping[str, str] | None = None
) -> Policy:
    """The policy that variables starting with `prefix` describe; the default one without any.

    Two underscores go one level down (`GUARDRAIL_POLICY_LIMITS__IMAGES=4`,
    `GUARDRAIL_POLICY_THRESHOLDS__IMAGE__FLAG=0.9`); collections are JSON
    (`GUARDRAIL_POLICY_ALLOWED_HOSTS=["example.org"]`); `null` is no value.

    Raises:
        ConfigurationError: a setting that is unknown or cannot hold; the message names it.
    """
    environ = os.environ if environ is None else environ
    named = {n: n[len(prefix) :].lower().split("__") for n in environ if n.startswith(prefix)}
    data: dict[str, object] = {}
    # Short names first, so that a LIMITS__IMAGES refines what LIMITS gives.
    for variable, steps in sorted(named.items(), key=lambda item: len(item[1])):
        _put(data, steps, _value(variable, environ[variable], _annotation(Policy, steps)))
    return _policy(
        data, source="environment: ", name=lambda steps: prefix + "__".join(steps).upper()
    )


def _policy(
    data: Mapping[str, object], *, source: str, name: Callable[[Iterable[str]], str]
) -> Policy:
    try:
        return Policy.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(_fault(e, name) for e in error.errors(include_url=False))
        raise ConfigurationError(source + faults) from error


def _fault(error: ErrorDetails, name: Callable[[Iterable[str]], str]) -> str:
    # `[key]` is how pydantic marks a dictionary's key; the name before it says as much.
    steps = [str(step) for step in error["loc"] if step != "[key]"]
    if error["type"] != "extra_forbidden":
        return f"{name(steps)}: {error['msg']}; got {error['input']!r}"
    known = [name(path) for path in _settings(Policy)]
    near = get_close_matches(name(steps), known, n=1, cutoff=0.75)
    return f"{name(steps)!r} is no setting" + (f"; did you mean {near[0]!r}?" if near else "")


def _settings(model: type[BaseModel]) -> Iterator[list[str]]:
    for name, field in model.model_fields.items():
        yield [name]
        if (below := _model_in(field.annotation)) is not None:
            yield from ([name, *rest] for rest in _settings(below))


def _model_in(annotation: object) -> type[BaseModel] | None:
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _annotation(model: type[BaseModel], steps: list[str]) -> object:
    """The type of the setting under `steps`; None when there is no such setting."""
    found: object = model
    for step in steps:
        if (below := _model_in(found)) is not None:
            field = below.model_fields.get(step)
            found = None if field is None else field.annotation
        else:
            found = get_args(found)[1] if get_origin(found) is dict else None
    return found


def _value(variable: str, text: str, annotation: object) -> object:
    if type(None) in get_args(annotation) and text.lower() in {"null", "none"}:
        return None
    if _model_in(annotation) is None and get_origin(annotation) not in {dict, frozenset}:
        return text
    try:
        return _json(text)
    except ValueError as error:
        raise ConfigurationError(
            f'environment: {variable} is written as JSON, for example ["a", "b"]; {error}'
        ) from error


def _put(data: dict[str, object], steps: list[str], value: object) -> None:
    for step in steps[:-1]:
        below = data.setdefault(step, {})
        if not isinstance(below, dict):
            raise ConfigurationError(f"environment: {step} is set both whole and in parts")
        data = below
    data[steps[-1]] = value


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name is given twice among {', '.join(name for name, _ in pairs)}")
    return found


def _yaml(text: str) -> object:
    yaml = require("yaml")
    try:
        data: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    return {} if data is None else data  # an empty file, as in TOML, changes nothing


_PARSERS: dict[str, Callable[[str], object]] = {
    ".toml": tomllib.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
}
