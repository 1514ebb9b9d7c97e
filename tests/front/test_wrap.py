from __future__ import annotations

import asyncio
import base64
import contextlib
import contextvars
import copy
import functools
import inspect
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import (
    ConfigurationError,
    DetectorError,
    GuardrailViolation,
    UnsupportedContentError,
)
from guardrail.front.arguments import kind_of
from guardrail.front.wrap import guarded, last_verdict
from guardrail.guard import Guard
from guardrail.inputs.canonical import require_one_reading
from guardrail.inputs.messages import to_request
from guardrail.policy import CAUTION, REFUSAL, Policy
from guardrail.testing import tiny_artefact
from guardrail.types import Action, ImagePart, Message, Modality, Request, TextPart, Verdict
from tests.picture_zoo import ONE_WAY, TWO_WAYS, by_convert, by_vllm

ZOO = TWO_WAYS | ONE_WAY
RULES = {"bad": Action.FLAG, "odd": Action.STEER}


class WordGuard:
    """Flags a value that holds the word bad, steers one that holds odd; keeps what it saw."""

    def __init__(self, policy=None, *, detect_only=False):
        self.policy = policy or Policy()
        self.detect_only = detect_only
        self.seen = []
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def with_policy(self, policy):
        return WordGuard(policy, detect_only=self.detect_only)

    def check(self, value):
        self.seen.append(copy.deepcopy(value))
        self.asked.set()
        assert self.may_answer.wait(5)
        would_be = next((act for word, act in RULES.items() if word in repr(value)), Action.PASS)
        acts = self.policy.mode == "enforce" and would_be in {*self.policy.actions, Action.PASS}
        acts = acts and not (self.detect_only and would_be is Action.STEER)
        if "broken" in repr(value):
            return self._outage()
        return Verdict(
            action=would_be if acts else Action.PASS,
            would_be=would_be,
            score=0.5,
            tau_steer=0.4,
            tau_flag=0.9,
            layers=(1,),
            modality=Modality.TEXT,
            artefact_id="guard-test",
            mode=self.policy.mode,
        )

    async def acheck(self, value):
        await asyncio.sleep(0)
        return self.check(value)

    def _outage(self):
        """What a guard says when its detector fails."""
        would_be = Action.FLAG if self.policy.fail == "closed" else Action.PASS
        return Verdict(
            action=would_be if self.policy.mode == "enforce" else Action.PASS,
            would_be=would_be,
            score=None,
            tau_steer=0.4,
            tau_flag=0.9,
            layers=(1,),
            modality=Modality.TEXT,
            artefact_id="guard-test",
            mode=self.policy.mode,
            reason="detector_failed",
        )


class Forms:
    """One body in the four forms of function; `run` gives what came of it as a list."""

    @staticmethod
    def function(body):
        def fn(messages, extra=None):
            return body(messages)

        return fn

    @staticmethod
    def coroutine(body):
        async def fn(messages, extra=None):
            await asyncio.sleep(0)
            return body(messages)

        return fn

    @staticmethod
    def generator(body):
        def fn(messages, extra=None):
            yield body(messages)

        return fn

    @staticmethod
    def async_generator(body):
        async def fn(messages, extra=None):
            yield body(messages)

        return fn

    @staticmethod
    def run(fn, *args, **kwargs):
        async def awaited():
            return [await fn(*args, **kwargs)]

        async def collected():
            return [chunk async for chunk in fn(*args, **kwargs)]

        if inspect.isasyncgenfunction(fn):
            return asyncio.run(collected())
        if inspect.iscoroutinefunction(fn):
            return asyncio.run(awaited())
        if inspect.isgeneratorfunction(fn):
            return list(fn(*args, **kwargs))
        return [fn(*args, **kwargs)]


FORMS = ["function", "coroutine", "generator", "async_generator"]
every_form = pytest.mark.parametrize("form", [getattr(Forms, name) for name in FORMS], ids=FORMS)


@pytest.fixture
def bad_png(tmp_path):
    """A file whose name a `WordGuard` flags."""
    path = tmp_path / "bad.png"
    Image.new("RGB", (4, 4)).save(path)
    return str(path)


def _echo(value):
    return ("sent", value)


@every_form
def test_a_passed_call_is_made_with_what_was_checked(form):
    guard = WordGuard()
    assert Forms.run(guarded(form(_echo), guard=guard), "hello") == [("sent", "hello")]
    assert guard.seen == ["hello"]


@every_form
def test_a_flagged_call_answers_with_the_refusal_and_is_never_made(form):
    made = []
    assert Forms.run(guarded(form(made.append), guard=WordGuard()), "bad") == [REFUSAL]
    assert made == []


@every_form
def test_a_flagged_call_raises_when_the_policy_says_so(form):
    made = []
    fn = guarded(form(made.append), guard=WordGuard(Policy(on_flag="raise")))
    with pytest.raises(GuardrailViolation) as caught:
        Forms.run(fn, "bad")
    assert caught.value.verdict.action is Action.FLAG
    assert made == []


