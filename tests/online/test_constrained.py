"""Answers in a form, from a guard: valid whatever the model, the edit and the company of a row."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from guardrail import Guard
from guardrail.errors import (
    ConfigurationError,
    GuardrailViolation,
    MissingExtraError,
    ModelError,
    RequestCancelledError,
    UnsupportedModelError,
)
from guardrail.model.encode import Encoder
from guardrail.online.tool_calls import call_form
from guardrail.policy import Limits
from guardrail.testing import scripted, tiny_artefact, tiny_model, tiny_processor
from guardrail.types import Action, Result
from tests.online.schemas import schemas
from tests.online.test_tool_calls import TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator

CAT = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Mia"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK = [{"type": "function", "function": {"name": "ask", "parameters": CAT}}]
ROOM = Limits(batch=24, timeout_s=None)


def valid(text: str, schema: Any = CAT) -> Any:
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


@pytest.fixture(scope="module")
def steering(llama) -> Iterator[Guard]:
    """Every request is moved, unless no edit can reach it."""
    artefact = tiny_artefact(llama.model, llama.processor, tau_steer=-9, tau_flag=9)
    with Guard((llama.model, llama.processor), artefact) as guard:
        yield guard.with_policy(guard.policy.model_copy(update={"limits": ROOM}))


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The sizes of the batches that models run meanwhile."""
    from guardrail.online import engine

    sizes: list[int] = []
    run = engine.generate_rows

    def noted(loaded: Any, encoded: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(encoded.kinds))
        return run(loaded, encoded, *args, **options)

    monkeypatch.setattr(engine, "generate_rows", noted)
    return sizes


@pytest.fixture(scope="module")
def own_llava(llava) -> Any:
    model, processor = tiny_model("llava")  # scripts run on it
    return llava._replace(model=model, processor=processor)


def fed_by(tokenizer: Any) -> Any:
    return SimpleNamespace(processor=tokenizer, tokenizer=tokenizer, source="x")


def together(guard: Guard, *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """Answers to requests with options of their own, which wait for each other."""

    async def ask() -> list[Any]:
        waits = (guard.agenerate(words, **options) for words, options in asked)
        return await asyncio.gather(*waits, return_exceptions=True)

    return asyncio.run(ask())


def test_two_hundred_random_schemas_have_valid_answers_or_a_clear_error(llama, guard_on, steering):
    passing = guard_on(llama, limits=ROOM)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=10,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(schemas(), min_size=20, max_size=20))
    def answers(each: list[Any]) -> None:
        steered = len(each) // 4
        for guard, some in ((passing, each), (steering, each[:steered])):
            asked = [
                (f"{n}?", {"json_schema": s, "max_new_tokens": 40}) for n, s in enumerate(some)
            ]
            for schema, found in zip(some, together(guard, *asked), strict=True):
                seen[told(schema, found)] += 1

    def told(schema: Any, found: Any) -> str:
        if not isinstance(found, Result):
            assert isinstance(found, ConfigurationError | ModelError), found
            assert (
                "held to" in str(found)
                or "control characters" in str(found)
                or ("no answer in the form" in str(found))
            )
            return "refused" if isinstance(found, ConfigurationError) else "failed"
        if found.refused_by_guard:
            return "flagged"
        if found.finish_reason == "stop":
            valid(found.text, schema)
            return str(found.verdict.action)
        assert found.finish_reason == "length"
        return "length"

    answers()
    assert sum(seen.values()) == 250
    assert seen["pass"] > 80
    assert seen["steer"] > 15
    assert seen["failed"] < 5


