"""Structured output: schemas in all forms that LangChain takes, and what answers are read as.

A refusal is no answer in a form, and raises; an answer that was cut off is none yet, and is not
handed out as one, though LangChain's own parsers would make do with half an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import RunnableGenerator, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from guardrail.errors import ConfigurationError
from guardrail.inputs.tools import closed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.messages import AIMessage
    from langchain_core.runnables import Runnable

METHODS = ("json_schema", "function_calling", "json_mode")

# Schemas of tools; any other dictionary is a JSON schema already.
_TOOLS = {"function", "parameters", "input_schema"}


def json_schema(schema: Any, *, strict: bool | None = None) -> dict[str, Any]:
    """A class, a tool's schema or a JSON schema as a JSON schema.

    Objects of a class have no keys but its own, and with `strict` all have none but those named.

    Raises:
        ConfigurationError: it is none of these.
    """
    if is_model(schema):
        made = schema.model_json_schema() if issubclass(schema, BaseModel) else schema.schema()
    elif isinstance(schema, dict) and not _TOOLS & schema.keys():
        return closed(schema) if strict else schema
    else:
        try:
            made = convert_to_json_schema(schema, strict=strict)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"no form for structured output: {error}") from error
    return closed(made)


def of_response_format(given: Any) -> dict[str, Any] | None:
    """The schema in OpenAI's `response_format`, which agents bind; None where any text will do.

    Raises:
        ConfigurationError: it has another shape.
    """
    match given:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": Mapping() as schema}}:
            return dict(schema)
        case _:
            raise ConfigurationError(
                "response_format is {'type': 'json_schema', 'json_schema': {'schema': {...}}}, or "
                f"of the type json_object or text; got {given!r:.200}"
            )


def is_model(schema: Any) -> bool:
    """Whether it is a class of pydantic's."""
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def parsed(
    model: Runnable[Any, AIMessage], schema: Any, *, calls: bool, include_raw: bool
) -> Runnable[Any, Any]:
    """The model with its answers read; with `include_raw` an answer that is none is told of."""
    reader: Any
    if calls and is_model(schema):
        reader = PydanticToolsParser(tools=[schema], first_tool_only=True)
    elif calls:
        name = convert_to_openai_tool(schema)["function"]["name"]
        reader = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    elif is_model(schema):
        reader = PydanticOutputParser(pydantic_object=schema)
    else:
        reader = JsonOutputParser()
    reader = RunnableGenerator(_whole, _awhole) | reader
    steps: Runnable[Any, Any] = model | reader
    if not include_raw:
        return steps
    read = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | reader, parsing_error=lambda _: None
    )
    unread = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | read.with_fallbacks([unread], exception_key="parsing_error")


def _whole(answers: Iterator[AIMessage]) -> Iterator[AIMessage]:
    for answer in answers:
        yield _uncut(answer)


async def _awhole(answers: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    async for answer in answers:
        yield _uncut(answer)


def _uncut(answer: AIMessage) -> AIMessage:
    if answer.response_metadata.get("finish_reason") == "length":
        raise OutputParserException(
            "the answer was cut off before its form was complete; allow more tokens (max_tokens)",
            llm_output=str(answer.content),
        )
    return answer