@every_form
def test_an_annotated_call_is_made_all_the_same(form):
    fn = guarded(form(_echo), guard=WordGuard(), on_flag="annotate")
    assert Forms.run(fn, "bad") == [("sent", "bad")]


@every_form
def test_a_fallback_answers_flagged_calls_with_their_arguments(form):
    def fallback(verdict, messages, extra):
        return f"{verdict.action}, {messages}, {extra}"

    fn = guarded(form(_echo), guard=WordGuard(), fallback=fallback)
    assert Forms.run(fn, "bad", extra=3) == ["flag, bad, 3"]


@every_form
def test_shadow_mode_changes_nothing(form):
    fn = guarded(form(_echo), guard=WordGuard(Policy(mode="shadow", unsteerable="flag")))
    assert Forms.run(fn, "bad") == [("sent", "bad")]
    assert Forms.run(fn, "odd") == [("sent", "odd")]


@every_form
def test_a_failing_check_reaches_the_caller_and_nothing_is_sent(form):
    class Broken(WordGuard):
        def check(self, value):
            raise DetectorError("out of order")

    made = []
    with pytest.raises(DetectorError, match="out of order"):
        Forms.run(guarded(form(made.append), guard=Broken()), "hello")
    assert made == []


@every_form
def test_form_name_and_signature_are_kept(form):
    fn = form(_echo)
    wrapped = guarded(fn, guard=WordGuard())
    assert inspect.signature(wrapped) == inspect.signature(fn)
    assert wrapped.__name__ == "fn"
    for is_kind in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    ):
        assert is_kind(wrapped) == is_kind(fn)


def test_it_decorates_with_arguments():
    @guarded(guard=WordGuard())
    def ask(prompt):
        return prompt

    assert (ask("hello"), ask("bad")) == ("hello", REFUSAL)


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_flag", ["refuse", "annotate"])
@every_form
def test_an_outage_under_fail_closed_is_refused_and_never_only_annotated(form, on_flag):
    made = []
    fn = guarded(form(made.append), guard=WordGuard(), on_flag=on_flag)
    assert Forms.run(fn, "broken") == [REFUSAL]
    assert made == []


@every_form
def test_an_outage_under_fail_closed_raises_an_error_that_is_no_finding(form):
    made = []
    fn = guarded(form(made.append), guard=WordGuard(), on_flag="raise")
    with pytest.raises(DetectorError, match="fails closed"):
        Forms.run(fn, "broken")
    assert made == []


@pytest.mark.parametrize("policy", [Policy(fail="open"), Policy(mode="shadow")])
def test_an_outage_under_fail_open_or_in_shadow_mode_passes(policy):
    fn = guarded(Forms.function(_echo), guard=WordGuard(policy), on_flag="raise")
    assert fn("broken") == ("sent", "broken")


# --- audit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "policy", "wanted"),
    [
        ("hello", Policy(), ("pass", Action.PASS)),
        ("odd", Policy(), ("caution", Action.STEER)),
        ("odd", Policy(unsteerable="flag"), ("flag", Action.FLAG)),
        ("odd", Policy(unsteerable="pass"), ("pass", Action.PASS)),
        ("bad", Policy(), ("flag", Action.FLAG)),
        ("bad", Policy(on_flag="annotate"), ("pass", Action.FLAG)),
        ("bad", Policy(mode="shadow"), ("pass", Action.PASS)),
        ("broken", Policy(on_flag="annotate"), ("flag", Action.FLAG)),
    ],
)
def test_what_was_done_in_the_end_is_audited(value, policy, wanted):
    lines = []
    fn = guarded(
        Forms.function(_echo), guard=WordGuard(policy), audit=lambda *line: lines.append(line)
    )
    fn(value)
    [(verdict, facts)] = lines
    assert facts == {"event": "call", "done": wanted[0]}
    assert verdict.action is wanted[1]


def test_a_failing_audit_sink_does_not_change_the_call(caplog):
    def sink(verdict, facts):
        raise OSError("disk full")

    assert guarded(_echo, guard=WordGuard(), audit=sink)("hello") == ("sent", "hello")
    assert "the audit sink failed" in caplog.text


# --- what would be steered ------------------------------------------------------------------------


@pytest.mark.parametrize("detect_only", [False, True])
@pytest.mark.parametrize(
    ("unsteerable", "wanted"),
    [
        ("flag", REFUSAL),
        ("pass", ("sent", "odd")),
        ("caution", ("sent", f"{CAUTION}\n\nodd")),
    ],
)
def test_a_request_that_would_be_steered_follows_the_policy(unsteerable, wanted, detect_only):
    guard = WordGuard(Policy(unsteerable=unsteerable), detect_only=detect_only)
    fn = guarded(Forms.function(_echo), guard=guard)
    assert fn("odd") == wanted


def test_nothing_is_added_when_the_policy_does_not_steer():
    guard = WordGuard(Policy(actions=frozenset({Action.FLAG}), unsteerable="flag"))
    assert guarded(Forms.function(_echo), guard=guard)("odd") == ("sent", "odd")


