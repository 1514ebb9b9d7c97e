"""The same prompt in the forms in which requests come: one table, and one loop that reads it.

A detector that is fitted on bare requests reads the words around a request, its case and its place
in a chat as much as the request itself. Read in all these forms, prompts of one class differ by
their form, which an estimator then learns to ignore. A class must never be told by what is around:
what is drawn for a prompt depends on the form, the split and the turn within its kind, and on
nothing else, so every kind comes with the same surroundings. What judges a fit has other words
around it than what is fitted on.
"""

from __future__ import annotations

import json
import random
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from guardrail.errors import InputError, UnsupportedModelError
from guardrail.fit.collect import text_request
from guardrail.fit.dataset import frames, neutral_prompts, surroundings
from guardrail.fit.prompts import Sample, grouped, meaningless_images
from guardrail.types import ImagePart, Message, Request, TextPart, ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guardrail.fit.dataset import ContrastSet, Frame, NeutralSplit, Split
    from guardrail.model.encode import Encoder

SLOT = "{text}"  # where a frame holds the prompt
RULES: dict[NeutralSplit, str] = {"fit": "app rules", "held out": "service rules"}
CALL_ID = "call00001"  # some templates ask for exactly nine letters and digits
TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": what,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string"}},
                "required": [argument],
            },
        },
    }
    for name, what, argument in (
        ("read_mail", "Read the newest mail in a folder.", "folder"),
        ("read_document", "Read a document of the user.", "name"),
    )
)
"""The same for all requests, as the rows of a batch must have the same tools."""

# Few mostly, many sometimes: what is around is read, too, and costs as much as the prompt.
_COUNTS = (1, 1, 1, 1, 2, 2, 2, 3, 4, 8)
_IN_SYSTEM_PROMPTS = (3, 3, 3, 4, 6, 10)
_EXCHANGES = (1, 1, 1, 2, 3, 4)
_PICTURES = (1, 1, 1, 1, 2)


@dataclass(frozen=True)
class Words:
    """What a split may put around a prompt, drawn without a look at the prompt."""

    split: NeutralSplit
    rng: random.Random

    def prose(self, counts: Sequence[int] = _COUNTS, register: str | None = None) -> str:
        """Some sentences of one register, a random one unless it is named."""
        pool = surroundings(self.split)
        sentences = pool[register or self.rng.choice(list(pool))]
        return " ".join(self.rng.sample(sentences, self.rng.choice(counts)))

    def frame(self, use: str) -> Frame:
        """A line of that use."""
        return self.rng.choice(frames(self.split)[use])

    def neutral(self) -> str:
        """A prompt without a request of its own."""
        return self.rng.choice(neutral_prompts(self.split))

    def gap(self) -> str:
        """What stands between two texts."""
        return self.rng.choice((" ", "\n", "\n\n"))

    def heads(self) -> bool:
        """A fair coin."""
        return self.rng.random() < 0.5


@dataclass(frozen=True)
class Chat:
    """A request, and in which of its turns the prompt stands."""

    request: Request
    message: int = 0


@dataclass(frozen=True)
class Form:
    """How a prompt is asked. With `pictures` meaningless ones stand before it, each of one colour.

    What `chat` draws must not depend on the text.
    """

    name: str
    chat: Callable[[str, Words], Chat]
    pictures: bool = False


def _alone(text: str) -> Chat:
    return Chat(text_request(text))


def _turn(role: str, text: str) -> Message:
    return Message(role=role, parts=(TextPart(text),))


def _bare(text: str, _words: Words) -> Chat:
    return _alone(text)


def _carried(text: str, words: Words) -> Chat:
    """Before a neutral prompt; half are lower case, as text is that was read from somewhere."""
    return _alone(f"{text.lower() if words.heads() else text}\n{words.neutral()}")


def _before(text: str, words: Words) -> Chat:
    return _alone(f"{words.prose()}{words.gap()}{text}")


def _after(text: str, words: Words) -> Chat:
    return _alone(f"{text}{words.gap()}{words.prose()}")


def _between(text: str, words: Words) -> Chat:
    return _alone(f"{words.prose()}{words.gap()}{text}{words.gap()}{words.prose()}")


def _framed(use: str, written: Callable[[str], str] = str) -> Callable[[str, Words], Chat]:
    """In a frame of that use, `written` as its kind of text asks for."""
    return lambda text, words: _alone(words.frame(use).text.replace(SLOT, written(text)))


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _on_a_line(text: str) -> str:
    return " ".join(text.split())


def _upper(text: str, _words: Words) -> Chat:
    return _alone(text.upper())


def _lower(text: str, _words: Words) -> Chat:
    """Lower case without punctuation; what joins words becomes a space."""
    apart = text.lower().replace("-", " ").replace("/", " ")
    kept = (c for c in apart if not unicodedata.category(c).startswith("P"))
    return _alone(_on_a_line("".join(kept)) or text)


def _system(text: str, words: Words) -> Chat:
    """Behind a system prompt: half of them an app's rules, half plain prose."""
    register = RULES[words.split] if words.heads() else None
    system = words.prose(_IN_SYSTEM_PROMPTS, register)
    return Chat(Request((_turn("system", system), _turn("user", text))), message=1)


