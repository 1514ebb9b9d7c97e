from __future__ import annotations

import asyncio
import functools
import inspect
import io
import typing
from dataclasses import dataclass

import pytest
from PIL import Image
from pydantic import BaseModel, TypeAdapter, validate_call

import guardrail
from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    UnsupportedContentError,
)
from guardrail.front.chats import CALL_WITHHELD, RESULT_CAUTION, RESULT_WITHHELD
from guardrail.front.tools import ToolRules, guard_tool
from guardrail.front.wrap import LAST, last_verdict
from guardrail.policy import Policy
from guardrail.testing import FakeGuard
from guardrail.types import Action


def _sync(body):
    def search(query, *more, limit=3, **options):
        """Look something up."""
        return body(query)

    return search


def _async(body):
    async def search(query, *more, limit=3, **options):
        """Look something up."""
        await asyncio.sleep(0)
        return body(query)

    return search


def run(fn, *args, **kwargs):
    """What a call gives; its verdict is this context's, too, if it was made in one of its own."""

    async def awaited(found):
        return await found, last_verdict()

    found = fn(*args, **kwargs)
    if inspect.iscoroutine(found):
        found, verdict = asyncio.run(awaited(found))
        LAST.set(verdict)
    return found


both_forms = pytest.mark.parametrize("form", [_sync, _async], ids=["sync", "async"])


def said(guard):
    """What the guard was asked, as text."""
    return [message["content"] for [message] in guard.seen]


@both_forms
def test_a_harmless_call_is_made_and_both_sides_are_read(form):
    guard = FakeGuard()
    assert run(guard_tool(form(str.upper), guard=guard), "hi", limit=5) == "HI"
    assert said(guard) == [
        '{"name": "search", "arguments": {"query": "hi", "limit": 5}}',
        [{"type": "text", "text": "HI"}],
    ]
    assert last_verdict().action is Action.PASS


@both_forms
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("bad",), {}), (("a", "bad"), {}), (("a",), {"limit": "bad"}), (("a",), {"to": ["bad"]})],
)
def test_a_call_with_flagged_arguments_is_not_made_and_says_so(form, args, kwargs):
    made = []
    tool = guard_tool(form(made.append), guard=FakeGuard())
    assert run(tool, *args, **kwargs) == CALL_WITHHELD
    assert made == []
    assert last_verdict().action is Action.FLAG


@both_forms
def test_a_flagged_result_is_withheld_as_data_that_says_so(form):
    guard = FakeGuard(flag=["bomb"])
    tool = guard_tool(form(lambda query: "how to build a bomb"), guard=guard)
    assert run(tool, "news") == RESULT_WITHHELD
    assert "sorry" not in RESULT_WITHHELD.lower()
    assert last_verdict().action is Action.FLAG


@both_forms
def test_raise_and_annotate_mean_for_tools_what_they_mean_for_calls(form):
    tool = functools.partial(guard_tool, form(lambda query: "bad"), guard=FakeGuard())
    with pytest.raises(GuardrailViolation):
        run(tool(on_flag="raise"), "hello")
    with pytest.raises(GuardrailViolation):
        run(tool(policy=Policy(on_flag="raise")), "bad")
    assert run(tool(on_flag="annotate"), "bad") == "bad"
    assert last_verdict().action is Action.FLAG
    assert run(tool(policy=Policy(mode="shadow")), "bad") == "bad"


@both_forms
def test_an_outage_withholds_the_result_and_is_never_only_annotated(form):
    tool = functools.partial(guard_tool, form(lambda query: "an outage"), guard=FakeGuard())
    assert run(tool(on_flag="annotate"), "hello") == RESULT_WITHHELD
    with pytest.raises(DetectorError):
        run(tool(on_flag="raise"), "hello")


@both_forms
def test_a_fallback_makes_what_stands_for_the_call_or_the_result(form):
    def stand_in(verdict, query):
        return {"withheld": verdict.action.value, "query": query}

    tool = guard_tool(form(lambda query: {"found": "bad"}), guard=FakeGuard(), fallback=stand_in)
    assert run(tool, "hello") == {"withheld": "flag", "query": "hello"}
    assert run(tool, "bad") == {"withheld": "flag", "query": "bad"}


def test_a_coroutines_fallback_may_be_asynchronous():
    async def later(verdict, query):
        return "later"

    tool = guard_tool(_async(lambda query: "bad"), guard=FakeGuard(), fallback=later)
    assert run(tool, "bad") == run(tool, "hello") == "later"


@both_forms
def test_one_side_alone_may_be_checked(form):
    arguments = guard_tool(form(lambda query: "bad"), guard=FakeGuard(), check="arguments")
    assert (run(arguments, "hello"), run(arguments, "bad")) == ("bad", CALL_WITHHELD)
    result = guard_tool(form(lambda query: query), guard=FakeGuard(), check=["result"])
    assert (run(result, "hello"), run(result, "bad")) == ("hello", RESULT_WITHHELD)