def test_nothing_is_flagged_when_the_policy_does_not_flag():
    guard = WordGuard(Policy(actions=frozenset({Action.STEER}), unsteerable="flag"))
    assert guarded(Forms.function(_echo), guard=guard)("odd") == ("sent", "odd")


USER = {"role": "user", "content": "odd"}
PARTS = [{"type": "text", "text": "Be brief."}]


@pytest.mark.parametrize(
    ("chat", "wanted"),
    [
        ([USER], [{"role": "system", "content": CAUTION}, USER]),
        (
            [{"role": "system", "content": "Be brief."}, USER],
            [{"role": "system", "content": f"{CAUTION}\n\nBe brief."}, USER],
        ),
        (
            ({"role": "system", "content": PARTS}, USER),
            (
                {
                    "role": "system",
                    "content": [{"type": "text", "text": f"{CAUTION}\n\n"}, *PARTS],
                },
                USER,
            ),
        ),
        (
            Request((Message(role="user", parts=(TextPart("odd"),)),)),
            Request(
                (
                    Message(role="system", parts=(TextPart(CAUTION),)),
                    Message(role="user", parts=(TextPart("odd"),)),
                )
            ),
        ),
        (
            Request((Message(role="system", parts=(TextPart("odd"),)),)),
            Request((Message(role="system", parts=(TextPart(f"{CAUTION}\n\nodd"),)),)),
        ),
    ],
    ids=["no system", "system text", "system parts", "request", "request with system"],
)
def test_a_caution_joins_the_system_message_and_the_callers_chat_stays(chat, wanted):
    before = copy.deepcopy(chat)
    _, sent = guarded(Forms.function(_echo), guard=WordGuard())(chat)
    assert sent == wanted
    assert type(sent) is type(chat)
    assert chat == before


def test_a_caution_goes_before_a_system_message_that_begins_with_a_picture():
    picture = ImagePart(Image.new("RGB", (2, 2)))
    chat = Request((Message(role="system", parts=(picture,), name="odd"),))
    _, sent = guarded(Forms.function(_echo), guard=WordGuard())(chat)
    assert sent.messages[0].parts[0] == TextPart(f"{CAUTION}\n\n")
    assert len(sent.messages[0].parts) == 2


def test_a_value_without_a_place_for_words_counts_as_flagged():
    fn = guarded(
        Forms.function(_echo), guard=WordGuard(), messages=lambda b: b.arguments["messages"] + "!"
    )
    assert fn("odd") == REFUSAL
    assert last_verdict().action is Action.FLAG


# --- what is checked ------------------------------------------------------------------------------


def _keyword_only(model, *, messages):
    return messages


def _anything(*args, **kwargs):
    return kwargs["messages"]


class Client:
    def ask(self, question, count=1):
        return question

    @guarded(guard=WordGuard())
    def decorated(self, question):
        return question

    async def __call__(self, query):
        return query


@pytest.mark.parametrize(
    ("fn", "wanted", "args", "kwargs"),
    [
        (_keyword_only, None, ("m",), {"messages": "bad"}),
        (_anything, "messages", (), {"messages": "bad"}),
        (Client().ask, None, ("bad",), {}),
        (Client().ask, None, (), {"question": "bad"}),
        (functools.partial(_keyword_only, "m"), None, (), {"messages": "bad"}),
        (lambda a, prompt: prompt, None, (3, "bad"), {}),
        (lambda a, b: b, "b", ("fine", "bad"), {}),
        (lambda a, b="bad": b, "b", ("fine",), {}),
        (lambda a, b: b, lambda bound: [*bound.args], ("fine", "bad"), {}),
    ],
)
def test_the_checked_argument_is_found(fn, wanted, args, kwargs):
    assert guarded(fn, guard=WordGuard(), messages=wanted)(*args, **kwargs) == REFUSAL


def test_a_decorated_method_checks_what_comes_after_self():
    assert (Client().decorated("hello"), Client().decorated("bad")) == ("hello", REFUSAL)


@pytest.mark.parametrize(
    "fn", [Client(), Client().__call__, functools.partial(Client.__call__, Client())]
)
def test_whatever_is_asynchronous_when_called_is_awaited(fn):
    wrapped = guarded(fn, guard=WordGuard())
    assert inspect.iscoroutinefunction(wrapped)
    assert asyncio.run(wrapped("bad")) == REFUSAL


def _behind(fn):
    """As client libraries wrap their methods: nothing on the outside is asynchronous."""

    @functools.wraps(fn)
    def outer(*args, **kwargs):
        return fn(*args, **kwargs)

    return outer


class Wrapped:
    @_behind
    async def ask(self, query):
        return query

    @_behind
    async def __call__(self, query):
        return query


@pytest.mark.parametrize(
    "fn",
    [
        _behind(Forms.coroutine(_echo)),
        _behind(_behind(Forms.coroutine(_echo))),
        functools.partial(_behind(Forms.coroutine(_echo)), extra=1),
        functools.partial(Client()),
        Wrapped(),
        Wrapped().ask,
    ],
)
def test_an_asynchronous_function_behind_a_plain_wrapper_is_awaited(fn):
    guard = WordGuard()
    wrapped = guarded(fn, guard=guard)
    assert inspect.iscoroutinefunction(wrapped)
    assert asyncio.run(wrapped("bad")) == REFUSAL
    assert asyncio.run(wrapped("hello")) in ("hello", ("sent", "hello"))


