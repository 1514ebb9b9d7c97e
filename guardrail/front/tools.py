"""Tools whose arguments and results a guard reads, outside of any framework.

    @mcp.tool()
    @guard_tool(guard=guard)
    def search(query: str) -> str: ...

`ToolRules` is what a verdict means for a call and for its result; the adapters' tools use it, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import BoundArguments, Parameter, Signature
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args, overload

from guardrail.errors import ConfigurationError
from guardrail.front.arguments import OWNERS, decorated, kind_of, signature_of, snapshot
from guardrail.front.chats import (
    CALL_WITHHELD,
    RESULT_CAUTION,
    RESULT_WITHHELD,
    call_chat,
    error_words,
    result_chat,
)
from guardrail.front.consequences import Reaction, resolved
from guardrail.front.tool_values import cautioned_result, read_value
from guardrail.front.wrap import LAST
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import one_reading

if TYPE_CHECKING:
    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag, Settled
    from guardrail.front.tool_values import Reading
    from guardrail.policy import Policy
    from guardrail.types import Verdict

F = TypeVar("F", bound=Callable[..., Any])
Side = Literal["arguments", "result"]
Chat = list[dict[str, Any]]
SIDES: tuple[Side, ...] = get_args(Side)
WITHHELD: Mapping[Side, str] = {"arguments": CALL_WITHHELD, "result": RESULT_WITHHELD}


@overload
def guard_tool(
    fn: F,
    *,
    guard: Checker,
    name: str | None = None,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    policy: Policy | None = None,
    audit: Audit | None = None,
    injected: Collection[str] = (),
    select_result: Callable[[Any], object] | None = None,
    asynchronous: bool | None = None,
) -> F: ...


@overload
def guard_tool(
    fn: None = None,
    *,
    guard: Checker,
    name: str | None = None,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    policy: Policy | None = None,
    audit: Audit | None = None,
    injected: Collection[str] = (),
    select_result: Callable[[Any], object] | None = None,
    asynchronous: bool | None = None,
) -> Callable[[F], F]: ...


def guard_tool(
    fn: F | None = None,
    *,
    guard: Checker,
    name: str | None = None,
    check: Collection[Side] | Side = SIDES,
    on_flag: OnFlag | None = None,
    fallback: Callable[..., Any] | None = None,
    policy: Policy | None = None,
    audit: Audit | None = None,
    injected: Collection[str] = (),
    select_result: Callable[[Any], object] | None = None,
    asynchronous: bool | None = None,
) -> F | Callable[[F], F]:
    """Check what a model wrote for a tool before it runs, and its result before a model reads it.

    For functions and coroutine functions; as decorator or wrapper. Name, signature and annotations
    stay, for whatever builds a schema from them. Read are texts, JSON values, pydantic models and
    dataclasses, pictures (Pillow, encoded bytes, base64, `data:` URLs), and the content blocks of
    the Model Context Protocol and of chats, at any depth; anything else is an error that names its
    type. Pictures go on in the form that was judged (`policy.pictures`). An exception is read by
    its words: flagged, it counts as a flagged result; so does one that would need a caution.

    A withheld call or result is data that says so, never an answer in the tool's voice: the tool
    gives back "[call stopped by a guard: the tool was not run]" or "[result withheld by a guard]".
    A tool cannot be steered. Where the policy's `unsteerable` asks for a caution, it goes before a
    text, or before a list of content; other results, and arguments, count as flagged.

    Args:
        fn: the tool; left out when used as a decorator with arguments.
        guard: the guard that checks.
        name: what the tool is called. Default: the function's name.
        check: "arguments", "result" or both.
        on_flag: another `on_flag` than the policy's. What "raise" raises is no `Exception`, and
            ends a server that does not expect it; "annotate" calls and hands on all the same (see
            `guardrail.front.wrap.last_verdict`, which has the result's verdict after a call).
        fallback: makes what stands for a withheld call or result, `fallback(verdict, *args,
            **kwargs)`: for callers that want another form than a str.
        policy: other rules than the guard's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.
        injected: parameters that the app fills in, not the model; they are not read.
        select_result: what is checked in place of a result: `select_result(result)`. The result
            itself goes on unchanged, so an encoded picture must have one reading.
        asynchronous: whether calling `fn` gives something to await, where that is not seen.

    Raises:
        ConfigurationError: a setting that cannot hold, or a tool that gives its result in pieces.
    """
    rules = ToolRules.of(
        guard, check, policy=policy, on_flag=on_flag, fallback=fallback, audit=audit
    )

    def wrapped(target: Callable[..., Any]) -> Callable[..., Any]:
        kind = kind_of(target, asynchronous)
        if "generator" in kind:
            raise ConfigurationError(
                f"{target!r} gives its result in pieces, and none may go on before the last one is "
                "checked; guard a function that returns them together"
            )
        tool = _Tool(
            rules,
            name or _name_of(target),
            signature_of(target),
            frozenset(injected),
            fallback,
            select_result,
        )
        tool.refuse_unknown_names()
        form = _coroutine if kind == "coroutine" else _function
        return form(target, tool)

    def decorate(target: F) -> F:
        return decorated(wrapped, "guard_tool", target)

    return decorate if fn is None else decorate(fn)


@dataclass(frozen=True, slots=True)
class ToolRules:
    """A guard, what a flag leads to, and which sides of a call the guard reads."""

    reaction: Reaction
    sides: frozenset[str]

    def __post_init__(self) -> None:
        """Refuse sides that a call does not have."""
        if not self.sides <= {*SIDES}:
            raise ConfigurationError(
                f"check={sorted(self.sides)} may hold only arguments, result or both"
            )

    @classmethod
    def of(
        cls,
        guard: Checker,
        check: Collection[str] | str,
        *,
        policy: Policy | None = None,
        on_flag: OnFlag | None = None,
        fallback: Callable[..., Any] | None = None,
        audit: Audit | None = None,
    ) -> Self:
        """Rules as they are given to a `guard_tool`.

        Raises:
            ConfigurationError: there are no such sides, or flags lead to nothing or to two things.
        """
        sides = frozenset((check,) if isinstance(check, str) else check)
        if not sides:
            raise ConfigurationError(f"check={check!r} must name arguments, result or both")
        reaction = Reaction.of(guard, on_flag, fallback=fallback, policy=policy, audit=audit)
        return cls(reaction, sides)

    @property
    def guard(self) -> Checker:
        """The guard that reads them."""
        return self.reaction.guard

    def settle(
        self, verdict: Verdict, caution: Callable[[str], Any | None] = lambda words: None
    ) -> Settled:
        """What becomes of a call or a result; "flag" means that it is withheld.

        Args:
            verdict: what the guard found.
            caution: a result with a caution before it; None where there is no place for one.
                Arguments have none: a function reads no caution.

        Raises:
            GuardrailViolation, DetectorError: it is withheld under `on_flag="raise"`.
        """
        # The policy's own words are about requests.
        after = self.reaction.settle(verdict, lambda _words: caution(RESULT_CAUTION))
        if after.done == "flag":
            self.reaction.stop(after.verdict)
        return after


def _function(fn: Callable[..., Any], tool: _Tool) -> Callable[..., Any]:
    check = tool.rules.guard.check

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = tool.run(args, kwargs)
        chat = run.call()
        if chat is not None and run.stops(check(chat)):
            return run.instead("arguments")
        try:
            output = fn(*run.bound.args, **run.bound.kwargs)
        except Exception as error:  # its words become the result
            chat = run.failed(error)
            if chat is None or not run.stops(check(chat)):
                raise
            return run.instead("result")
        chat = run.returned(output)
        if chat is not None and run.stops(check(chat)):
            return run.instead("result")
        return run.output

    return call


def _coroutine(fn: Callable[..., Any], tool: _Tool) -> Callable[..., Any]:
    check = tool.rules.guard.acheck

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        run = tool.run(args, kwargs)
        chat = await read_apart(run.call)  # pictures are decoded there
        if chat is not None and run.stops(await check(chat)):
            return await resolved(run.instead("arguments"))
        try:
            output = await fn(*run.bound.args, **run.bound.kwargs)
        except Exception as error:
            chat = run.failed(error)
            if chat is None or not run.stops(await check(chat)):
                raise
            return await resolved(run.instead("result"))
        chat = await read_apart(functools.partial(run.returned, output))
        if chat is not None and run.stops(await check(chat)):
            return await resolved(run.instead("result"))
        return run.output

    return call


@dataclass(frozen=True, slots=True)
class _Tool:
    """One guarded tool."""

    rules: ToolRules
    name: str
    signature: Signature
    injected: frozenset[str]
    fallback: Callable[..., Any] | None
    select_result: Callable[[Any], object] | None

    def refuse_unknown_names(self) -> None:
        """A name that is misspelt would have the parameter read, and its words judged."""
        params = self.signature.parameters
        takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in params.values())
        if not takes_any and (unknown := self.injected - params.keys()):
            raise ConfigurationError(
                f"injected={sorted(unknown)} names no parameter of {self.name}{self.signature}"
            )

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run:
        """One call, its arguments copied: what is checked is what the tool gets."""
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return _Run(self, self.signature.bind(*args, **kwargs))


class _Run:
    """One call of a guarded tool."""

    def __init__(self, tool: _Tool, bound: BoundArguments) -> None:
        self._tool, self._rules, self.bound = tool, tool.rules, bound
        self.output: Any = None
        self._verdict: Verdict | None = None

    def call(self) -> Chat | None:
        """What is checked of the arguments; None: nothing. The arguments become what is judged."""
        if "arguments" not in self._rules.sides:
            return None
        said: dict[str, Any] = {}
        parts: list[dict[str, Any]] = []
        for owner, name in self._written():
            reading = self._read(snapshot(owner[name]), f"the argument {name!r}")
            owner[name] = reading.value
            # A keyword may be called like a parameter that is positional only.
            said[f"**{name}" if name in said else name] = reading.said
            parts += reading.parts
        return call_chat(self._tool.name, said, parts) if said else None

    def returned(self, output: Any) -> Chat | None:
        """What is checked of a result; None: nothing."""
        self.output = snapshot(output)
        if "result" not in self._rules.sides:
            return None
        if (select := self._tool.select_result) is None:
            reading = self._read(self.output, "the result")
            self.output = reading.value
        else:
            reading = self._read(select(self.output), "what select_result gave", stays=True)
        return result_chat(reading.content) if reading.content else None

    def failed(self, error: Exception) -> Chat | None:
        """What is checked of an error; it takes no caution."""
        self.output = None
        words = error_words(error)
        return result_chat(words) if words and "result" in self._rules.sides else None

    def stops(self, verdict: Verdict) -> bool:
        """Whether the call is not made, or its result withheld."""
        after = self._rules.settle(verdict, self._cautioned)
        if after.cautioned is not None:
            self.output = after.cautioned
        LAST.set(after.verdict)
        self._verdict = after.verdict
        return after.done == "flag"

    def instead(self, side: Side) -> Any:
        """What stands for the result."""
        if self._tool.fallback is None:
            return WITHHELD[side]
        return self._tool.fallback(self._verdict, *self.bound.args, **self.bound.kwargs)

    def _cautioned(self, words: str) -> Any | None:
        if self._tool.select_result is not None:  # the result stays as it is
            return None
        return cautioned_result(self.output, words)

    def _written(self) -> list[tuple[dict[str, Any], str]]:
        """Arguments that the model may have written: who holds them, and their names."""
        given, found = self.bound.arguments, list[tuple[dict[str, Any], str]]()
        for place, (name, parameter) in enumerate(self._tool.signature.parameters.items()):
            if name not in given or (place == 0 and name in OWNERS):
                continue
            if parameter.kind is Parameter.VAR_KEYWORD:
                given[name] = dict(given[name])
                found += [(given[name], key) for key in given[name]]
            else:
                found.append((given, name))
        return [(owner, name) for owner, name in found if name not in self._tool.injected]

    def _read(self, value: object, what: str, *, stays: bool = False) -> Reading:
        rules = self._rules.guard.policy
        rules = one_reading(rules) if stays else rules
        return read_value(value, rules, f"{what} of {self._tool.name}")


def _name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__name__", type(fn).__name__))
