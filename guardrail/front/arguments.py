"""Which arguments of a call the guard checks, and what is sent in their place.

What is checked is what is sent: containers, pictures, arrays and pydantic models are copied before
the check and the copy goes on, so that nobody can change a message in between. Pictures in the copy
are canonical, so that nobody reads them in another way.

`Selector` finds what is checked, and gives a `Call` for each call. A `Place` is where an argument,
or what is inside one, stands: it is read there, and replaced in copies so that the caller's stays.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, Sized, ValuesView
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from inspect import BoundArguments, Parameter, Signature
from io import IOBase
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
from PIL import Image
from pydantic import BaseModel

from guardrail.errors import ConfigurationError
from guardrail.front.chats import (
    MEDIA_NAMES,
    SCHEMA_NAMES,
    SYSTEM_NAMES,
    canonical_argument,
    joined,
    said_apart,
    with_caution,
)
from guardrail.inputs.canonical import canonical_chat, require_one_reading
from guardrail.inputs.labels import is_label, shown_labels, worded
from guardrail.policy.acting import enforces
from guardrail.types import Request

if TYPE_CHECKING:
    from guardrail.policy import Policy

F = TypeVar("F", bound=Callable[..., Any])
Place = tuple[str, ...]  # a parameter's name, then keys or attributes inside the argument
_NOTHING = object()
Select = Callable[[BoundArguments], object]
Wanted = str | Sequence[str] | Select
Kind = Literal["function", "coroutine", "generator", "async generator"]
_USUAL_NAMES = ("messages", "prompt", "input", "query")
# What also reaches a model, and would not be checked beside the messages.
_SIDE_NAMES = (
    *sorted(MEDIA_NAMES | SYSTEM_NAMES | SCHEMA_NAMES),
    *"attachments chat_history context documents extra_body files history prefix suffix".split(),
)
# How a model is called. Words in one are judged, apart; under any other name they are refused.
_SETTINGS = frozenset(
    "api_key api_version base_url best_of extra_headers extra_query frequency_penalty logit_bias"
    " logprobs max_completion_tokens max_new_tokens max_output_tokens max_tokens metadata"
    " modalities model model_id model_name n num_beams parallel_tool_calls presence_penalty"
    " prompt_cache_key repetition_penalty safety_identifier seed service_tier stop stop_sequences"
    " store stream stream_options temperature timeout tool_choice top_k top_logprobs top_p"
    " truncation user".split()
)
_REACHING = frozenset({"api_key", "api_version", "base_url", "timeout"})
_KEY_HEADERS = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})
# Some chat templates show these: they are one word, as a text in one would go unchecked.
_WORDED = frozenset({"reasoning", "reasoning_effort", "verbosity"})
WORD = "[A-Za-z_]{0,16}"
OWNERS = ("self", "cls")


@dataclass(slots=True)
class Call:
    """One call's arguments, copied; `value` is what the guard checks, and words `beside` it."""

    bound: BoundArguments
    value: object
    places: Sequence[Place]  # where a caution may stand, the best one first
    sources: Sequence[Place] = ()  # where `value` comes from; nowhere, if a callable made it
    joins: bool = False
    beside: Sequence[str] = ()

    @property
    def judged(self) -> list[Any]:
        """What the guard is asked: `value`, and apart from it words that are not in its text."""
        words = [*shown_labels(self.value, ()), *self.beside]
        return [self.value, said_apart(words)] if words else [self.value]

    def make_canonical(self, policy: Policy) -> None:
        """Have the pictures that are sent be those that are checked; nothing in shadow mode.

        A picture that stays what it is (an argument that names a file or an address, a value that
        a callable made) must have one reading.

        Raises:
            InputError: a picture cannot be read, or has two readings and must have one.
        """
        if not enforces(policy):
            return
        if not self.sources:
            require_one_reading(self.value, policy)
        elif self.joins:
            for place in self.sources:
                value = canonical_argument(place[-1], _get(self.bound, place), policy)
                _put(self.bound, place, value)
            self.value = _joined(self.bound, self.sources)
        else:
            self.value = canonical_chat(self.value, policy)
            for place in self.sources:
                _put(self.bound, place, self.value)

    def caution(self, words: str) -> bool:
        """Put a caution before what is sent; false when this call has no place for it."""
        for place in self.places:
            value = _get(self.bound, place)
            empty = value is None and place[-1] in SYSTEM_NAMES
            cautioned = words if empty else with_caution(value, words)
            if cautioned is not None:
                _put(self.bound, place, cautioned)
                return True
        return False