def test_an_answer_in_a_form_leaves_its_companions_their_tokens(llama, guard_on, batches):
    guard = guard_on(llama, limits=Limits(batch_wait_s=0.3))
    words = ["tell me about the cat", "what is this?", "how?", "a dog"]
    plain = {"max_new_tokens": 12}
    formed = [
        {"json_schema": CAT, "max_new_tokens": 40},
        {"json_schema": {"const": [1, 2]}, "max_new_tokens": 5, "logprobs": 1},
    ]
    alone = [guard.generate(each, **plain) for each in words[:2]]
    held = [guard.generate(each, **how) for each, how in zip(words[2:], formed, strict=True)]
    batches.clear()
    options = [plain, plain, *formed]
    found = together(guard, *zip(words, options, strict=True))
    assert max(batches) > 1
    assert sum(batches) == 4
    assert [each.token_ids for each in found] == [each.token_ids for each in (*alone, *held)]
    valid(found[2].text)
    assert (found[3].text, found[3].finish_reason) == ("[1, 2", "length")
    assert [each.logprobs is None for each in found] == [True, True, True, False]


def test_a_row_that_is_given_up_or_fails_ends_alone(own_llava, guard_on, batches):
    guard = guard_on(own_llava, limits=Limits(batch_wait_s=0.3))
    plain = guard.generate("a dog", max_new_tokens=12)

    async def ask() -> list[Any]:
        waits = [
            asyncio.ensure_future(guard.agenerate("cat", json_schema=CAT, max_new_tokens=500)),
            asyncio.ensure_future(guard.agenerate("the", json_schema={"type": "string"})),
            asyncio.ensure_future(guard.agenerate("a dog", max_new_tokens=12)),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[1].cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    formed, gone, other = asyncio.run(ask())
    valid(formed.text)
    assert isinstance(gone, asyncio.CancelledError | RequestCancelledError)
    assert other.token_ids == plain.token_ids


def test_a_script_that_leaves_the_form_is_an_error_and_on_record_as_one(own_llava, guard_on):
    record: list[Any] = []
    guard = guard_on(own_llava, audit=lambda verdict, facts: record.append(facts))
    with scripted(own_llava.model, own_llava.processor, lambda _: '{"name": "Tim"'):
        with pytest.raises(ModelError, match="no answer in the form that was asked for"):
            guard.generate("hi", json_schema=CAT)
        with pytest.raises(ModelError, match="no answer in the form"):
            list(guard.stream("hi", json_schema=CAT))
    assert [facts.get("finish_reason") for facts in record] == [None, "error"] * 2
    with scripted(own_llava.model, own_llava.processor, lambda _: '{"name": "Mia", "age": 4}'):
        assert valid(guard.generate("hi", json_schema=CAT).text) == {"name": "Mia", "age": 4}


def test_keys_that_stand_twice_are_no_answer(own_llava, guard_on):
    guard = guard_on(own_llava)
    with (
        scripted(own_llava.model, own_llava.processor, lambda _: '{"a": 1, "a": 2}'),
        pytest.raises(ModelError, match="a key stands twice"),
    ):
        guard.generate("hi", json_schema={"type": "object"})


def test_sampled_answers_are_valid_and_follow_their_seed(llama, guard_on):
    guard = guard_on(llama)
    found = [
        guard.generate("hi", json_schema=CAT, temperature=3.0, seed=seed, max_new_tokens=60)
        for seed in (1, 1, 2, 3)
    ]
    assert all(valid(each.text) for each in found)
    assert found[0].text == found[1].text
    assert len({each.text for each in found}) > 1


def test_a_steered_answer_is_valid_and_was_moved(llama, guard_on):
    schema = {"type": "array", "items": {"enum": list(range(1000))}, "minItems": 4, "maxItems": 4}
    guards = {action: guard_on(llama, action) for action in (Action.PASS, Action.STEER)}
    found = {
        action: guard.generate("tell me", json_schema=schema, max_new_tokens=60, logprobs=0)
        for action, guard in guards.items()
    }
    for action, result in found.items():
        assert result.verdict.action is action
        valid(result.text, schema)
    passed, steered = (found[action].logprobs[0].logprob for action in guards)
    assert abs(passed - steered) > 0.1


def test_streams_and_results_have_the_same_text(llama, guard_on):
    guard = guard_on(llama)
    whole = guard.generate("hi", json_schema={"type": "string", "maxLength": 9})
    stream = guard.stream("hi", json_schema={"type": "string", "maxLength": 9})
    assert "".join(stream) == whole.text
    assert stream.result == whole


def test_a_flagged_request_is_refused_and_in_no_form(llama, guard_on):
    asked = ({"json_schema": CAT}, {"tools": ASK, "tool_choice": "required"})
    for options in asked:
        refused = guard_on(llama, Action.FLAG).generate("hi", logprobs=1, **options)
        assert refused.refused_by_guard
        assert (refused.tool_calls, refused.logprobs) == ((), ())
        with pytest.raises(GuardrailViolation):
            guard_on(llama, Action.FLAG, on_flag="raise").generate("hi", **options)


# ---- calls


@pytest.mark.parametrize("action", [Action.PASS, Action.STEER])
@pytest.mark.parametrize(("choice", "names"), [("required", {"ask", "find"}), ("ask", {"ask"})])
def test_a_forced_call_is_one_with_valid_arguments(llava, guard_on, action, choice, names):
    guard = guard_on(llava, action)
    asked = {"tools": [*ASK, TOOLS[0]], "tool_choice": choice, "max_new_tokens": 300}
    for words in ("what is this?", "tell me about the cat"):
        found = guard.generate(words, **asked)
        if found.finish_reason == "length":
            assert found.tool_calls == ()
            continue
        (call,) = found.tool_calls
        assert found.text == ""
        assert call.name in names
        if call.name == "ask":
            valid(json.dumps(call.arguments))
    assert [*guard.stream("what is this?", **(asked | {"tool_choice": "ask"}))] == []


def test_a_call_that_is_cut_off_is_none(llava, guard_on):
    found = guard_on(llava).generate("hi", tools=ASK, tool_choice="ask", max_new_tokens=30)
    assert (found.finish_reason, found.tool_calls) == ("length", ())


def test_with_a_schema_and_tools_an_answer_is_one_or_the_other(own_llava, guard_on):
    guard = guard_on(own_llava)
    call = '<tool_call>\n{"name": "ask", "arguments": {"name": "Tom", "age": 1}}\n</tool_call>'
    said = {call: "", '"<tool_call>"': '"<tool_call>"'}
    for script, text in said.items():
        with scripted(own_llava.model, own_llava.processor, lambda _, s=script: s):
            found = guard.generate("hi", tools=ASK, json_schema={"type": "string"})
        assert found.text == text
        assert len(found.tool_calls) == (not text)


def test_none_shows_the_model_no_tool_and_reads_no_call(own_llava, guard_on):
    guard, call = guard_on(own_llava), '{"name": "find", "arguments": {}}'
    with scripted(own_llava.model, own_llava.processor, lambda _: call):
        found = guard.generate("hi", tools=TOOLS, tool_choice="none")
        auto = guard.generate("hi", tools=TOOLS, tool_choice="auto")
    assert (found.text, found.tool_calls) == (call, ())
    assert len(auto.tool_calls) == 1
    assert found.prompt_tokens == guard.generate("hi", max_new_tokens=1).prompt_tokens


MISTRAL = (
    "{% for m in messages %}{% if m['tool_calls'] %}[TOOL_CALLS] ["
    "{% for c in m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}]"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{{ tools }}"
)
LLAMA = MISTRAL.replace("[TOOL_CALLS] [", "<|python_tag|>").replace("endfor %}]", "endfor %}")
PARAMETERS = LLAMA.replace(
    "{{ c['function'] | tojson }}",
    '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}',
)
BARE = PARAMETERS.replace("<|python_tag|>", "")
UNREAD = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ tools }}"
NEWER = MISTRAL.replace("{{ c['function'] | tojson }}", "{{ c.function.name }}[ARGS]")


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, ("<tool_call>\n", "\n</tool_call>", "arguments")),
        (MISTRAL, ("[TOOL_CALLS] [", "]", "arguments")),
        (LLAMA, ("<|python_tag|>", "", "arguments")),
        (PARAMETERS, ("<|python_tag|>", "", "parameters")),
        (BARE, ("", "", "parameters")),
        (UNREAD, ("", "", "arguments")),
        (NEWER, ("", "", "arguments")),
    ],
)
def test_a_call_is_written_as_the_models_template_does(template, form):
    tokenizer: Any = tiny_processor("llama")
    if template is not None:
        tokenizer.chat_template = template
    encoder = Encoder(fed_by(tokenizer))
    found = call_form(encoder, tokenizer, TOOLS)
    assert (found.before, found.after, found.key) == form


