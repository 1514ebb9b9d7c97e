from __future__ import annotations

import functools
import threading
from collections import UserDict
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, PrivateAttr

from guardrail.errors import ConfigurationError
from guardrail.front.arguments import Selector

CHAT = [{"role": "user", "content": "hello"}]
WORDS = "Careful."
CAUTIONED = [{"role": "system", "content": WORDS}, *CHAT]


@dataclass(frozen=True, slots=True)
class Frozen:
    messages: Any


class Model(BaseModel):
    model_config = ConfigDict(frozen=True)
    messages: Any


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    model: str = "m"


class ReadOnly:
    @property
    def messages(self):
        return CHAT


class Settable(ReadOnly):
    data = None

    @ReadOnly.messages.setter
    def messages(self, value):
        self.data = value


class Proxy:
    def __init__(self):
        self.data = {"messages": CHAT}

    def __getattr__(self, name):
        if name != "messages":
            raise AttributeError(name)
        return self.data[name]


class Cached:
    @functools.cached_property
    def messages(self):
        return CHAT


class OfTheClass:
    messages = CHAT


class Computed(BaseModel):
    @property
    def messages(self):
        return CHAT


class Private(BaseModel):
    _messages: Any = PrivateAttr(default=CHAT)


def ask(body, model="m"):
    return body


def called(fn, wanted, *args, **kwargs):
    return Selector(fn, wanted).call(args, kwargs)


# --- paths into an argument -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda chat: {"messages": chat, "n": 1},
        lambda chat: UserDict(messages=chat),
        lambda chat: SimpleNamespace(messages=chat, n=1),
        lambda chat: Frozen(chat),
        lambda chat: Model(messages=chat),
        lambda chat: Extra(messages=chat),
    ],
    ids=["dict", "mapping", "object", "frozen dataclass", "pydantic", "pydantic extra"],
)
def test_a_path_leads_into_an_argument_and_the_callers_object_stays(make):
    body = make(CHAT)
    call = called(ask, "body.messages", body)
    assert call.value == CHAT
    assert call.caution(WORDS)
    [sent] = call.bound.args[:1]
    assert type(sent) is type(body)
    assert sent is not body
    assert (sent["messages"] if hasattr(sent, "keys") else sent.messages) == CAUTIONED
    assert (body["messages"] if hasattr(body, "keys") else body.messages) == CHAT


@pytest.mark.parametrize("kind", [Model, Extra])
def test_a_caution_in_a_pydantic_model_is_in_what_it_dumps(kind):
    body = kind(messages=CHAT)
    call = called(ask, "body.messages", body)
    call.caution(WORDS)
    sent = call.bound.arguments["body"]
    assert sent.messages == sent.model_dump()["messages"] == CAUTIONED
    assert sent.model_dump(exclude_unset=True) == {"messages": CAUTIONED}
    assert body.model_dump()["messages"] == CHAT


def test_a_path_may_be_long_and_mixed():
    body = SimpleNamespace(payload={"inner": Frozen(CHAT)}, other=[1])
    call = called(ask, "body.payload.inner.messages", body)
    call.caution(WORDS)
    sent = call.bound.arguments["body"]
    assert sent.payload["inner"].messages == CAUTIONED
    assert sent.other is body.other
    assert body.payload["inner"].messages == CHAT


def test_a_path_may_begin_in_the_keywords():
    call = called(lambda **rest: rest, "body.messages", body={"messages": CHAT}, n=1)
    call.caution(WORDS)
    assert call.bound.kwargs == {"body": {"messages": CAUTIONED}, "n": 1}


def test_what_was_checked_is_sent_even_if_the_caller_changes_it_meanwhile():
    body = {"messages": [{"role": "user", "content": "hello"}]}
    call = called(ask, "body.messages", body)
    body["messages"][0]["content"] = "bad"
    body["messages"] = "worse"
    assert call.bound.arguments["body"]["messages"] == call.value == CHAT


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "no argument 'messages'"),
        (None, "no argument 'messages'"),
        (3, "no argument 'messages'"),
        (ReadOnly(), "'messages' cannot be replaced in a copy of a ReadOnly"),
        (Settable(), "cannot be replaced in a copy of a Settable"),
        (Proxy(), "cannot be replaced in a copy of a Proxy"),
        (Cached(), "cannot be replaced in a copy of a Cached"),
        (OfTheClass(), "cannot be replaced in a copy of a OfTheClass"),
        (Computed(), "cannot be replaced in a copy of a Computed"),
        (MappingProxyType({"messages": CHAT}), "copy of a mappingproxy|cannot pickle"),
    ],
)
def test_a_path_that_leads_nowhere_or_cannot_be_sent_is_an_error(body, words):
    with pytest.raises(ConfigurationError, match=words):
        called(ask, "body.messages", body)


def test_a_private_attribute_of_a_model_cannot_be_sent():
    with pytest.raises(ConfigurationError, match="cannot be replaced in a copy of a Private"):
        called(ask, "body._messages", Private())


def _messages_of(bound):
    body = bound.arguments["body"]
    return body[0].messages if isinstance(body, list) else body.messages


@pytest.mark.parametrize("listed", [False, True])
def test_a_model_that_changes_after_a_callable_chose_is_sent_as_it_was_checked(listed):
    body = Model(messages=[{"role": "user", "content": "hello"}])
    call = called(ask, _messages_of, [body] if listed else body)
    body.messages[0]["content"] = "bad"
    [sent] = call.bound.args[0] if listed else call.bound.args[:1]
    assert sent.messages == call.value == CHAT
    assert type(sent) is Model


def test_what_cannot_be_copied_is_no_message_and_goes_as_it_is():
    client = Extra(lock=threading.Lock(), messages=CHAT)
    call = called(ask, lambda bound: "hello", client)
    assert call.bound.arguments["body"] is client


