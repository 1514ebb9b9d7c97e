"""Answers in a form that was asked for: what a grammar leaves of a row's tokens, step by step.

A grammar is made of JSON schemas (by llguidance, extra `structured`) before the model runs; what it
cannot keep to is refused then. While the row grows it masks every token that no answer in the form
goes on with, so that neither sampling nor steering can leave it. The same tokens are read back:
whatever chose them, one that the grammar does not know ends the row with an error.

JSON is written as `json.dumps` writes it, on one line with `", "` and `": "`: a model that may
choose white space may go on with it for ever.
"""

from __future__ import annotations

import json
import math
import re
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from guardrail.errors import ConfigurationError, ModelError, UnsupportedModelError
from guardrail.extras import require
from guardrail.inputs.strict_json import strict_json
from guardrail.inputs.tools import closed
from guardrail.model.settings import LARGEST_SCHEMA, json_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

# `lenient` would leave out what is not known of a schema, and letters written as `\u0061` in the
# keys of further properties would be those of a property that has a schema.
_JSON = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
    "json_allowed_escapes": 'nrbtf\\"',
}
# Control characters in JSON text. Those that JSON has a letter for may stand in a schema; of others
# llguidance, without `\u`, would leave words out.
_UNWRITTEN = re.compile(r"(?<!\\)(?:\\\\)*\\u00(?:0[0-7bef]|1[0-9a-f]|7f)")
# What llguidance masks from 1.8 on, and vLLM's older one does not.
_SPELLED = re.compile(r"(?<!\\)(?:\\\\)*\\[u/]")
_ASSERTING = frozenset(
    {"pattern", "format", "properties", "patternProperties", "additionalProperties"}
    | {"items", "prefixItems", "enum", "const", "minLength", "maxLength"}
)
_MOST_PATTERNS = 8
_LARGEST_STEP = 50_000
_LONGEST_REASON = 300  # characters
_EVERY_TOKEN = "the model's generation config or scores leave no token that the form goes on with"

# Reading a tokenizer takes up to a second, so one is read once, as long as it stays as it is.
_READ: WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = WeakKeyDictionary()
_READING = threading.Lock()


@dataclass(frozen=True, slots=True)
class CallForm:
    """How a model writes a call: a JSON object with `name` and `key`, between two texts.

    `marks` are the texts in them that a tokenizer may have a special token for.
    """

    before: str = ""
    after: str = ""
    key: str = "arguments"
    marks: tuple[str, ...] = ()


