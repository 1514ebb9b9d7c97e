"""What a body of either form asks for, as keywords of `Guard.agenerate`.

What would go unheard is refused. Chats and responses have much alike: sampling, tools and which of
them to call, the format of the answer. What only one of them has is in its own module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.asgi.chats import format_text
from guardrail.errors import UnsupportedContentError
from guardrail.front.chats import with_caution
from guardrail.server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guardrail.guard import Guard
    from guardrail.server.schemas import AskedBody

_COLDEST = 0.01  # colder is greedy in effect, and overflows in float32
_CHOICES = ("auto", "none", "required")
_OF_SCHEMAS = ("name", "schema", "strict", "description")


def options_of(
    body: AskedBody, guard: Guard, limit: tuple[str, int | None], default_tokens: int
) -> dict[str, Any]:
    """What both forms call the same; temperatures from 0 to 0.01 count as 0.01, except 0.

    Args:
        body: what was asked for.
        guard: who will answer.
        limit: the most tokens of the answer that the client names, and the field it names them in.
        default_tokens: the most where it names none.

    Raises:
        ApiError: more than the policy allows.
    """
    given: dict[str, Any] = {
        "max_new_tokens": _limit(*limit, guard.policy.limits.new_tokens, default_tokens),
        "temperature": max(body.temperature, _COLDEST) if body.temperature else body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
        "stop": [body.stop] if isinstance(body.stop, str) else body.stop,
    }
    return {name: value for name, value in given.items() if value is not None}


def refuse_unheard(
    body: AskedBody, neutral: Mapping[str, tuple[object, ...]], instead: Mapping[str, str]
) -> None:
    """Nothing that was asked for is passed over.

    Args:
        body: what was asked for.
        neutral: fields that can only be asked for in these forms; None goes everywhere.
        instead: what to do in their place.

    Raises:
        ApiError: a field asks for something that would not happen.
    """
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            raise ApiError(
                f"{name[:80]!r} is no field of this API; leave it out",
                param=name[:80],
                code="unknown_parameter",
            )
    for name, allowed in neutral.items():
        value = getattr(body, name)
        if value is not None and value not in allowed:
            more = f"; {instead[name]}" if name in instead else ""
            raise unsupported(
                name, f"this value of {name} is not supported here; leave it out{more}"
            )


def answers_of(n: int | None, guard: Guard) -> int:
    """How many answers are asked for: no more than run together.

    Raises:
        ApiError: more.
    """
    most = guard.policy.limits.batch
    if n is not None and n > most:
        raise ApiError(
            f"n is {n}; one request here has at most {most} answers",
            param="n",
            code="invalid_value",
        )
    return n or 1


def tool_options(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None, guard: Guard
) -> dict[str, Any]:
    """The tools that the model is shown, none where it may not call any, and which it must call.

    Args:
        tools: in the form of chats.
        choice: `tool_choice` in either form.
        guard: who will answer.

    Raises:
        ApiError: a choice that nobody here knows, or of a tool that is not there.
    """
    chosen, named = _choice(choice)
    tools = tools or []
    for name in named:
        if name not in map(_name_of, tools):
            raise _no_choice(f"the tool {name[:80]!r}, which it names, is not among the tools")
    if named and chosen in _CHOICES:
        tools = [tool for tool in tools if _name_of(tool) in named]
    if chosen == "none" or not tools:
        if chosen == "required":
            raise _no_choice("it asks for a call, and there are no tools")
        return {}
    if not guard.supports_tools:
        raise unsupported("tools", "this model's chat template knows no tools; leave them out")
    return {"tools": tools} | ({} if chosen == "auto" else {"tool_choice": chosen})


def with_format(value: Any, param: str, given: object) -> Any:
    """A chat with the schema that its answer is to have: shown to the model, and judged with it.

    A schema says words as well as a message does, and has the model say them.

    Raises:
        UnsupportedContentError: a chat that has no place for it.
    """
    words = "" if given is None else format_text(param, given)
    shown = with_caution(value, words) if words else value
    if shown is None:
        raise UnsupportedContentError(f"{param} needs a list of messages to go with")
    return shown


def format_options(given: Any, param: str) -> dict[str, Any]:
    """The schema that an answer is held to.

    Args:
        given: `response_format` of a chat, or a response's `text.format`.
        param: the field that it stands in.

    Raises:
        ApiError: another format.
    """
    match given:
        case None | {"type": "text"} if not _more(given, "type"):
            return {}
        case {"type": "json_object"} if not _more(given, "type"):
            return {"json_schema": {"type": "object"}}
        case {"type": "json_schema", "json_schema": dict(inner)} if not _more(
            given, "type", "json_schema"
        ):
            found = inner
        case {"type": "json_schema", "schema": _}:
            found = {key: value for key, value in dict(given).items() if key != "type"}
        case _:
            raise unsupported(param, f"{param} may be text, json_object or json_schema here")
    if _more(found, *_OF_SCHEMAS) or not isinstance(found.get("schema"), dict):
        raise unsupported(
            param, f"{param}: a JSON schema has {', '.join(_OF_SCHEMAS)}; `schema` is an object"
        )
    return {"json_schema": found["schema"]}


def unsupported(param: str, message: str) -> ApiError:
    """A field asks for what this server does not do."""
    return ApiError(message, param=param, code="unsupported_value")


def _choice(choice: str | dict[str, Any] | None) -> tuple[str, list[str]]:
    """Whether or what to call, and which tools are named; of allowed ones the rest is not shown."""
    match choice:
        case None:
            return "auto", []
        case str() if choice in _CHOICES:
            return choice, []
        case {"type": "allowed_tools", "allowed_tools": dict(allowed)} if not _more(
            choice, "type", "allowed_tools"
        ):
            return _allowed(allowed)
        case {"type": "allowed_tools", "mode": mode, "tools": tools} if not _more(
            choice, "type", "mode", "tools"
        ):
            return _allowed({"mode": mode, "tools": tools})
    name = _chosen(choice)
    if name is None or name in _CHOICES:
        raise _no_choice("known are 'auto', 'none', 'required', a function and allowed_tools")
    return name, [name]


def _chosen(choice: object) -> str | None:
    """The function that a choice names, in either form; None where it is none."""
    match choice:
        case {"type": "function", "function": {"name": str(name)} as function}:
            more = _more(choice, "type", "function") or _more(function, "name")
        case {"type": "function", "name": str(name)}:
            more = _more(choice, "type", "name")
        case _:
            return None
    return None if more else name


def _allowed(given: dict[str, Any]) -> tuple[str, list[str]]:
    tools = given.get("tools")
    names = [_chosen(tool) for tool in tools] if isinstance(tools, list) else []
    found = [name for name in names if name is not None]
    if given.get("mode") in ("auto", "required") and found and len(found) == len(names):
        if not _more(given, "mode", "tools"):
            return given["mode"], found
    raise _no_choice("allowed_tools has a mode, 'auto' or 'required', and tools of type function")


def _more(given: object, *known: str) -> bool:
    """Whether an object has other keys than those that are read."""
    return isinstance(given, dict) and bool(given.keys() - set(known))


def _no_choice(why: str) -> ApiError:
    return unsupported("tool_choice", f"this tool_choice is not supported here: {why}")


def _name_of(tool: Mapping[str, Any]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


def _limit(name: str, limit: int | None, allowed: int, default: int) -> int:
    if limit is None:
        return min(default, allowed)
    if limit > allowed:
        raise ApiError(
            f"{name} is {limit}; answers here have at most {allowed} tokens",
            param=name,
            code="invalid_value",
        )
    return limit