def test_the_kind_can_be_told_where_it_is_not_seen():
    def hidden(messages):
        return Forms.coroutine(_echo)(messages)

    @functools.wraps(Forms.coroutine(_echo))
    def blocking(messages, extra=None):
        return asyncio.run(Forms.coroutine(_echo)(messages))

    told = guarded(hidden, guard=WordGuard(), asynchronous=True)
    assert Forms.run(told, "bad") == [REFUSAL]
    assert Forms.run(told, "hello") == [("sent", "hello")]
    assert guarded(blocking, guard=WordGuard(), asynchronous=False)("hello") == ("sent", "hello")
    chunks = guarded(_behind(Forms.async_generator(_echo)), guard=WordGuard(), asynchronous=True)
    assert Forms.run(chunks, "hello") == [("sent", "hello")]


def test_a_context_manager_stays_one():
    opened = guarded(contextlib.contextmanager(Forms.generator(_echo)), guard=WordGuard())
    with opened("hello") as found:
        assert found == ("sent", "hello")


def test_a_proxy_that_has_every_attribute_is_a_function():
    class Proxy:
        def __getattr__(self, name):
            if name == "__wrapped__":
                return Proxy()
            raise AttributeError(name)

        def __call__(self, prompt):
            return prompt

    assert guarded(Proxy().__call__, guard=WordGuard())("bad") == REFUSAL
    assert kind_of(Proxy()) == "function"


SIDES = (
    "image images image_url image_urls video videos video_url video_urls"
    " system system_prompt system_instruction instructions tools files context"
    " functions response_format text_format documents attachments history chat_history extra_body"
    " prefix suffix"
).split()


@pytest.mark.parametrize("name", SIDES)
def test_an_argument_that_would_go_unchecked_must_be_confirmed(name):
    scope = {}
    exec(f"def fn(messages, {name}=None): return messages", scope)
    with pytest.raises(ConfigurationError, match=rf"but not {name}; .*messages='messages'"):
        guarded(scope["fn"], guard=WordGuard())
    assert guarded(scope["fn"], guard=WordGuard(), messages="messages")("bad") == REFUSAL


@pytest.mark.parametrize("name", [*SIDES, "prompt", "input", "query"])
def test_such_a_keyword_is_an_error_at_the_call_and_nothing_is_checked_or_sent(name):
    made, guard = [], WordGuard()

    def fn(messages, **options):
        made.append(options)

    ask = guarded(fn, guard=guard)
    with pytest.raises(ConfigurationError, match=rf"'messages' is checked.*but not {name},.*name"):
        ask("hello", **{name: ["bad"]})
    assert (made, guard.seen) == ([], [])
    ask("hello", **{name: None}, temperature=0.5, model="m")
    ask("hello", **{name: []})
    guarded(fn, guard=guard, messages="messages")("hello", **{name: "said to be fine"})
    assert len(made) == 3


def test_a_keyword_named_like_the_checked_positional_argument_is_an_error():
    ask = guarded(lambda prompt, /, **options: options, guard=WordGuard())
    with pytest.raises(ConfigurationError, match="but not prompt,"):
        ask("hello", prompt="bad")


def test_further_positional_arguments_are_an_error_at_the_call():
    guard = WordGuard()
    ask = guarded(lambda prompt, *rest: prompt, guard=guard)
    with pytest.raises(ConfigurationError, match=r"'prompt' is checked.*but not rest,.*name"):
        ask("hello", "bad")
    assert guard.seen == []
    assert ask("hello") == "hello"
    assert guarded(lambda prompt, *rest: rest, guard=guard, messages="prompt")("a", "b") == ("b",)
    both = guarded(lambda prompt, *rest: rest, guard=guard, messages=("prompt", "rest"))
    assert both("hello", "bad") == REFUSAL


def test_further_arguments_may_themselves_be_the_checked_ones():
    assert guarded(lambda *prompt: prompt, guard=WordGuard())("a", "bad") == REFUSAL
    assert guarded(lambda *prompt: prompt, guard=WordGuard())("a", "b") == ("a", "b")


def test_such_an_argument_may_itself_be_the_checked_one(bad_png):
    assert guarded(lambda image: image, guard=WordGuard())(bad_png) == REFUSAL


@pytest.mark.parametrize(
    ("fn", "wanted", "words"),
    [
        (lambda messages, prompt: 0, None, "messages and prompt could all be"),
        (lambda: 0, None, "nothing to check"),
        (lambda **kwargs: 0, None, "nothing to check"),
        (lambda self: 0, None, "nothing to check"),
        (lambda a: 0, "b", "no parameter 'b'"),
        (3, None, "cannot be called"),
        (iter, None, "does not tell its parameters|nothing to check"),
    ],
)
def test_what_cannot_be_checked_is_an_error_at_decoration(fn, wanted, words):
    with pytest.raises(ConfigurationError, match=words):
        guarded(fn, guard=WordGuard(), messages=wanted)