def _turns(text: str, words: Words) -> Chat:
    """Behind harmless exchanges."""
    count = words.rng.choice(_EXCHANGES)
    earlier = [
        _turn(role, said)
        for frame in words.rng.sample(frames(words.split)["exchange"], count)
        for role, said in (("user", frame.text), ("assistant", frame.answer))
    ]
    return Chat(Request((*earlier, _turn("user", text))), message=len(earlier))


def _earlier(text: str, words: Words) -> Chat:
    """In a turn that was refused, or whose answer began; what is said last is harmless."""
    answer = words.frame("refusal" if words.heads() else "start").text
    last = words.frame(words.rng.choice(("follow-up", "follow-up", "exchange"))).text
    return Chat(Request((_turn("user", text), _turn("assistant", answer), _turn("user", last))))


def _tool(text: str, words: Words) -> Chat:
    """In what a tool gave back."""
    frame = words.frame("tool")
    call = ToolCall(**frame.call, id=CALL_ID)
    messages = (
        _turn("user", frame.text),
        Message(role="assistant", parts=(), tool_calls=(call,)),
        replace(_turn("tool", frame.answer.replace(SLOT, text)), tool_call_id=CALL_ID),
    )
    return Chat(Request(messages, TOOLS), message=2)


def _beside(text: str, words: Words) -> Chat:
    """As people write beside a picture: the request alone, or a neutral prompt behind it."""
    return _carried(text, words) if words.heads() else _alone(text)


FORMS = (
    Form("bare", _bare),
    Form("carried", _carried),
    Form("before", _before),
    Form("after", _after),
    Form("between", _between),
    Form("quoted", _framed("quoted")),
    Form("json", _framed("json", _in_json)),
    Form("code", _framed("code", _on_a_line)),
    Form("upper", _upper),
    Form("lower", _lower),
    Form("fiction", _framed("fiction")),
    Form("system", _system),
    Form("turns", _turns),
    Form("earlier", _earlier),
    Form("tool", _tool),
    Form("pictured", _beside, pictures=True),
)

_SOME: Mapping[Split, int | None] = {"fit": 10, "select": 3, "calibrate": 3}
PLAN: dict[str, Mapping[Split, int | None]] = {form.name: _SOME for form in FORMS} | {
    "bare": {"fit": 64, "select": 32, "calibrate": None},
    "pictured": {"fit": 16, "select": 6, "calibrate": 34},
}
"""How many prompts of each kind a split gives to each form; None is all of them."""


def samples(
    contrast: ContrastSet, form: Form, limits: Mapping[Split, int | None], *, seed: int = 0
) -> list[Sample]:
    """Prompts of the contrast set in one form of the table, at most `limits` of each kind.

    They are spread over each kind, and other forms take other prompts, so that the forms together
    cover the set. Unsafe prompts of the calibration split are left out, as no decision needs them.
    Pictures cost most, so with them the classes are of one size: of unsafe prompts there are as
    many as of all safe kinds together, with the surroundings of one safe kind over and over.
    """
    place = FORMS.index(form)
    groups = grouped(contrast)
    found = []
    for (split, kind), group in groups.items():
        if (split, kind) == ("calibrate", "unsafe"):
            continue
        limit = limits[split]
        safe_kinds = len({k for s, k in groups if s == split} - {"unsafe"})
        rounds = safe_kinds if form.pictures and kind == "unsafe" else 1
        chosen = _scattered(group, None if limit is None else limit * rounds, place)
        for turn, i in enumerate(chosen):
            around = turn if limit is None else turn % limit
            rng = random.Random(f"{seed} {form.name} {split} {around}")
            chat = _chat(form, contrast.prompts[i].text, Words(_pool(split), rng))
            found.append(Sample(i, form.name, chat.request, chat.message))
    return found


def readable(encoder: Encoder) -> tuple[Form, ...]:
    """The forms that a model takes: not all know tools, system prompts or pictures."""
    return tuple(form for form in FORMS if _takes(encoder, form))


def _takes(encoder: Encoder, form: Form) -> bool:
    """Asks the model's own template and processor, on one chat."""
    chat = _chat(form, "What is this?", Words("fit", random.Random(form.name)))
    try:
        encoder.encode([chat.request])
    except (InputError, UnsupportedModelError):
        return False
    return True


def _chat(form: Form, text: str, words: Words) -> Chat:
    chat = form.chat(text, words)
    if not form.pictures:
        return chat
    count, seed = words.rng.choice(_PICTURES), words.rng.randrange(2**32)
    pictures = tuple(ImagePart(picture) for picture in meaningless_images(count, seed=seed))
    turns = list(chat.request.messages)
    turn = turns[chat.message]
    turns[chat.message] = replace(turn, parts=(*pictures, *turn.parts))
    return replace(chat, request=replace(chat.request, messages=tuple(turns)))


def _pool(split: Split) -> NeutralSplit:
    return "fit" if split == "fit" else "held out"


def _scattered(items: Sequence[int], limit: int | None, place: int) -> list[int]:
    """At most `limit` of the items: one of each of as many stretches, another one for each place.

    Which one moves on from stretch to stretch, as sets are often in an order that repeats.
    """
    if limit is None or len(items) <= limit:
        return list(items)
    chosen = []
    for k in range(limit):
        start, end = k * len(items) // limit, (k + 1) * len(items) // limit
        chosen.append(items[start + (place + k) % (end - start)])
    return chosen
