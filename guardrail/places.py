"""Places inside a call's arguments: read, and replaced in copies so that the caller's stay."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from inspect import BoundArguments

from pydantic import BaseModel

from guardrail.errors import ConfigurationError

Place = tuple[str, ...]  # a parameter's name, then keys or attributes inside the argument

_NOTHING = object()


def is_there(bound: BoundArguments, place: Place) -> bool:
    """Whether the call has the argument; a key that may be left out is none that is misspelt."""
    owner: object = bound.arguments
    for step in place:
        if owner is None or (isinstance(owner, Mapping) and step not in owner):
            return False
        owner = _inside(owner, step)
    return True


def get(bound: BoundArguments, place: Place) -> object:
    """What stands there.

    Raises:
        ConfigurationError: nothing does.
    """
    value: object = bound.arguments
    for step in place:
        value = _inside(value, step)
    return value


def put(bound: BoundArguments, place: Place, value: object) -> None:
    """Put another value there; owners on the way are copied, never changed.

    Raises:
        ConfigurationError: an owner only computes what it shows there.
    """
    name, *inside = place
    bound.arguments[name] = _replaced(bound.arguments[name], inside, value)


def _inside(owner: object, step: str) -> object:
    try:
        found: object = owner[step] if isinstance(owner, Mapping) else getattr(owner, step)
    except (KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"this call has no argument {step!r}, which is to be checked"
        ) from error
    return found


def _replaced(owner: object, steps: Sequence[str], value: object) -> object:
    if not steps:
        return value
    step, *further = steps
    inner = _replaced(_inside(owner, step), further, value)
    if type(owner) is dict:
        return {**owner, step: inner}
    try:
        return _with(owner, step, inner)
    except (AttributeError, TypeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"{step!r} cannot be replaced in a copy of a {type(owner).__name__}; what is checked "
            "must be what is sent, so give a callable that makes the messages"
        ) from error


def _with(owner: object, step: str, inner: object) -> object:
    if not isinstance(owner, Mapping) and not _holds(owner, step):
        raise TypeError(f"{step} is computed")
    if isinstance(owner, BaseModel):
        return owner.model_copy(update={step: inner})
    other: object = copy.copy(owner)
    if isinstance(other, Mapping):
        other[step] = inner  # type: ignore[index]  # a mapping that cannot change says so
    else:
        object.__setattr__(other, step, inner)  # the copy of a frozen one is still nobody's
    return other


def _holds(owner: object, step: str) -> bool:
    """Whether an object keeps the value itself: what it computes comes from somewhere else."""
    if isinstance(owner, BaseModel):
        return step in type(owner).model_fields or step in (owner.model_extra or ())
    of_class = inspect.getattr_static(type(owner), step, _NOTHING)
    computes = hasattr(type(of_class), "__get__")
    return inspect.ismemberdescriptor(of_class) or (step in vars(owner) and not computes)