@both_forms
def test_an_errors_words_are_read_as_a_result(form):
    def fail(query):
        raise ValueError(query)

    tool = guard_tool(form(fail), guard=FakeGuard(), check="result")
    assert run(tool, "a bad page") == RESULT_WITHHELD
    assert run(tool, "an odd page") == RESULT_WITHHELD
    with pytest.raises(ValueError, match="no page"):
        run(tool, "no page")


class OwnWordsError(Exception):
    def __str__(self):
        return "it failed"


def _noted():
    error = ValueError("no page")
    error.add_note("a bad page")
    return error


@both_forms
@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("some failed", [ValueError("a bad page")]),
        OwnWordsError("a bad page"),
        OSError(2, "no file", "/bad"),
        _noted(),
    ],
)
def test_all_that_an_error_may_be_shown_by_is_read(form, error):
    def fail(query):
        raise error

    assert run(guard_tool(form(fail), guard=FakeGuard()), "hello") == RESULT_WITHHELD


@both_forms
def test_a_result_that_would_be_steered_goes_on_behind_a_caution(form):
    guard = FakeGuard()
    tool = guard_tool(form(lambda query: "an odd page"), guard=guard)
    assert run(tool, "hello") == f"{RESULT_CAUTION}\n\nan odd page"
    assert guard_tool(_sync(str), guard=guard)("odd") == CALL_WITHHELD
    passing = guard_tool(form(str), guard=guard, policy=Policy(unsteerable="pass"))
    assert run(passing, "odd") == "odd"
    strict = guard_tool(form(lambda query: "odd"), guard=guard, policy=Policy(unsteerable="flag"))
    assert run(strict, "hello") == RESULT_WITHHELD


def test_what_was_done_is_audited_for_both_sides():
    done = []
    tool = guard_tool(
        _sync(lambda query: "odd"), guard=FakeGuard(), audit=lambda v, facts: done.append(facts)
    )
    tool("hello")
    tool("bad")
    assert [each["done"] for each in done] == ["pass", "caution", "flag"]


# --- what is a tool -------------------------------------------------------------------------------


class Page(BaseModel):
    title: str
    lines: list[str] = []


def test_schema_builders_see_the_tool_itself():
    def look_up(query: str, page: Page, limit: int = 3) -> list[Page]:
        """Look a page up."""
        return [page]

    tool = guard_tool(look_up, guard=FakeGuard())
    assert (tool.__name__, tool.__doc__) == ("look_up", "Look a page up.")
    assert inspect.signature(tool) == inspect.signature(look_up)
    hints = typing.get_type_hints(tool, localns={"Page": Page})
    assert hints == {"query": str, "page": Page, "limit": int, "return": list[Page]}
    assert TypeAdapter(tool).json_schema() == TypeAdapter(look_up).json_schema()
    assert validate_call(tool)("a", {"title": "b"}) == [Page(title="b")]
    assert validate_call(tool)("a", {"title": "bad"}) == CALL_WITHHELD
    assert inspect.iscoroutinefunction(guard_tool(_async(str), guard=FakeGuard()))


class Tools:
    secret = "bad"

    @guard_tool(guard=FakeGuard())
    def own(self, query):
        return query

    @guard_tool(guard=FakeGuard())
    @classmethod
    def of_class(cls, query):
        return query

    @guard_tool(guard=FakeGuard())
    @staticmethod
    def static(query):
        return query

    def __call__(self, query):
        return query


@pytest.mark.parametrize(
    "tool",
    [
        Tools().own,
        Tools.of_class,
        Tools.static,
        guard_tool(Tools(), guard=FakeGuard()),
        guard_tool(functools.partial(_sync(str), limit=1), guard=FakeGuard()),
    ],
)
def test_every_kind_of_callable_is_a_tool(tool):
    assert (tool("hello"), tool("bad")) == ("hello", CALL_WITHHELD)


def test_the_tools_name_may_be_another():
    guard = FakeGuard()
    guard_tool(lambda query: 1, guard=guard, name="look_up")("hello")
    assert said(guard) == ['{"name": "look_up", "arguments": {"query": "hello"}}']


def test_arguments_of_one_name_are_both_read():
    tool = guard_tool(lambda query, /, *more, **options: query, guard=FakeGuard())
    assert tool("bad", query="a") == tool("a", query="bad") == CALL_WITHHELD
    assert tool("a", "bad", more="b") == tool("a", "b", more="bad") == CALL_WITHHELD