class Grammar:
    """What an answer may be: JSON under a schema, a call of a tool, or either."""

    def __init__(
        self,
        tokenizer: Any,
        eos: Iterable[int],
        *,
        schema: str | None = None,
        form: CallForm | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`schema` is JSON text; calls are of these `tools`, in their `form`.

        Raises:
            MissingExtraError: llguidance is not installed.
            UnsupportedModelError: the tokenizer cannot be read.
            ConfigurationError: a schema asks for what cannot be kept to, or for too much.
        """
        self.tokens = _tokens(tokenizer, eos)
        self._marks: dict[int, str] = {}
        rules: dict[str, str] = {}
        what = []
        if schema is not None:
            rules["answer"] = _json_rule(_writable(json.loads(schema), "the schemas"))
            what.append("`json_schema`")
        if form is not None:
            self._marks = _special(self.tokens, tokenizer, form.marks)
            rules |= _call_rules(form, tools, self._marks)
            what.append("the tools' parameters")
        starts = " | ".join(name for name in ("answer", "call") if name in rules)
        self.lark = _lark({"start": starts, **rules})
        self._whole = self._matcher(self.lark, " or ".join(what))
        self._call: Any = None
        if form is not None:
            calls = {name: rule for name, rule in rules.items() if name != "answer"}
            self._call = self._matcher(_lark({"start": "call", **calls}), what[-1])

    @property
    def has_calls(self) -> bool:
        """Whether an answer may be a call."""
        return self._call is not None

    def row(self) -> ConstrainedRow:
        """A new answer, of which nothing is written yet."""
        call = None if self._call is None else self._call.deep_copy()
        return ConstrainedRow(self, self._whole.deep_copy(), call)

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens to the text that the grammar read, with the marks of calls in it."""
        read: bytes = b"".join(
            self.tokens.decode_bytes([token])
            for token in ids
            if token in self._marks or not self.tokens.is_special_token(token)
        )
        return read.decode(errors="replace")

    def _matcher(self, lark: str, what: str) -> Any:
        library = require("llguidance")
        quiet = library.LLParserLimits(verbose_errors=False)
        grammar = library.LLMatcher.grammar_from_lark(lark)
        made = library.LLMatcher(self.tokens, grammar, log_level=0, limits=quiet)
        begins = any(made.compute_logit_bias())  # an error makes a mask, too
        if made.is_error() or not begins:
            raise _refused(what, str(made.get_error() or "no answer begins like that"))
        return made


class ConstrainedRow:
    """One answer while it grows; `error` says why it is none, once it is."""

    def __init__(self, grammar: Grammar, whole: Any, call: Any) -> None:
        self._grammar, self._whole, self._call = grammar, whole, call
        self.decode, self._ids = grammar.decode, list[int]()
        self.complete = False
        self.error: ModelError | None = None

    @property
    def called(self) -> bool:
        """Whether the answer is a complete call."""
        return self.complete and self._call is not None and bool(self._call.is_accepting())

    def masked(self, scores: Tensor) -> Tensor:
        """Scores of the next token, (vocab,), with -inf for those that no answer goes on with."""
        if self.error is not None:
            return scores
        allowed = torch.frombuffer(bytearray(self._whole.compute_logit_bias()), dtype=torch.uint8)
        if self._whole.is_error():
            self._fail(f"the form is too much to follow: {self._whole.get_error()}")
            return scores
        known = min(len(allowed), scores.shape[-1])  # embeddings may be more than there are tokens
        left = torch.full_like(scores, -torch.inf)
        left[:known] = scores[:known].masked_fill(
            allowed[:known].to(scores.device) == 0, -torch.inf
        )
        if not bool((left > -torch.inf).any()):  # NaN and -inf land here
            self._fail(_EVERY_TOKEN)
            return scores
        return left

    def take(self, token: int) -> bool:
        """One more token; true when nothing can follow it, or `error` says that it is none."""
        if self.error is None and not self._whole.consume_token(token):
            self._fail("a token was chosen that the form does not go on with")
        if self.error is not None:
            return True
        self._ids.append(token)
        if self._call is not None and not self._call.consume_token(token):
            self._call = None
        self.complete = bool(self._whole.is_accepting())
        return bool(self._whole.is_stopped())

    def end(self, text: str, *, stopped: bool, calls: int) -> ModelError | None:
        """Why an answer that has `stopped` by itself, as it was read, is not to be given out."""
        if self.error is not None or not stopped:
            return self.error
        if not self.complete:
            self._fail("the model stopped in the middle of it")
        elif _SPELLED.search(self.decode(self._ids)):
            self._fail("it spells letters by their numbers, and keys are read in one way only")
        elif self.called and not calls:
            self._fail("its call cannot be read back")
        elif not self.called:
            try:
                strict_json(text)
            except (ValueError, RecursionError) as problem:
                self._fail(str(problem) or "it is nested too deep")
        return self.error

    def _fail(self, why: str) -> None:
        self.error = ModelError(
            f"the model gave no answer in the form that was asked for: {why[:_LONGEST_REASON]}"
        )


def _tokens(tokenizer: Any, eos: Iterable[int]) -> Any:
    """The tokenizer as llguidance reads it."""
    ends = sorted(eos) or [tokenizer.eos_token_id]
    library, state = require("llguidance.hf"), (len(tokenizer), *ends)
    with _READING:
        known = _READ.setdefault(tokenizer, {})
        if state not in known:
            try:
                known[state] = library.from_tokenizer(tokenizer, eos_token=ends)
            except Exception as error:  # whatever it meets in another's files
                raise UnsupportedModelError(
                    f"the tokenizer of this model ({type(tokenizer).__name__}) cannot be read for "
                    f"constrained decoding: {str(error)[:_LONGEST_REASON]}; load a model with a "
                    "fast tokenizer, or ask without `json_schema` and forced calls"
                ) from error
        return known[state]


def _special(tokens: Any, tokenizer: Any, marks: Collection[str]) -> dict[int, str]:
    """Special tokens that stand for marks, which no text in a grammar would match."""
    pairs = ((tokenizer.convert_tokens_to_ids(mark), mark) for mark in marks)
    return {
        token: mark
        for token, mark in pairs
        if isinstance(token, int)
        and tokens.is_special_token(token)
        and tokens.decode_bytes([token]).decode(errors="replace") == mark
    }


def _call_rules(
    form: CallForm, tools: Sequence[Mapping[str, Any]], special: Mapping[int, str]
) -> dict[str, str]:
    objects = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        what = f"the parameters of the tool {function['name']!r}"
        arguments = _arguments(function.get("parameters"), what)
        arguments["$id"] = f"urn:guardrail:tool:{number}"  # what `#` in its references means
        objects.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    form.key: _writable(arguments, what),
                },
                "required": ["name", form.key],
                "additionalProperties": False,
            }
        )
    parts = (*_text(form.before, special), "called", *_text(form.after, special))
    return {"call": " ".join(parts), "called": _json_rule({"anyOf": objects})}