class Selector:
    """Finds what to check among a function's arguments.

    `wanted` is a parameter's name, several names, or a callable that makes the value from the bound
    arguments; None picks the parameter named messages, prompt, input or query, else the first
    positional one.
    """

    def __init__(self, fn: Callable[..., object], wanted: Wanted | None) -> None:
        self._signature = signature_of(fn)
        self._select: Select | None = wanted if callable(wanted) else None
        self._guesses = wanted is None
        self._places: tuple[Place, ...] = ()
        if callable(wanted):
            return
        self._places = _places(self._signature, wanted)
        alone = wanted is None or isinstance(wanted, str)
        # A str is a prompt to the guard, so a picture's or video's address must come as a part.
        self._joins = not alone or self._places[0][-1] in MEDIA_NAMES | SCHEMA_NAMES

    def call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call:
        """Bind one call's arguments and copy what can change."""
        bound = self._signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        beside = self._words_beside(bound, given) if self._guesses else []
        if self._select is not None:
            own = {k: v for k, v in bound.arguments.items() if k not in OWNERS}
            bound.arguments.update({k: snapshot(v) for k, v in own.items()})
            value = self._select(bound)
            same = [(name,) for name, argument in bound.arguments.items() if argument is value]
            return Call(bound, value, same if len(same) == 1 else (), same)
        places = [p for p in self._places if len(self._places) == 1 or _is_said(bound, p, given)]
        for place in places:
            _put(bound, place, snapshot(_get(bound, place)))
        if not self._joins:
            return Call(bound, _get(bound, places[0]), places, places, beside=beside)
        wordy = [place for place in places if place[-1] not in MEDIA_NAMES | SCHEMA_NAMES]
        cautioned = sorted(wordy, key=lambda place: place[-1] not in SYSTEM_NAMES)
        joined = _joined(bound, places)
        return Call(bound, joined, cautioned, places, joins=True, beside=beside)

    def _words_beside(self, bound: BoundArguments, given: set[str]) -> list[str]:
        """The words in settings; a default is the author's own.

        Raises:
            ConfigurationError: something else reaches the model beside the messages.
        """
        [(chosen,)] = self._places
        beside: list[str] = []
        settings: dict[str, object] = {}
        for place, (name, parameter) in enumerate(self._signature.parameters.items()):
            taken = bound.arguments[name]
            if name == chosen or name not in given or (place == 0 and name in OWNERS):
                continue
            if parameter.kind is Parameter.VAR_KEYWORD:
                beside += [key for key, value in taken.items() if _is_unchecked(key, value)]
                settings |= taken
            elif parameter.kind is Parameter.VAR_POSITIONAL or _is_unchecked(name, taken):
                beside.append(name)
            else:
                settings[name] = taken
        if beside:
            raise ConfigurationError(
                f"{chosen!r} is checked in {self._signature}, but not {', '.join(beside)}, which "
                f"this call has; name all that is checked with messages=({chosen!r}, ...), or "
                f"confirm with messages={chosen!r}"
            )
        return [text for key, value in settings.items() for text in _setting_words(key, value)]