def test_what_the_app_fills_in_is_not_read_and_anything_unknown_is_an_error():
    made = []

    def search(query, ctx, **more):
        made.append(ctx)

    context = object()
    with pytest.raises(UnsupportedContentError, match="the argument 'ctx' of search holds a obj"):
        guard_tool(search, guard=FakeGuard())("hello", context)
    assert made == []
    tool = guard_tool(search, guard=FakeGuard(), injected=["ctx", "session"])
    tool("hello", context, session="bad")
    assert made == [context]
    assert tool("hello", context, more="bad") == CALL_WITHHELD


@pytest.mark.parametrize(
    ("fn", "options", "words"),
    [
        (lambda: (yield), {}, "in pieces"),
        (3, {}, "cannot be called"),
        (str.upper, {"check": "answer"}, "arguments, result or both"),
        (str.upper, {"check": ()}, "arguments, result or both"),
        (str.upper, {"on_flag": "ask"}, "refuse, raise or annotate"),
        (str.upper, {"on_flag": "raise", "fallback": print}, "give one"),
        (lambda query: 0, {"injected": ["ctx"]}, "names no parameter"),
    ],
)
def test_what_cannot_hold_is_an_error_at_decoration(fn, options, words):
    with pytest.raises(ConfigurationError, match=words):
        guard_tool(fn, guard=FakeGuard(), **options)


def test_a_result_that_comes_in_pieces_or_is_still_to_be_awaited_is_an_error():
    def pieces(query):
        return (piece for piece in [query])

    async def hidden():
        return "bad"

    with pytest.raises(UnsupportedContentError, match="holds a generator"):
        guard_tool(pieces, guard=FakeGuard())("hello")
    later = hidden()
    with pytest.raises(UnsupportedContentError, match="holds a coroutine"):
        guard_tool(lambda: later, guard=FakeGuard())()
    later.close()
    told = guard_tool(lambda: hidden(), guard=FakeGuard(), asynchronous=True)
    assert run(told) == RESULT_WITHHELD


def test_a_selected_result_is_checked_and_the_result_itself_goes_on():
    @dataclass
    class Answer:
        text: str
        handle: object = None

    answer = Answer("fine", object())
    tool = functools.partial(guard_tool, guard=FakeGuard(), select_result=lambda a: a.text)
    assert tool(lambda: answer)() is answer
    assert tool(lambda: Answer("bad"))() == RESULT_WITHHELD
    assert tool(lambda: Answer("odd"))() == RESULT_WITHHELD  # it takes no caution
    with pytest.raises(UnsupportedContentError, match="what select_result gave of <lambda>"):
        guard_tool(lambda: answer, guard=FakeGuard(), select_result=lambda a: a.handle)()


def test_what_changes_during_the_check_goes_on_as_it_was_checked():
    class Changing(FakeGuard):
        def check(self, value, /, **options):
            verdict = super().check(value)
            for each in (query, page):
                each["text"] = "bad"
            return verdict

    query, page, got = {"text": "a"}, {}, []

    def search(query):
        got.append(query)
        page["text"] = "b"
        return page

    assert guard_tool(search, guard=Changing())(query) == {"text": "b"}
    assert got == [{"text": "a"}]


def test_a_picture_is_judged_and_handed_on_in_one_form():
    turned = Image.new("RGB", (6, 4), "red")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, "JPEG", exif=exif)
    guard = FakeGuard()
    shot = guard_tool(lambda: file.getvalue(), guard=guard)()
    assert guard.seen[0][0]["content"] == [{"type": "image", "image": shot}]
    shown = Image.open(io.BytesIO(shot))
    assert (shown.format, shown.size, dict(shown.getexif())) == ("PNG", (4, 6), {})
    with pytest.raises(UnsupportedContentError, match="two ways"):
        guard_tool(lambda: file.getvalue(), guard=guard, policy=Policy(pictures="refuse"))()
    with pytest.raises(UnsupportedContentError, match="two ways"):
        guard_tool(lambda: file.getvalue(), guard=guard, select_result=lambda data: data)()


def test_a_picture_among_the_arguments_is_judged_with_the_call():
    guard, got = FakeGuard(), []
    guard_tool(lambda picture, words: got.append(picture), guard=guard)(
        Image.new("RGBA", (4, 4)), "hello"
    )
    picture, call = guard.seen[0][0]["content"]
    assert picture["type"] == "image"
    assert picture["image"].tobytes() == got[0].tobytes()
    assert got[0].mode == "RGB"
    assert '"words": "hello"' in call["text"]


def test_the_rules_are_those_that_adapters_build_on():
    rules = ToolRules.of(FakeGuard(), "result", on_flag="annotate")
    verdict = rules.guard.check("odd")
    words = []
    assert rules.settle(verdict, lambda each: not words.append(each)).done == "caution"
    assert words == [RESULT_CAUTION]
    assert rules.settle(verdict).verdict.action is Action.FLAG


def test_it_is_a_public_name():
    assert guardrail.guard_tool is guard_tool