def test_a_call_without_the_named_keyword_is_an_error_and_nothing_is_sent():
    with pytest.raises(ConfigurationError, match="no argument 'messages'"):
        guarded(_anything, guard=WordGuard(), messages="messages")(prompt="hello")


def test_on_flag_and_fallback_contradict_each_other():
    with pytest.raises(ConfigurationError, match="give one"):
        guarded(_anything, guard=WordGuard(), on_flag="raise", fallback=print)


def test_an_on_flag_or_a_fallback_that_means_nothing_is_an_error_at_decoration():
    with pytest.raises(ConfigurationError, match="on_flag='rise': refuse, raise or annotate"):
        guarded(_anything, guard=WordGuard(), messages="messages", on_flag="rise")
    with pytest.raises(ConfigurationError, match="fallback='ask a person' cannot be called"):
        guarded(_anything, guard=WordGuard(), messages="messages", fallback="ask a person")


def test_a_policy_of_its_own_replaces_the_guards():
    guard = WordGuard(Policy(mode="shadow"))
    strict = Policy(refusal_message="No.")
    assert guarded(Forms.function(_echo), guard=guard, policy=strict)("bad") == "No."


@pytest.mark.parametrize("wanted", [None, lambda bound: bound.arguments["messages"]])
def test_a_message_that_changes_during_the_check_is_sent_as_it_was_checked(wanted):
    guard = WordGuard()
    guard.may_answer.clear()
    image = Image.new("RGB", (2, 2), "white")
    chat = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    fn = guarded(Forms.function(_echo), guard=guard, messages=wanted)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(fn, chat)
        assert guard.asked.wait(5)
        chat[0]["content"].append({"type": "text", "text": "bad"})
        chat.append({"role": "user", "content": "bad"})
        image.paste("black", (0, 0, 2, 2))
        guard.may_answer.set()
        _, sent = pending.result(5)
    assert [len(message["content"]) for message in sent] == [1]
    assert sent[0]["content"][0]["image"].getpixel((0, 0)) == (255, 255, 255)
    assert sent == guard.seen[0]


# --- generators and cancellation ------------------------------------------------------------------


def test_a_generator_is_checked_at_its_first_step_only():
    guard = WordGuard()
    chunks = guarded(Forms.generator(_echo), guard=guard)("hello")
    assert guard.seen == []
    next(chunks)
    assert len(list(chunks)) == 0
    assert guard.seen == ["hello"]


def test_closing_a_generator_closes_the_one_inside():
    closed = []

    def fn(prompt):
        try:
            yield 1
            yield 2
        finally:
            closed.append(prompt)

    chunks = guarded(fn, guard=WordGuard())("hello")
    next(chunks)
    chunks.close()
    assert closed == ["hello"]


def test_sending_into_a_generator_and_its_return_value_go_through():
    def fn(prompt):
        got = yield prompt
        return got

    def outer():
        return (yield from guarded(fn, guard=WordGuard())("hello"))

    chunks = outer()
    assert next(chunks) == "hello"
    with pytest.raises(StopIteration) as stopped:
        chunks.send("back")
    assert stopped.value.value == "back"


def test_sending_into_an_asynchronous_generator_and_throwing_go_through():
    async def fn(prompt):
        got = yield prompt
        try:
            yield got
        except KeyError as error:
            yield f"caught {error}"

    async def run():
        chunks = guarded(fn, guard=WordGuard())("hello")
        said = [await anext(chunks), await chunks.asend("back"), await chunks.athrow(KeyError("x"))]
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
        return said

    assert asyncio.run(run()) == ["hello", "back", "caught 'x'"]


def test_an_asynchronous_context_manager_sees_what_its_block_raises():
    seen = []

    async def fn(prompt):
        try:
            yield prompt
        except BaseException as error:
            seen.append(type(error))
            raise

    async def run(error):
        async with contextlib.asynccontextmanager(guarded(fn, guard=WordGuard()))("hello"):
            raise error

    for kind in (KeyError, asyncio.CancelledError):
        with pytest.raises(kind):
            asyncio.run(run(kind()))
    assert seen == [KeyError, asyncio.CancelledError]


def test_an_asynchronous_generator_behind_a_wrapper_may_give_any_source_of_chunks():
    class Chunks:
        def __init__(self):
            self.left = [1, 2]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    async def inside(prompt):
        yield prompt

    @functools.wraps(inside)
    def fn(prompt):
        return Chunks()

    ask = guarded(fn, guard=WordGuard(), asynchronous=True)
    assert Forms.run(ask, "hello") == [1, 2]


def test_closing_an_asynchronous_generator_closes_the_one_inside():
    closed = []

    async def fn(prompt):
        try:
            yield 1
            yield 2
        finally:
            closed.append(prompt)

    async def run():
        chunks = guarded(fn, guard=WordGuard())("hello")
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(run())
    assert closed == ["hello"]


async def _later(verdict, messages, extra):
    return ["a", "b"]