def snapshot(value: object) -> object:
    """A copy of containers, pictures, arrays, requests and pydantic models; others as they are."""
    if type(value) is dict:
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        items = [snapshot(item) for item in value]  # type: ignore[attr-defined]  # narrowed above
        return tuple(items) if type(value) is tuple else items
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, Image.Image | np.ndarray | Request | Mapping | Sequence):
        return copy.deepcopy(value)
    if isinstance(value, BaseModel):
        try:
            return value.model_copy(deep=True)
        except (TypeError, RuntimeError, copy.Error):  # a lock, a tensor: a client, no message
            return value
    return value


def kind_of(fn: Callable[..., object], asynchronous: bool | None = None) -> Kind:
    """What calling `fn` gives; `asynchronous` overrules what is seen.

    An object's kind is that of its `__call__`. A plain wrapper made with `functools.wraps` has the
    kind of a coroutine function inside; generators inside are left alone, since
    `contextlib.contextmanager` wraps them, too.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    own = fn if inspect.isroutine(fn) else type(fn).__call__
    inside = (_unwrapped(fn), _unwrapped(own))
    if asynchronous is None:
        plain = not (inspect.isgeneratorfunction(own) or inspect.isasyncgenfunction(own))
        awaited = plain and any(map(inspect.iscoroutinefunction, (own, *inside)))
        asynchronous = awaited or inspect.isasyncgenfunction(own)
    if asynchronous:
        chunks = any(map(inspect.isasyncgenfunction, (own, *inside)))
        return "async generator" if chunks else "coroutine"
    return "generator" if inspect.isgeneratorfunction(own) else "function"


def _unwrapped(fn: Callable[..., object]) -> Callable[..., object]:
    try:
        inner: Callable[..., object] = inspect.unwrap(fn)
    except ValueError:  # a proxy that has every attribute has no end of `__wrapped__`
        return fn
    return inner


def signature_of(fn: Callable[..., object]) -> Signature:
    """A callable's parameters.

    Raises:
        ConfigurationError: it does not tell them.
    """
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{fn!r} does not tell its parameters; wrap it in a function that does"
        ) from error


def decorated(
    wrapped: Callable[[Callable[..., Any]], Callable[..., Any]], name: str, target: F
) -> F:
    """What the decorator `name` makes of a target by `wrapped`; of methods, what is inside.

    Raises:
        ConfigurationError: the target cannot be called.
    """
    if isinstance(target, classmethod | staticmethod):
        return cast("F", type(target)(decorated(wrapped, name, target.__func__)))
    if not callable(target):
        raise ConfigurationError(f"{target!r} cannot be called; put @{name} below its wrapper")
    return cast("F", wrapped(target))


def _places(signature: Signature, wanted: str | Sequence[str] | None) -> tuple[Place, ...]:
    if wanted is None:
        return ((_usual_name(signature),),)
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if not names or len(set(names)) < len(names):
        raise ConfigurationError(f"messages={wanted!r} must name parameters, each of them once")
    return tuple(_place(signature, name) for name in names)


def _place(signature: Signature, wanted: str) -> Place:
    """Where an argument stands: a parameter or a key of the `**` parameter, and what is inside."""
    params, (name, *inside) = signature.parameters, wanted.split(".")
    if name in params:
        return (name, *inside)
    rest = [n for n, p in params.items() if p.kind is Parameter.VAR_KEYWORD]
    if rest:
        return (rest[0], name, *inside)
    raise ConfigurationError(f"no parameter {name!r} in {signature}; messages= names one")


def _usual_name(signature: Signature) -> str:
    params = signature.parameters
    usual = [name for name in _USUAL_NAMES if name in params]
    if len(usual) > 1:
        raise ConfigurationError(
            f"{' and '.join(usual)} could all be what to check in {signature}; "
            "say which with messages='name', or join them with messages=('name', ...)"
        )
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    first = [n for n, p in params.items() if p.kind in positional and n not in OWNERS]
    if not usual and not first:
        raise ConfigurationError(
            f"nothing to check in {signature}; name a parameter with messages='name', "
            "or give a callable that makes the messages from the bound arguments"
        )
    chosen = (usual or first)[0]
    beside = [name for name in _SIDE_NAMES if name in params and name != chosen]
    if beside:
        raise ConfigurationError(
            f"{chosen!r} would be checked in {signature}, but not {', '.join(beside)}; confirm "
            f"with messages={chosen!r}, or join them with messages=({chosen!r}, ...)"
        )
    return chosen


def _is_unchecked(name: str, value: object) -> bool:
    """Whether an argument beside the messages could hold words for the model."""
    if name in _USUAL_NAMES or name in _SIDE_NAMES:
        return value is not None and not (isinstance(value, Sized) and len(value) == 0)
    if name in _WORDED:
        return not _is_worded(value)
    return _has_media(value) if name in _SETTINGS else _has_words(value)


def _setting_words(name: str, value: object) -> list[str]:
    """The words in a setting; how a server is reached is none of a model's business."""
    if name not in _SETTINGS or name in _REACHING:
        return []
    held = _held(value)
    if name == "extra_headers" and isinstance(held, dict):
        held = {key: item for key, item in held.items() if str(key).lower() not in _KEY_HEADERS}
    return worded(held)