def _arguments(schema: Any, what: str) -> dict[str, Any]:
    """A tool's parameters as a schema of objects, which is all that arguments can be.

    A function takes no arguments but its own.
    """
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kinds = schema.get("type", "object") if isinstance(schema, dict) else None
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise ConfigurationError(
            f"{what} describe no object, and arguments are always one; write "
            '{"type": "object", "properties": {...}}'
        )
    return {**closed(schema), "type": "object"}


def _text(text: str, special: Mapping[int, str]) -> list[str]:
    """A text in a grammar's words, special tokens by their numbers."""
    for token, mark in special.items():
        before, found, after = text.partition(mark)
        if found:
            return [*_text(before, special), f"<[{token}]>", *_text(after, special)]
    return [json.dumps(text, ensure_ascii=False)] if text else []


def _writable(schema: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """A schema that is not too large, and holds nothing that would be left out."""
    text = json_text(schema)
    if len(text) > LARGEST_SCHEMA:
        raise ConfigurationError(
            f"{what} take {len(text)} characters; {LARGEST_SCHEMA} are allowed: ask for less"
        )
    if _UNWRITTEN.search(text):
        raise ConfigurationError(f"{what} hold control characters, which no answer is held to")
    _require_quick(schema, what)
    return schema


def _require_quick(schema: Mapping[str, Any], what: str) -> None:
    """Refuse what llguidance, which bounds all else, would work on for minutes.

    Patterns that must all match take four times as long with each one more, and multiples take time
    in proportion to their number.
    """
    texts, steps, joins = set[str](), set[int](), False
    for node in _nodes(schema):
        texts |= {node[name] for name in ("pattern", "format") if isinstance(node.get(name), str)}
        if isinstance(several := node.get("patternProperties"), dict):
            texts |= several.keys()
        if isinstance(step := node.get("multipleOf"), int | float):
            digits = Decimal(str(step)).normalize().as_tuple().digits
            steps.add(max(int("".join(map(str, digits))), int(step)))
        other = [name for name in ("$ref", "allOf", "anyOf", "oneOf") if name in node]
        both = isinstance(node.get("allOf"), list) and len(node["allOf"]) > 1
        joins = joins or both or len(other) > 1 or bool(other and _ASSERTING & node.keys())
    if joins and len(texts) > _MOST_PATTERNS:
        raise ConfigurationError(
            f"{what} join schemas (`allOf`, or keywords beside a `$ref` or `anyOf`) and have "
            f"{len(texts)} patterns and formats; {_MOST_PATTERNS} are allowed where some join"
        )
    if math.prod(steps) > _LARGEST_STEP:
        raise ConfigurationError(
            f"{what} ask for multiples of numbers whose product is {math.prod(steps)}; "
            f"{_LARGEST_STEP} is allowed"
        )


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All that is an object in JSON values, schemas among them."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as node:
                yield node
                waiting += node.values()
            case list() as items:
                waiting += items


def _json_rule(schema: Mapping[str, Any]) -> str:
    """A schema as it stands in a grammar, with our way to write JSON."""
    return f"%json {json_text({**schema, 'x-guidance': _JSON})}"


def _lark(rules: Mapping[str, str]) -> str:
    lines = (f"{name}: {rule}" for name, rule in rules.items())
    return "\n".join(("%llguidance {}", *lines))


def _refused(what: str, why: str) -> ConfigurationError:
    told = " ".join((why.partition("compile JSON schema: ")[2] or why).split())
    told = told.removesuffix(" <non-verbose/>").replace(
        "NoExtensionBias", "nothing is valid under it"
    )
    return ConfigurationError(
        f"no answer can be held to {what}: {told[:_LONGEST_REASON]}; ask for a schema without it"
    )