def test_a_model_whose_own_template_reads_calls_in_another_way_is_told():
    tokenizer: Any = tiny_processor("llama")
    reads = SimpleNamespace(
        response_template="x", parse_response=lambda *_, **__: {}, decode=tokenizer.decode
    )
    with pytest.raises(UnsupportedModelError, match="a template of its own"):
        call_form(Encoder(fed_by(tokenizer)), reads, TOOLS)


# ---- what is refused, before the model runs


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"json_schema": {"not": {}}}, ConfigurationError, "Unimplemented keys"),
        ({"json_schema": 3}, ConfigurationError, "a schema is a mapping"),
        ({"json_schema": {"enum": ["x" * 70_000]}}, ConfigurationError, "65536 are allowed"),
        ({"json_schema": {"a": {1, 2}}}, ConfigurationError, "no JSON"),
        ({"json_schema": CAT, "stop": ["x"]}, ConfigurationError, "stop string"),
        ({"json_schema": CAT, "num_beams": 2}, ConfigurationError, "beams"),
        ({"logprobs": 1, "num_beams": 2}, ConfigurationError, "beams"),
        ({"logprobs": 21}, ConfigurationError, "20"),
        ({"tool_choice": "required"}, ConfigurationError, "no tools"),
        ({"tool_choice": "required", "tools": []}, ConfigurationError, "no tools"),
        ({"tool_choice": "add", "tools": ASK}, ConfigurationError, "names no tool.*ask"),
        ({"tool_choice": ""}, ConfigurationError, "tool_choice"),
        ({"tool_choice": "ask", "tools": ASK, "stop": ["x"]}, ConfigurationError, "stop string"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_runs(
    llama, guard_on, batches, options, error, why
):
    guard = guard_on(llama)
    with pytest.raises(error, match=why):
        guard.generate("hi", **options)
    with pytest.raises(error, match=why):
        guard.stream("hi", **options)
    assert batches == []


def test_without_llguidance_the_extra_is_named(llama, guard_on, monkeypatch, batches):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[structured\]"):
        guard_on(llama).generate("hi", json_schema=CAT)
    assert batches == []
    assert guard_on(llama).generate("hi", max_new_tokens=2, logprobs=1).logprobs


# ---- logprobs


def test_every_token_has_its_logprob_alone_and_in_company(llama, guard_on, batches):
    guard = guard_on(llama, limits=Limits(batch_wait_s=0.3))
    how = {"max_new_tokens": 6, "logprobs": 3}
    alone = [guard.generate(words, **how) for words in ("hi", "tell me about the cat")]
    batches.clear()
    found = together(guard, *((words, how) for words in ("hi", "tell me about the cat")))
    assert batches == [2]
    for one, other in zip(alone, found, strict=True):
        assert [t.id for t in one.logprobs] == list(one.token_ids) == [t.id for t in other.logprobs]
        for token, same in zip(one.logprobs, other.logprobs, strict=True):
            assert token.logprob == pytest.approx(same.logprob, abs=1e-3)
            assert token.top[0].id == token.id  # greedy, and nothing is masked
            assert token.top[0].logprob == token.logprob
            assert len(token.top) == 3
    assert b"".join(t.raw for t in alone[0].logprobs).decode(errors="replace") == alone[0].text
    assert guard.generate("hi", max_new_tokens=2).logprobs is None


def test_what_a_mask_leaves_out_is_still_told_as_likely(llama, guard_on):
    found = guard_on(llama).generate("hi", json_schema={"const": True}, logprobs=2)
    assert found.text == "true"
    for token in found.logprobs:
        assert token.logprob < token.top[0].logprob < 0  # random weights would have said another