def _is_worded(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(is_label(str(key)) and _is_worded(item) for key, item in value.items())
    if isinstance(value, str):
        return re.fullmatch(WORD, value) is not None
    return not _has_words(value)


def _has_words(value: object) -> bool:
    """Whether a value holds texts, pictures or files; clients and other objects hold none."""
    return any(
        bool(each) if isinstance(each, str | dict) else _is_media(each)
        for each in _pieces(_held(value))
    )


def _has_media(value: object) -> bool:
    """Whether a value holds pictures, files or bytes, or what cannot be looked at twice."""
    return any(map(_is_media, _pieces(_held(value))))


def _pieces(held: object) -> Iterator[object]:
    """Every mapping and list, and all that stands in them."""
    waiting = [held]
    while waiting:
        yield (each := waiting.pop())
        if isinstance(each, dict | list):
            waiting += each.values() if isinstance(each, dict) else each


def _is_media(value: object) -> bool:
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value) > 0
    return isinstance(value, Image.Image | np.ndarray | Path | IOBase | Iterator)


def _held(value: object) -> object:
    """What a value holds, at any depth: containers and models as a dict or a list of it."""
    if isinstance(value, Enum):
        return _held(value.value)
    if isinstance(value, str | bytes | bytearray | memoryview | range):
        return value
    if isinstance(value, Mapping):
        return {key: _held(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set | ValuesView):
        return [*map(_held, value)]
    if isinstance(value, BaseModel):
        return [*map(_held, (*vars(value).values(), *(value.model_extra or {}).values()))]
    if is_dataclass(value) and not isinstance(value, type):
        return [_held(getattr(value, each.name, None)) for each in fields(value)]
    return [*map(_held, vars(value).values())] if isinstance(value, SimpleNamespace) else value


def _is_said(bound: BoundArguments, place: Place, given: set[str]) -> bool:
    """Whether a call has one of several arguments; clients mark what is left out by an object."""
    default = None if place[0] in given else bound.arguments[place[0]]
    marked = default is not None and not _has_words(default) and len(place) == 1
    return not marked and _is_there(bound, place)


def _joined(bound: BoundArguments, places: Sequence[Place]) -> list[object]:
    return joined([(place[-1], _get(bound, place)) for place in places])


def _is_there(bound: BoundArguments, place: Place) -> bool:
    """Whether the call has the argument; a key that may be left out is none that is misspelt."""
    owner: object = bound.arguments
    for step in place:
        if owner is None or (isinstance(owner, Mapping) and step not in owner):
            return False
        owner = _inside(owner, step)
    return True


def _get(bound: BoundArguments, place: Place) -> object:
    """What stands there.

    Raises:
        ConfigurationError: nothing does.
    """
    value: object = bound.arguments
    for step in place:
        value = _inside(value, step)
    return value


def _put(bound: BoundArguments, place: Place, value: object) -> None:
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
