"""Which argument of a call the guard checks, and what is sent in its place.

What is checked is what is sent: mutable arguments are copied before the check and the copy goes on,
so that nobody can change a message in between.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import BoundArguments, Parameter, Signature
from typing import Literal

from PIL import Image

from guardrail.errors import ConfigurationError
from guardrail.types import Message, Request, TextPart

Select = Callable[[BoundArguments], object]

Kind = Literal["function", "coroutine", "generator", "async generator"]

USUAL_NAMES = ("messages", "prompt", "input", "query")
# What also reaches a model, and would not be checked beside the messages.
SIDE_NAMES = ("image", "images", "system", "instructions", "tools", "files")


@dataclass(slots=True)
class Call:
    """One call's arguments, copied; `value` is what the guard checks."""

    bound: BoundArguments
    value: object
    place: tuple[str, ...] | None  # where `value` stands among the arguments; None: nowhere

    def caution(self, words: str) -> bool:
        """Put a caution before what is sent; false when this call has no place for it."""
        cautioned = with_caution(self.value, words)
        if self.place is None or cautioned is None:
            return False
        self.value = cautioned
        _put(self.bound, self.place, cautioned)
        return True


class Selector:
    """Finds what to check among a function's arguments.

    `wanted` is a parameter's name, or a callable that makes the value from the bound arguments;
    None picks the parameter named messages, prompt, input or query, else the first positional one.
    """

    def __init__(self, fn: Callable[..., object], wanted: str | Select | None) -> None:
        try:
            self._signature = inspect.signature(fn)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{fn!r} does not tell its parameters; wrap it in a function that does"
            ) from error
        self._select = wanted if callable(wanted) else None
        self._place = None if callable(wanted) else _place(self._signature, wanted)

    def call(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Call:
        """Bind one call's arguments and copy what can change."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if self._place is not None:
            value = snapshot(_get(bound, self._place))
            _put(bound, self._place, value)
            return Call(bound, value, self._place)
        bound.arguments.update({k: snapshot(v) for k, v in bound.arguments.items()})
        value = self._select(bound) if self._select is not None else None
        same = [(name,) for name, argument in bound.arguments.items() if argument is value]
        return Call(bound, value, same[0] if len(same) == 1 else None)


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


def _place(signature: Signature, wanted: str | None) -> tuple[str, ...]:
    """Where the checked argument stands: a parameter, or a key of the `**` parameter."""
    params = signature.parameters
    if wanted is not None:
        if wanted in params:
            return (wanted,)
        rest = [n for n, p in params.items() if p.kind is Parameter.VAR_KEYWORD]
        if rest:
            return (rest[0], wanted)
        raise ConfigurationError(f"no parameter {wanted!r} in {signature}; messages= names one")
    usual = [name for name in USUAL_NAMES if name in params]
    if len(usual) > 1:
        raise ConfigurationError(
            f"{' and '.join(usual)} could all be what to check in {signature}; "
            "say which with messages='name', or join them with a callable"
        )
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    first = [n for n, p in params.items() if p.kind in positional and n not in ("self", "cls")]
    if not usual and not first:
        raise ConfigurationError(
            f"nothing to check in {signature}; name a keyword with messages='name', "
            "or give a callable that makes the messages from the bound arguments"
        )
    chosen = (usual or first)[0]
    beside = [name for name in SIDE_NAMES if name in params and name != chosen]
    if beside:
        raise ConfigurationError(
            f"{chosen!r} would be checked in {signature}, but not {', '.join(beside)}; confirm "
            f"with messages={chosen!r}, or join them with a callable"
        )
    return (chosen,)


def _get(bound: BoundArguments, place: tuple[str, ...]) -> object:
    value: object = bound.arguments
    for step in place:
        if not isinstance(value, Mapping) or step not in value:
            raise ConfigurationError(f"this call has no argument {step!r}, which is to be checked")
        value = value[step]
    return value


def _put(bound: BoundArguments, place: tuple[str, ...], value: object) -> None:
    name, *inner = place
    bound.arguments[name] = {**bound.arguments[name], inner[0]: value} if inner else value


def snapshot(value: object) -> object:
    """A copy of containers, pictures and requests; other objects as they are."""
    if type(value) is dict:
        return {key: snapshot(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        items = [snapshot(item) for item in value]  # type: ignore[attr-defined]  # narrowed above
        return tuple(items) if type(value) is tuple else items
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, Image.Image | Request | Mapping | Sequence):
        return copy.deepcopy(value)
    return value


def with_caution(value: object, words: str) -> object | None:
    """`value` with `words` as a system message before it, in `value`'s own form.

    A string gets the words and a blank line in front; a chat's first system message is extended,
    or one is inserted. None for a form that has no place for words (a bare picture).
    """
    if isinstance(value, str):
        return f"{words}\n\n{value}"
    if isinstance(value, Request):
        return _cautioned_request(value, words)
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        chat = _cautioned_chat(value, words)
        return tuple(chat) if isinstance(value, tuple) else chat
    return None


def _cautioned_chat(chat: Sequence[Mapping[str, object]], words: str) -> list[object]:
    first, content = chat[0], chat[0].get("content")
    if first.get("role") == "system" and isinstance(content, str):
        return [{**first, "content": f"{words}\n\n{content}"}, *chat[1:]]
    if first.get("role") == "system" and isinstance(content, Sequence):
        part = {"type": "text", "text": f"{words}\n\n"}
        return [{**first, "content": [part, *content]}, *chat[1:]]
    return [{"role": "system", "content": words}, *chat]


def _cautioned_request(request: Request, words: str) -> Request:
    first = request.messages[0]
    if first.role != "system":
        system = Message(role="system", parts=(TextPart(words),))
        return Request((system, *request.messages))
    match first.parts:
        case (TextPart(text), *rest):
            parts = (TextPart(f"{words}\n\n{text}"), *rest)
        case _:
            parts = (TextPart(f"{words}\n\n"), *first.parts)
    return Request((replace(first, parts=parts), *request.messages[1:]))
