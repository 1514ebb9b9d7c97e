"""Of every token a grammar allows those that an answer in the form goes on with, and no other."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import AddedToken

from guardrail.errors import ConfigurationError, UnsupportedModelError
from guardrail.inputs.messages import to_request
from guardrail.model import constrained
from guardrail.model.constrained import CallForm, Grammar
from guardrail.model.encode import Encoder
from guardrail.model.generate import RowControl, generate_rows
from guardrail.model.load import wrap_model
from guardrail.model.settings import LARGEST_SCHEMA, Settings
from guardrail.policy import Policy
from guardrail.testing import tiny_processor
from tests.online.test_tool_calls import TOOLS

CAT = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Tom", "Mia"]},
        "age": {"minimum": 0, "maximum": 99, "type": "integer"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
# all that CAT allows
CATS = [f'{{"name": "{n}", "age": {a}}}' for n in ("Tom", "Mia") for a in range(100)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_processor("llama")


def grammar_of(tokenizer: Any, schema: Any = None, **options: Any) -> Grammar:
    text = None if schema is None else json.dumps(schema)
    return Grammar(tokenizer, [tokenizer.eos_token_id], schema=text, **options)


def accepts(grammar: Grammar, tokenizer: Any, text: str) -> bool:
    row = grammar.row()
    for token in tokenizer.encode(text, add_special_tokens=False):
        row.take(token)
    return row.error is None and row.complete


def test_a_greedy_answer_is_that_of_a_loop_which_tries_every_token(llama):
    """The reference knows no grammar: it looks for the answers that a token leaves possible."""
    loaded = wrap_model(llama.model, llama.processor)
    tokenizer, eos = llama.tokenizer, llama.tokenizer.eos_token_id
    encoder, pieces = Encoder(loaded), [llama.tokenizer.decode([n]) for n in range(len(tokenizer))]
    request = to_request("which cat?", policy=Policy())
    encoded = encoder.encode([request])
    grammar, seen = grammar_of(tokenizer, CAT), []
    row = grammar.row()

    def masked(scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores.clone())
        return row.masked(scores)

    control = RowControl(on_scores=masked, on_token=row.take)
    settings = Settings(max_new_tokens=40)
    (outcome,) = generate_rows(loaded, encoded, None, settings, [control])

    said, expected = "", []
    for scores in seen:
        allowed = [
            token
            for token, piece in enumerate(pieces)
            if (token == eos and said in CATS)
            or (
                token not in tokenizer.all_special_ids
                and any(cat.startswith(said + piece) for cat in CATS)
            )
        ]
        best = max(allowed, key=lambda token: float(scores[token]))
        expected.append(best)
        if best == eos:
            break
        said += pieces[best]
    assert said in CATS
    assert list(outcome.token_ids) == expected
    assert outcome.finish == "stop"


def test_the_mask_is_what_a_walk_over_all_tokens_finds(tokenizer):
    grammar = grammar_of(tokenizer, CAT)
    for said in ("", '{"na', '{"name": "', '{"name": "Tom", "age": 1', CATS[0]):
        row = grammar.row()
        for token in tokenizer.encode(said, add_special_tokens=False):
            row.take(token)
        kept = row.masked(torch.zeros(len(tokenizer) + 5)).isfinite()
        for token in range(len(tokenizer)):
            longer = said + tokenizer.decode([token])
            goes_on = any(cat.startswith(longer) for cat in (*CATS, '{"name": "Tom", "age": 100}'))
            special = token in tokenizer.all_special_ids
            ends = said in CATS and token == tokenizer.eos_token_id
            assert bool(kept[token]) == (ends if special else goes_on), (said, token)
        assert not kept[len(tokenizer) :].any()  # embeddings without a token


def test_a_token_that_the_form_does_not_go_on_with_is_an_error_of_the_row(tokenizer):
    row = grammar_of(tokenizer, CAT).row()
    assert row.take(tokenizer.encode("x", add_special_tokens=False)[0])
    assert "does not go on with" in str(row.end("x", stopped=True, calls=0))
    early = grammar_of(tokenizer, CAT).row()
    early.take(tokenizer.encode("{", add_special_tokens=False)[0])
    assert "in the middle" in str(early.end("{", stopped=True, calls=0))
    assert grammar_of(tokenizer, CAT).row().end("{", stopped=False, calls=0) is None


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_scores_that_leave_nothing_are_an_error_and_no_token_at_random(tokenizer, bad):
    row = grammar_of(tokenizer, CAT).row()
    scores = torch.full((len(tokenizer),), bad)
    row.masked(scores)
    assert "leave no token" in str(row.error)


def test_rows_of_one_grammar_know_nothing_of_each_other(tokenizer):
    grammar = grammar_of(tokenizer, CAT)
    one, two = grammar.row(), grammar.row()
    for token in tokenizer.encode(CATS[3], add_special_tokens=False):
        one.take(token)
    assert one.complete
    assert not two.complete
    two.take(tokenizer.encode("{", add_special_tokens=False)[0])
    assert two.error is None


@pytest.mark.parametrize(
    ("schema", "text", "valid"),
    [
        # a further property's key must not spell one that has a schema
        ({"properties": {"a": {"type": "string"}}}, '{"\\u0061": 3}', False),
        ({"properties": {"a/b": {"type": "string"}}}, '{"a\\/b": 3}', False),
        ({"properties": {"a": {"type": "string"}}}, '{"b": 3}', True),
        ({"properties": {"\n": {"type": "null"}}, "required": ["\n"]}, '{"\\n": null}', True),
        ({"additionalProperties": False}, '{"a": 1}', False),
    ],
)
def test_keys_are_written_in_one_way(tokenizer, schema, text, valid):
    assert accepts(grammar_of(tokenizer, {"type": "object", **schema}), tokenizer, text) is valid


def test_a_letter_that_an_older_library_lets_through_is_told(tokenizer, monkeypatch):
    monkeypatch.delitem(constrained._JSON, "json_allowed_escapes")
    row = grammar_of(tokenizer, {"type": "object", "properties": {"a": {"type": "null"}}}).row()
    text = '{"\\u0061": 3}'
    for token in tokenizer.encode(text, add_special_tokens=False):
        row.take(token)
    assert row.complete
    assert "spells letters" in str(row.end(text, stopped=True, calls=0))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"not": {"type": "null"}}, r'Unimplemented keys: \["not"\]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"anyOf": [{"type": "string", "pattern": "a(?=b)"}]}, "look-around"),
        ({"$ref": "https://example.org/s.json"}, "not present in a registry"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "nothing is valid under it"),
        ({"enum": []}, "Unsatisfiable"),
        ({"enum": ["a\x01b"]}, "control characters"),
        ({"properties": {"a\x7f": {}}}, "control characters"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_before_anything_runs(tokenizer, schema, why):
    with pytest.raises(ConfigurationError, match=why):
        grammar_of(tokenizer, schema)


MANY = [{"type": "string", "pattern": f".*a.{{{n}}}b.*"} for n in range(9)]


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"allOf": MANY}, "have 9 patterns"),
        ({"anyOf": [{"$ref": "#/$defs/a", "pattern": "x"}], "$defs": {"a": MANY}}, "10 patterns"),
        ({"properties": {"a": {"$ref": "#/$defs/a", "properties": {}}}, "x": MANY}, "9 patterns"),
        ({"multipleOf": 200_003}, "200003"),
        ({"multipleOf": 0.0200003}, "200003"),
        ({"allOf": [{"multipleOf": 499}, {"multipleOf": 503}]}, "250997"),
    ],
)
def test_what_would_take_minutes_is_refused_at_once(tokenizer, schema, why):
    with pytest.raises(ConfigurationError, match=why):
        grammar_of(tokenizer, schema)


def test_patterns_that_do_not_meet_may_be_many(tokenizer):
    named = {f"p{n}": {"anyOf": [one, {"type": "null"}]} for n, one in enumerate(MANY)}
    grammar_of(tokenizer, {"type": "object", "properties": named})
    grammar_of(tokenizer, {"type": "number", "multipleOf": 0.01})


def test_a_schema_may_hold_backslashes_before_what_looks_like_a_control_character(tokenizer):
    assert accepts(grammar_of(tokenizer, {"const": "\\u0001"}), tokenizer, '"\\\\u0001"')


def test_a_tokenizer_that_cannot_be_read_is_no_fault_of_the_request():
    class Slow:
        eos_token_id = 1

        def __len__(self):
            return 2

    with pytest.raises(UnsupportedModelError, match=r"\(Slow\) cannot be read.*fast tokenizer"):
        grammar_of(Slow(), {"type": "null"})


def test_a_tokenizer_that_gets_new_tokens_is_read_again():
    own = tiny_processor("llama")
    grammar_of(own, CAT)
    own.add_tokens([AddedToken('"Tom"', special=False)])
    new = own.convert_tokens_to_ids('"Tom"')
    row = grammar_of(own, CAT).row()
    assert row.masked(torch.zeros(len(own))).shape == (new + 1,)


# ---- calls


def test_a_call_is_of_a_tool_on_offer_and_its_arguments_are_valid(tokenizer):
    tools = [
        {"type": "function", "function": {"name": "find", "parameters": CAT}},
        {"type": "function", "function": {"name": 'say "hi"\n'}},
        {"type": "function", "function": {"name": "go", "parameters": {"properties": {"a": {}}}}},
    ]
    form = CallForm("<tool_call>\n", "\n</tool_call>", marks=("<tool_call>", "</tool_call>"))
    grammar = grammar_of(tokenizer, form=form, tools=tools)

    def called(name: str, arguments: str) -> bool:
        call = f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'
        return accepts(grammar, tokenizer, f"<tool_call>\n{call}\n</tool_call>")

    assert called("find", CATS[5])
    assert called('say "hi"\n', "{}")
    assert called("go", '{"a": [1]}')
    assert not called("go", '{"b": 1}')  # a function takes no arguments but its own
    assert not called("find", "{}")
    assert not called("add", CATS[5])
    assert not called('say "hi"\n', '{"a": 1}')
    assert not accepts(grammar, tokenizer, CATS[5])


def test_marks_that_are_special_tokens_are_one_token_in_the_answer():
    own = tiny_processor("llama")
    own.add_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    mark = own.convert_tokens_to_ids("[TOOL_CALLS]")
    form = CallForm("[TOOL_CALLS] [", "]", marks=("[TOOL_CALLS]",))
    grammar = grammar_of(own, form=form, tools=TOOLS)
    row = grammar.row()
    assert row.masked(torch.zeros(len(own))).isfinite().nonzero().flatten().tolist() == [mark]
    text = '[TOOL_CALLS] [{"name": "find", "arguments": {}}]'
    ids = own.encode(text, add_special_tokens=False)
    assert ids[0] == mark
    for token in ids:
        row.take(token)
    assert row.called
    assert grammar.decode([*ids, own.eos_token_id]) == text


def test_an_answer_or_a_call_is_told_apart_by_what_was_written(tokenizer):
    loose = {"type": "object", "additionalProperties": True}
    one = [{"type": "function", "function": {"name": "find", "parameters": CAT}}]
    grammar = grammar_of(tokenizer, loose, form=CallForm(), tools=one)

    def called(text: str) -> bool:
        row = grammar.row()
        for token in tokenizer.encode(text, add_special_tokens=False):
            row.take(token)
        assert row.complete
        return row.called

    assert called(f'{{"name": "find", "arguments": {CATS[0]}}}')
    assert not called('{"name": "fine"}')
    assert not called('{"name": "find", "arguments": {}}')  # valid under the schema, and no call


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"type": "string"}, "describe no object"),
        (True, "describe no object"),
        ({"properties": {"a": {"uniqueItems": True}}}, "uniqueItems"),
        ({"description": "x" * LARGEST_SCHEMA}, "are allowed"),
    ],
)
def test_parameters_that_no_arguments_can_be_held_to_are_refused(tokenizer, parameters, why):
    tools = [{"type": "function", "function": {"name": "find", "parameters": parameters}}]
    with pytest.raises(ConfigurationError, match=why):
        grammar_of(tokenizer, form=CallForm(), tools=tools)


def test_references_in_parameters_are_to_the_parameters(tokenizer):
    schema = {
        "properties": {"q": {"$ref": "#/$defs/q"}},
        "required": ["q"],
        "$defs": {"q": {"enum": ["a"]}},
        "additionalProperties": False,
    }
    other = schema | {"$defs": {"q": {"enum": ["b"]}}}
    named = (("find", schema), ("add", other))
    tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in named]
    grammar = grammar_of(tokenizer, form=CallForm(key="parameters"), tools=tools)
    for name, value in (("find", "a"), ("add", "b")):
        good, bad = ("a", "b") if value == "a" else ("b", "a")
        call = f'{{"name": "{name}", "parameters": {{"q": "%s"}}}}'
        assert accepts(grammar, tokenizer, call % good)
        assert not accepts(grammar, tokenizer, call % bad)


def test_the_schema_that_masks_is_the_one_that_validates(tokenizer):
    jsonschema.Draft202012Validator(CAT).validate(json.loads(CATS[7]))
    assert accepts(grammar_of(tokenizer, CAT), tokenizer, CATS[7])
    assert not accepts(grammar_of(tokenizer, CAT), tokenizer, re.sub("Tom", "Tim", CATS[7]))