async def _chunks(verdict, messages, extra):
    yield "a"
    yield "b"


@pytest.mark.parametrize("fallback", [_later, _chunks, lambda *_: iter("ab")])
def test_an_asynchronous_generators_fallback_may_be_any_source_of_chunks(fallback):
    fn = guarded(Forms.async_generator(_echo), guard=WordGuard(), fallback=fallback)
    assert Forms.run(fn, "bad") == ["a", "b"]


def test_a_coroutines_fallback_may_be_asynchronous():
    fn = guarded(Forms.coroutine(_echo), guard=WordGuard(), fallback=_later)
    assert Forms.run(fn, "bad") == [["a", "b"]]


def test_cancelling_during_the_check_sends_nothing():
    made = []

    class Slow(WordGuard):
        async def acheck(self, value):
            await asyncio.sleep(60)

    async def run():
        task = asyncio.create_task(guarded(Forms.coroutine(made.append), guard=Slow())("hello"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert made == []


# --- the last verdict -----------------------------------------------------------------------------


def test_the_verdict_is_there_inside_and_after_the_call():
    inside = []
    fn = guarded(
        lambda prompt: inside.append(last_verdict()), guard=WordGuard(), on_flag="annotate"
    )
    fn("bad")
    assert inside[0].action is Action.FLAG
    assert last_verdict() is inside[0]


def test_a_failed_check_leaves_no_older_verdict_behind():
    guard = WordGuard()
    fn = guarded(Forms.function(_echo), guard=guard)
    fn("hello")
    guard.policy = None
    with pytest.raises(AttributeError):
        fn("hello")
    assert last_verdict() is None


def test_concurrent_tasks_see_their_own_verdicts():
    fn = guarded(Forms.coroutine(_echo), guard=WordGuard())

    async def one(word):
        await fn(word)
        await asyncio.sleep(0.001)
        return last_verdict().would_be

    async def run():
        return await asyncio.gather(*(one(word) for word in ["bad", "fine"] * 20))

    assert asyncio.run(run()) == [Action.FLAG, Action.PASS] * 20


def test_concurrent_threads_see_their_own_verdicts():
    fn = guarded(Forms.function(_echo), guard=WordGuard())
    together = threading.Barrier(2, timeout=5)

    def one(word):
        together.wait()
        fn(word)
        together.wait()
        return last_verdict().would_be

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(one, ["bad", "fine"])] == [Action.FLAG, Action.PASS]


# --- with a real guard ----------------------------------------------------------------------------


def test_a_real_guards_verdict_decides_and_is_audited_once_per_call(tiny_of):
    tiny = tiny_of("llava")
    lines = []
    artefact = tiny_artefact(tiny.model, tiny.processor, tau_steer=-1e6, tau_flag=1e6)
    with Guard((tiny.model, tiny.processor), artefact, audit=lambda v, _: lines.append(v)) as guard:
        fn = guarded(Forms.function(_echo), guard=guard)
        assert fn("hello") == ("sent", f"{CAUTION}\n\nhello")
        assert lines == [last_verdict()]
        strict = guarded(Forms.coroutine(_echo), guard=guard, policy=Policy(unsteerable="flag"))
        assert Forms.run(strict, "hello") == [REFUSAL]


# --- several parameters and paths -----------------------------------------------------------------


def _describe(body):
    """The body's forms with a signature of several parameters; all of them come back."""

    def fn(prompt, image=None, system=None):
        return body((prompt, image, system))

    async def coroutine(prompt, image=None, system=None):
        return body((prompt, image, system))

    def generator(prompt, image=None, system=None):
        yield body((prompt, image, system))

    async def async_generator(prompt, image=None, system=None):
        yield body((prompt, image, system))

    return [fn, coroutine, generator, async_generator]


SEVERAL = ("system", "prompt", "image")


@pytest.mark.parametrize("number", range(4), ids=FORMS)
def test_several_parameters_are_checked_together_in_every_form(number, bad_png):
    guard = WordGuard()
    fn = guarded(_describe(_echo)[number], guard=guard, messages=SEVERAL)
    assert Forms.run(fn, "hello", system="Be brief.") == [("sent", ("hello", None, "Be brief."))]
    assert [message["role"] for message in guard.seen[0]] == ["system", "user"]
    assert Forms.run(fn, "hello", bad_png) == [REFUSAL]
    assert Forms.run(fn, "hello", system="bad") == [REFUSAL]
    cautioned = ("hello", None, f"{CAUTION}\n\nodd")
    assert Forms.run(fn, "hello", system="odd") == [("sent", cautioned)]


def test_a_value_that_cannot_be_joined_stops_the_call():
    made = []
    fn = guarded(_describe(made.append)[0], guard=WordGuard(), messages=SEVERAL)
    with pytest.raises(UnsupportedContentError, match="'prompt' holds a int"):
        fn(3)
    assert made == []


def test_a_path_into_an_argument_is_checked_and_cautioned_there():
    fn = guarded(lambda body, n=1: (body, n), guard=WordGuard(), messages="body.messages")
    assert fn({"messages": "bad"}) == REFUSAL
    assert fn({"messages": "odd", "x": 1}, 2) == ({"messages": f"{CAUTION}\n\nodd", "x": 1}, 2)


class Methods:
    name = "methods"

    def ask(self, prompt):
        return self.name, prompt

    @guarded(guard=WordGuard())
    @classmethod
    def outside_class(cls, prompt):
        return cls.name, prompt

    @classmethod
    @guarded(guard=WordGuard())
    def inside_class(cls, prompt):
        return cls.name, prompt

    @guarded(guard=WordGuard())
    @staticmethod
    def outside_static(prompt):
        return "methods", prompt

    @staticmethod
    @guarded(guard=WordGuard())
    def inside_static(prompt):
        return "methods", prompt


@pytest.mark.parametrize(
    "fn",
    [
        guarded(Methods().ask, guard=WordGuard()),
        Methods.outside_class,
        Methods().outside_class,
        Methods.inside_class,
        Methods().inside_class,
        Methods.outside_static,
        Methods().outside_static,
        Methods.inside_static,
        Methods().inside_static,
        guarded(functools.partial(Methods.ask, Methods()), guard=WordGuard()),
        functools.partial(Methods().inside_class),
    ],
)
def test_every_kind_of_method_is_guarded(fn):
    assert fn("hello") == ("methods", "hello")
    assert fn("bad") == REFUSAL
    assert fn(prompt="bad") == REFUSAL


@pytest.mark.parametrize(
    ("fn", "wanted", "args", "kwargs"),
    [
        (lambda *messages: messages, None, ({"role": "user", "content": "bad"},), {}),
        (lambda *prompts: prompts, ("prompts",), ("fine", "bad"), {}),
        (lambda *args, **rest: rest, ("prompt", "video"), ("m",), {"video": "bad.mp4"}),
        (functools.partial(lambda prompt, n: prompt, n=3), None, ("bad",), {}),
        (functools.partial(lambda n, prompt: prompt, 3), None, ("bad",), {}),
        (functools.partial(lambda prompt, n: prompt, prompt="bad"), None, (), {"n": 3}),
    ],
)
def test_further_arguments_and_partials_are_checked(fn, wanted, args, kwargs):
    assert guarded(fn, guard=WordGuard(), messages=wanted)(*args, **kwargs) == REFUSAL


def test_a_task_of_its_own_keeps_its_verdict_to_itself():
    fn = guarded(Forms.coroutine(_echo), guard=WordGuard())

    async def run():
        await fn("hello")
        await asyncio.create_task(fn("bad"))
        return last_verdict()

    assert asyncio.run(run()).action is Action.PASS


def test_before_any_call_there_is_no_verdict():
    assert contextvars.Context().run(last_verdict) is None


def test_a_real_guard_scores_joined_arguments_as_the_same_chat(tiny_of, picture):
    tiny = tiny_of("llava")
    artefact = tiny_artefact(tiny.model, tiny.processor, tau_steer=1e6, tau_flag=1e6)
    with Guard((tiny.model, tiny.processor), artefact) as guard:
        fn = guarded(_describe(_echo)[0], guard=guard, messages=SEVERAL)
        fn("What is this?", picture(0), "Be brief.")
        parts = [
            {"type": "text", "text": "What is this?"},
            {"type": "image", "image": picture(0)},
        ]
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
        assert last_verdict() == guard.check(chat)


# --- whatever reaches the model -------------------------------------------------------------------


def ask(messages, temperature=0.5, *, model="m", tone=None, style="bad", **options):
    return "sent"


def complete(prompt, *more, suffix=""):
    return "sent"


TOOL = {"type": "function", "function": {"name": "a", "description": "bad"}}
FINE = [{"role": "user", "content": "fine"}]


def test_words_beside_the_messages_are_refused_by_name():
    guard = WordGuard()
    with pytest.raises(ConfigurationError, match=r"is checked in .*, but not topic, which this"):
        guarded(ask, guard=guard)(FINE, topic="bad")
    assert guard.seen == []


def test_a_parameters_default_is_the_authors_own():
    assert guarded(ask, guard=WordGuard())(FINE) == "sent"


def test_words_in_settings_are_judged_apart():
    guard = WordGuard()
    settings = {"user": "eve and bob", "stop": ["a b"], "metadata": {"trace": "x1"}}
    keys = {"api_key": "a secret", "extra_headers": {"Authorization": "Bearer a secret"}}
    assert guarded(ask, guard=guard)(FINE, **settings, **keys) == "sent"
    assert guard.seen == [FINE, [{"role": "user", "content": "eve and bob\n\na b"}]]
    assert guarded(ask, guard=guard)(FINE, user="a bad one") == REFUSAL


def test_positional_words_beside_the_messages_are_refused():
    with pytest.raises(ConfigurationError, match="but not suffix"):
        guarded(complete, guard=WordGuard())
    with pytest.raises(ConfigurationError, match="but not more, which"):
        guarded(lambda prompt, *more: "sent", guard=WordGuard())("fine", "bad")
    with pytest.raises(ConfigurationError, match="but not tone, which"):
        guarded(lambda prompt, tone: "sent", guard=WordGuard())("fine", "bad")


def test_settings_and_objects_pass_beside_the_messages():
    kwargs = {"model": "m", "stop": ["a b"], "user": "eve", "reasoning": {"effort": "low"}}
    more = {"client": object(), "callback": print, "count": 3, "flags": [True], "tone": ""}
    assert guarded(ask, guard=WordGuard())(FINE, 0.1, **kwargs, **more) == "sent"


def test_a_client_may_mark_what_is_left_out_by_an_object():
    left_out = object()

    def create(messages, tools=left_out, response_format=left_out):
        return tools

    guard = WordGuard()
    fn = guarded(create, guard=guard, messages=("messages", "tools", "response_format"))
    assert fn(FINE) is left_out
    assert fn(FINE, response_format={"type": "json_object"}) is left_out
    assert guard.seen == [FINE, FINE]
    assert fn(FINE, [TOOL]) == REFUSAL
    with pytest.raises(UnsupportedContentError, match="'tools' holds a object, which is no schema"):
        fn(FINE, [object()])


def test_a_caution_never_stands_among_the_tools():
    def create(messages, tools=None):
        return messages, tools

    fn = guarded(create, guard=WordGuard(), messages=("tools", "messages"))
    tools = [{"type": "function", "function": {"name": "odd"}}]
    assert fn(FINE, tools) == ([{"role": "system", "content": CAUTION}, *FINE], tools)


# --- pictures are sent as they were judged --------------------------------------------------------


def encoded(mode="RGBA"):
    """A PNG; in RGBA a transparent one, which decoders read differently."""
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "PNG")
    return file.getvalue()


