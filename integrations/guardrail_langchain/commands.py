"""What a tool's `Command` brings into an app's state: its messages, and its other texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langchain_core.messages import BaseMessage, convert_to_messages
from langgraph.types import Command, Send

if TYPE_CHECKING:
    from collections.abc import Callable


def command_messages(command: Command[Any]) -> list[BaseMessage]:
    """Every message in the update and in what is sent to other nodes, wherever it stands."""
    return [leaf for leaf in _leaves(command) if isinstance(leaf, BaseMessage)]


def command_texts(command: Command[Any]) -> list[str]:
    """Every other text there; names of keys and nodes are the app's own."""
    return [leaf for leaf in _leaves(command) if isinstance(leaf, str) and leaf]


def with_messages(command: Command[Any], found: Mapping[int, BaseMessage]) -> Command[Any]:
    """The command with messages replaced, by the `id()` of the old one; itself if none is new."""
    if all(id(message) == old for old, message in found.items()):
        return command
    return replace(
        command,
        update=_mapped(command.update, lambda leaf: found.get(id(leaf), leaf)),
    )


def _leaves(command: Command[Any]) -> Iterator[Any]:
    yield from _inside(command.update)
    places = command.goto if isinstance(command.goto, list | tuple) else [command.goto]
    for place in places:
        if isinstance(place, Send):
            yield from _inside(place.arg)
    yield from _inside(command.resume)


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        if "role" in value and "content" in value:  # a message as a mapping
            yield from convert_to_messages([dict(value)])
            return
        for item in value.values():
            yield from _inside(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _inside(item)
    else:
        yield value


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(item, leaf) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, leaf) for item in value]
    if type(value) is tuple:
        return tuple(_mapped(item, leaf) for item in value)
    return leaf(value)
