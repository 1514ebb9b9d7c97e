"""Options derived from pydantic models: what a model's field says is said nowhere else.

A command takes whole models, and `with_options` makes of it one that takes their fields:

    def serve(model: Model, settings: Annotated[ServerSettings, Derived(env="GUARDRAIL_SERVE_")]):

A field `timeout_s: float = Field(default=120.0, gt=0, description="Seconds of ...")` is the option
`--timeout` with that default, bound and help, and the variable `GUARDRAIL_SERVE_TIMEOUT`. A field
for which the command has a parameter of its own is filled from that one. `json_schema_extra` says
what a type cannot: `name`, `short`, `off` (the flag of false), `panel`, `env` (another variable, or
None), anything else that `typer.Option` takes, and `option: False` where there is to be none.

Typer knows functions only, and pydantic-settings has a command line of its own in another form; so
the models' signature is written out for Typer, which does the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from guardrail.errors import ConfigurationError

_PLAIN = (bool, int, float, str, Path)
_LEAST = 0.01  # of a float that has to be above zero
_OWN = ("name", "short", "off", "panel", "env", "option")


@dataclass(frozen=True, kw_only=True)
class Derived:
    """How a model's fields become options: all, `only` some or all `without` some.

    They stand in the `panel` of the help, where the field names no other.
    `prefix` is put before each name; `env`, if not empty, before each variable's.
    """

    env: str = ""
    prefix: str = ""
    panel: str | None = None
    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of the models among its parameters.

    Raises:
        TypeError: a field is of a type that no option has.
    """
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters
    taken = {name: get_args(hints[name]) or (hints[name], None) for name in given}
    models = {name for name, (kind, *_) in taken.items() if _is_model(kind)}
    own = frozenset(given) - models
    groups: dict[str, _Group] = {}
    shown: list[inspect.Parameter] = []
    for name, (kind, how, *_) in taken.items():
        if name in models:
            groups[name] = _Group(kind, how or Derived(), own)
            shown += groups[name].parameters()
        else:
            same = inspect.Parameter.KEYWORD_ONLY
            shown.append(given[name].replace(annotation=hints[name], kind=same))

    @wraps(command)
    def run(**values: Any) -> None:
        made = {name: group.model(values) for name, group in groups.items()}
        command(**{name: values[name] for name in own}, **made)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def flag_of(name: str, field: FieldInfo, prefix: str = "") -> str:
    """The option of a field: its name without the unit, in the singular where it is repeatable."""
    stem = _stem(name, field, prefix)
    if _is_many(field):
        stem = stem.removesuffix("s")
    return "--" + stem.replace("_", "-")


class _Group:
    """A model among a command's parameters."""

    def __init__(self, kind: type[BaseModel], how: Derived, own: frozenset[str]) -> None:
        self._kind, self._how, self._own = kind, how, own

    def parameters(self) -> list[inspect.Parameter]:
        """One for each option."""
        return [
            inspect.Parameter(
                self._how.prefix + name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[_type(name, field), self._option(name, field)],
                default=_default(field),
            )
            for name, field in self._fields()
        ]

    def model(self, values: dict[str, Any]) -> BaseModel:
        """The model of a command line's values; what was not given is left to the model.

        Raises:
            BadParameter: the values cannot hold.
        """
        found = {name: values[name] for name in self._kind.model_fields if name in self._own}
        for name, field in self._fields():
            value = values[self._how.prefix + name]
            if value is not None:
                found[name] = _known(self._flag(name, field), field, value)
        try:
            return self._kind(**found)
        except ConfigurationError as error:
            raise typer.BadParameter(str(error)) from None
        except ValidationError as error:
            raise typer.BadParameter(self._told(error)) from None

    def _fields(self) -> list[tuple[str, FieldInfo]]:
        return [
            (name, field)
            for name, field in self._kind.model_fields.items()
            if name not in self._own
            and (self._how.only is None or name in self._how.only)
            and name not in self._how.without
            and _extra(field).get("option", True)
        ]

    def _option(self, name: str, field: FieldInfo) -> Any:
        extra = _extra(field)
        flags = [self._flag(name, field)]
        if _bare(field) is bool and field.default is None:
            flags = [f"{flags[0]}/{extra.get('off', flags[0].replace('--', '--no-', 1))}"]
        if "short" in extra:
            flags.append(extra["short"])
        more = {key: value for key, value in extra.items() if key not in _OWN}
        if known := _closed(field):
            more.setdefault("metavar", "|".join(known))
        variable = self._how.env and self._how.env + _stem(name, field, self._how.prefix).upper()
        return typer.Option(
            *flags,  # type: ignore[misc]  # the first one's place is that of a default
            envvar=extra.get("env", variable) or None,
            rich_help_panel=extra.get("panel", self._how.panel),
            help=field.description,
            **_bounds(field),
            **more,
        )

    def _flag(self, name: str, field: FieldInfo) -> str:
        return flag_of(name, field, self._how.prefix)

    def _told(self, error: ValidationError) -> str:
        """The first error in a line, without what was given: it may be secret."""
        first = error.errors(include_input=False, include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        fields = dict(self._fields())
        where = str(first["loc"][0]) if first["loc"] else ""
        return f"{self._flag(where, fields[where])}: {said}" if where in fields else said


def _is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}


def _stem(name: str, field: FieldInfo, prefix: str) -> str:
    return str(_extra(field).get("name", prefix + name.removesuffix("_s")))


def _bare(field: FieldInfo) -> Any:
    """The type of a field's value, where there is one; of several the first."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    return kind


def _is_many(field: FieldInfo) -> bool:
    return get_origin(_bare(field)) in (tuple, frozenset, dict)


def _type(name: str, field: FieldInfo) -> Any:
    """What Typer is told of a field's type.

    Raises:
        TypeError: no option has such values.
    """
    kind = _bare(field)
    if _is_many(field):
        each = str if _closed(field) else get_args(kind)[0]
        return list[each] | None  # type: ignore[valid-type]
    if get_origin(kind) is Literal:
        return str
    if kind not in _PLAIN:
        raise TypeError(f"{name}: no option has values of {kind}; mark it by option: False")
    return kind | None if field.default is None else kind


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    default = field.get_default(call_default_factory=True)
    return list(default) or None if _is_many(field) else default


def _bounds(field: FieldInfo) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for rule in field.metadata:
        match rule:
            case Ge():
                bounds["min"] = rule.ge
            case Gt(gt=int(below) | float(below)):
                bounds["min"] = below + (1 if _bare(field) is int else _LEAST)
            case Le():
                bounds["max"] = rule.le
    return bounds


def _known(flag: str, field: FieldInfo, value: Any) -> Any:
    """The value; one of a closed list that is not in it is wrong usage."""
    known = _closed(field)
    for each in value if _is_many(field) else [value]:
        if known and each not in known:
            raise typer.BadParameter(f"{flag} is one of {', '.join(known)}; got {each!r}")
    return value


def _closed(field: FieldInfo) -> tuple[str, ...]:
    """The closed list that a field's value, or each of its values, is of; none where it is open."""
    kind = get_args(_bare(field))[0] if _is_many(field) else _bare(field)
    return get_args(kind) if get_origin(kind) is Literal else ()