def test_a_method_chosen_from_by_a_callable_keeps_its_object():
    class Session(BaseModel):
        asked: int = 0

        def ask(self, prompt):
            self.asked += 1
            return prompt

    session = Session()
    call = called(Session.ask, lambda bound: bound.arguments["prompt"], session, "hello")
    assert call.bound.arguments["self"] is session


def test_a_path_begins_with_a_parameter():
    with pytest.raises(ConfigurationError, match="no parameter 'request'"):
        Selector(ask, "request.messages")


# --- several parameters ---------------------------------------------------------------------------


def describe(prompt, image=None, *, system=None, history=(), count=1):
    return prompt


ALL = ("system", "history", "prompt", "image")


def text(value):
    return {"type": "text", "text": value}


def test_several_parameters_are_joined_into_one_chat():
    picture = Image.new("RGB", (2, 2))
    call = called(describe, ALL, "What?", picture, system="Be brief.", history=CHAT)
    assert call.value == [
        {"role": "system", "content": "Be brief."},
        *CHAT,
        {"role": "user", "content": [text("What?"), {"type": "image", "image": picture}]},
    ]


def test_pictures_and_lists_are_sent_as_they_were_checked():
    picture, names = Image.new("RGB", (2, 2), "white"), ["a"]
    call = called(lambda images, prompt: 0, ("images", "prompt"), [picture], names)
    picture.putpixel((0, 0), (0, 0, 0))
    names.append("bad")
    assert call.bound.args[0][0].getpixel((0, 0)) == (255, 255, 255)
    assert call.bound.args[1] == ["a"]
    assert call.value[0]["content"][0]["image"] is call.bound.args[0][0]


@pytest.mark.parametrize(
    ("wanted", "kwargs", "changed"),
    [
        (ALL, {"prompt": "p", "system": "s"}, {"system": f"{WORDS}\n\ns"}),
        (ALL, {"prompt": "p"}, {"system": WORDS}),
        (("prompt", "history"), {"prompt": "p"}, {"prompt": f"{WORDS}\n\np"}),
        (("history", "prompt"), {"prompt": "p", "history": CHAT}, {"history": CAUTIONED}),
        (("image", "prompt"), {"prompt": "p", "image": "a.png"}, {"prompt": f"{WORDS}\n\np"}),
        (("image", "prompt"), {"prompt": ["p"], "image": "a.png"}, None),
        (("image",), {"prompt": "p", "image": "a.png"}, None),
    ],
)
def test_a_caution_stands_in_the_system_parameter_or_before_the_first_text(wanted, kwargs, changed):
    call = called(describe, wanted, **kwargs)
    before = dict(call.bound.arguments)
    assert call.caution(WORDS) is (changed is not None)
    assert call.bound.arguments == {**before, **(changed or {})}


def test_parameters_may_be_paths_and_keys_that_may_be_left_out():
    wanted = ("body.system", "body.prompt", "body.image", "extra")
    call = called(lambda body, **rest: 0, wanted, {"prompt": "p", "system": "s"})
    assert call.value == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [text("p")]},
    ]
    assert call.caution(WORDS)
    assert call.bound.args == ({"prompt": "p", "system": f"{WORDS}\n\ns"},)
    with pytest.raises(ConfigurationError, match="no argument 'prompt'"):
        called(lambda body: 0, ("body.prompt",), {"question": "bad"})


def test_further_positional_arguments_are_several():
    call = called(lambda *prompts: prompts, ("prompts",), "a", "b")
    assert call.value == [{"role": "user", "content": [text("a\n\nb")]}]
    assert call.bound.args == ("a", "b")


@pytest.mark.parametrize("name", ["video", "videos", "video_url", "video_urls", "frames"])
def test_a_video_beside_the_messages_would_go_unchecked_and_is_asked_for(name):
    names = {}
    exec(f"def fn(prompt, {name}=None): ...", names)
    with pytest.raises(ConfigurationError, match=name):
        Selector(names["fn"], None)
    call = called(names["fn"], (name, "prompt"), "what?", "v.mp4")
    assert call.value[0]["content"][0] == {"type": "video", "video": "v.mp4"}


def test_frames_cannot_be_changed_between_check_and_call():
    frames = [np.zeros((2, 2, 3), np.uint8)]
    call = called(lambda video: 0, "video", frames)
    frames[0][:] = 255
    sent = call.bound.args[0][0]
    assert call.value[0]["content"][0]["video"][0] is sent
    assert not sent.any()


@pytest.mark.parametrize("wanted", [None, "image", ("image",)])
def test_an_address_in_an_argument_named_image_is_checked_as_a_picture(wanted):
    call = called(lambda image: image, wanted, "photo.png")
    assert call.value == [
        {"role": "user", "content": [{"type": "image", "image": "photo.png"}]},
    ]
    assert not call.caution(WORDS)


@pytest.mark.parametrize("wanted", [(), [], ("prompt", "prompt")])
def test_names_that_say_nothing_are_an_error_at_decoration(wanted):
    with pytest.raises(ConfigurationError, match="each of them once"):
        Selector(describe, wanted)


def test_a_name_that_is_no_parameter_is_an_error_at_decoration():
    with pytest.raises(ConfigurationError, match="no parameter 'picture'"):
        Selector(describe, ("prompt", "picture"))


def test_a_partials_own_arguments_are_checked_where_they_can_still_be_replaced():
    fn = functools.partial(describe, system="Be brief.", count=3)
    call = called(fn, ("system", "prompt"), "What?")
    assert call.value[0] == {"role": "system", "content": "Be brief."}
    call.caution(WORDS)
    assert call.bound.kwargs["system"] == f"{WORDS}\n\nBe brief."