def url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def about(**image):
    return [{"role": "user", "content": [{"type": "text", "text": "What?"}, image]}]


def only_picture(chat):
    return to_request(chat, policy=Policy()).images[0].tobytes()


@every_form
@pytest.mark.parametrize(
    "image",
    [url(encoded()), encoded(), Image.new("RGBA", (4, 4)), "a.png"],
    ids=["data URL", "bytes", "Pillow", "path"],
)
def test_the_callable_gets_the_picture_that_was_judged(form, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    guard = WordGuard()
    chat = about(type="image", image=image)
    [(_, sent)] = Forms.run(guarded(form(_echo), guard=guard), chat)
    (tmp_path / "a.png").unlink()  # what is sent names no file
    require_one_reading(sent, Policy())
    assert only_picture(sent) == only_picture(guard.seen[0])
    assert chat == about(type="image", image=image)


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_any_decoder_behind_the_callable_reads_the_pixels_that_were_scored(make):
    guard = WordGuard()
    [(_, sent)] = Forms.run(guarded(_echo, guard=guard), about(type="image", image=make()))
    [scored] = to_request(guard.seen[0], policy=Policy()).images
    for read in (by_convert, by_vllm):
        np.testing.assert_array_equal(read(sent[0]["content"][1]["image"]), np.asarray(scored))


@every_form
def test_shadow_mode_sends_pictures_as_they_came(form):
    chat = about(type="image", image=encoded())
    ask = guarded(form(_echo), guard=WordGuard(Policy(mode="shadow", pictures="refuse")))
    assert Forms.run(ask, chat) == [("sent", chat)]


@every_form
def test_the_policy_may_refuse_pictures_with_two_readings_instead(form):
    made, guard = [], WordGuard(Policy(pictures="refuse"))
    ask = guarded(form(made.append), guard=guard)
    with pytest.raises(UnsupportedContentError, match="two ways"):
        Forms.run(ask, about(type="image_url", image_url={"url": url(encoded())}))
    assert (made, guard.seen) == ([], [])
    chat = about(type="image_url", image_url={"url": url(encoded("RGB"))})
    Forms.run(ask, chat)
    assert made == [chat]


def test_an_address_among_the_arguments_stays_one_and_must_have_one_reading(tmp_path):
    path = tmp_path / "a.png"
    show = guarded(lambda image, prompt: image, guard=WordGuard(), messages=("image", "prompt"))
    for address in (path, str(path), path.as_uri()):
        path.write_bytes(encoded("RGB"))
        assert show(address, "What?") == address
        path.write_bytes(encoded())
        with pytest.raises(UnsupportedContentError, match=r"the argument 'image' is .* two ways"):
            show(address, "What?")


def test_what_a_callable_makes_must_have_one_reading_unless_it_is_an_argument():
    def made(bound):
        return [*bound.arguments["messages"]]

    chat = about(type="image", image=encoded())
    ask = guarded(Forms.function(_echo), guard=WordGuard(), messages=made)
    with pytest.raises(UnsupportedContentError, match="two ways"):
        ask(chat)
    fine = about(type="image", image=encoded("RGB"))
    assert ask(fine) == ("sent", fine)
    chosen = guarded(
        Forms.function(_echo), guard=WordGuard(), messages=lambda b: b.arguments["messages"]
    )
    require_one_reading(chosen(chat)[1], Policy())
