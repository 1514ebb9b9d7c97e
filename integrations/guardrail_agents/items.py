"""What an agent's model is about to read -> the form a guard reads; nothing is dropped.

Input items are those of OpenAI's Responses API, in which the SDK keeps every chat, whichever model
answers. Pictures become canonical, and what goes on has them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from guardrail.errors import UnsupportedContentError
from guardrail.front.arguments import snapshot
from guardrail.front.chats import result_chat
from guardrail.front.judging import Heard, words_of
from guardrail.front.tool_values import read_value
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.labels import CIPHERS, is_label, is_unspoken
from guardrail.inputs.parts import as_mapping, refuse_unknown
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guardrail.front.judging import Chat
    from guardrail.policy import Policy

    Piece = str | Sequence[Mapping[str, Any]]

# Of every item: labels, which say what it is and how it came about.
_ABOUT = frozenset({"type", "id", "status", "phase", "call_id", "caller", "agent", "async"})
_ABOUT_ITEMS = _ABOUT | {"created_by", "execution"}
# Beside the items of other providers: their own labels, ciphers and thoughts.
_PROVIDERS = "provider_data"
_PROVIDERS_LABELS = frozenset({"model", "response_id", "type"})
_PROVIDERS_CIPHERS = CIPHERS | {"data"}
_CIPHER = "encrypted_content"
# Of parts: what a guard does not read as words, so it is read here.
_ABOUT_PARTS = frozenset({"id", "prompt_cache_breakpoint"})
_BESIDE_PARTS = _ABOUT_PARTS | {"annotations", "logprobs"}
_TOKEN = frozenset({"token", "bytes", "logprob", "top_logprobs"})


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What goes to a model, its pictures canonical, and as a guard hears it."""

    instructions: str | None
    items: str | list[Any]
    heard: Heard

    @classmethod
    def of(
        cls,
        items: Any,
        policy: Policy,
        *,
        instructions: str | None = None,
        words: Iterable[Piece] = (),
    ) -> Self:
        """Input items, the instructions that go before them, and pieces that come beside them.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        sent = canonical_chat(snapshot(items), policy)  # what is judged is what is sent
        read = _Items(policy)
        if isinstance(sent, str):
            read.chat.append({"role": "user", "content": [_text(sent)]})
        elif isinstance(sent, list):
            for i, item in enumerate(sent):
                sent[i] = read.add(item, f"input[{i}]")
        else:
            raise UnsupportedContentError(
                f"the input is a {type(items).__name__}; send a str or a list of items"
            )
        heard = Heard.of(read.chat, [instructions] if instructions else [])
        pieces = map(result_chat, filter(None, (*read.beside, *words)))
        return cls(instructions, sent, replace(heard, beside=[*heard.beside, *pieces]))

    def cautioned(self, words: str) -> Self:
        """The same with words of caution before the instructions."""
        head = self.instructions
        return replace(self, instructions=f"{words}\n\n{head}" if head else words)


def output_parts(output: str | Sequence[Any], policy: Policy) -> list[dict[str, Any]]:
    """What a model is shown of a tool's output, as parts of a message; none for nothing.

    Raises:
        InputError: something in it that a guard cannot read.
    """
    if isinstance(output, str):
        return read_value(output, policy, "the output of a tool").content
    [turn] = canonical_chat([{"role": "tool", "content": list(output)}], policy)
    parts, beside = _parts(turn["content"], "the output of a tool")
    return [*parts, *(_text(f"\n{words}") for words in beside)]


@dataclass(slots=True)
class _Items:
    """A chat of the items read so far, and what of them comes beside it."""

    policy: Policy
    chat: Chat = field(default_factory=list)
    beside: list[Piece] = field(default_factory=list)
    names: dict[object, str] = field(default_factory=dict)

    def add(self, item: object, what: str) -> Mapping[Any, Any]:
        """Put an item's words into the chat; the item as it goes on."""
        named: Mapping[Any, Any] = as_mapping(item, what)
        kind = named.get("type") or ("message" if "role" in named else None)
        for key in _ABOUT_ITEMS & {*named}:
            self.beside += _labelled_words(named[key])
        self.beside += _providers_words(named.get(_PROVIDERS))
        cipher = named.get(_CIPHER)
        if cipher and not _is_ciphered(cipher):
            self.beside.append(words_of([cipher]))
        match kind:
            case "message":
                refuse_unknown(named, _ABOUT | {"role", "content", _PROVIDERS}, what)
                if not isinstance(named.get("role"), str):
                    raise UnsupportedContentError(f"{what}.role is no text; say who speaks")
                self._say(named.get("role"), self._parts(named, "content", what) or [_text("")])
            case "function_call":
                keys = {"name", "arguments", "namespace", _PROVIDERS}
                refuse_unknown(named, _ABOUT | keys, what)
                self._call(named)
            case "function_call_output":
                refuse_unknown(named, _ABOUT | {"output", "name", "namespace", _PROVIDERS}, what)
                label = named.get("call_id")
                content = self._parts(named, "output", what) or ""
                about = {"tool_call_id": label, "name": _name(named) or self.names.get(label)}
                labels = {key: text for key, text in about.items() if text}
                self.chat.append({"role": "tool", "content": content, **labels})
            case "reasoning":
                keys = {"summary", "content", _CIPHER, _PROVIDERS}
                refuse_unknown(named, _ABOUT | keys, what)
                self._think([*(named.get("summary") or []), *(named.get("content") or [])], what)
            case "item_reference" | None:
                raise UnsupportedContentError(
                    f"{what} names something that is not in the request ({kind or 'no type'}), "
                    "which a guard cannot read; send the item itself"
                )
            case str():
                return self._other(named, f"{what} ({kind[:80]})")
            case _:
                raise UnsupportedContentError(
                    f"{what}.type is a {type(kind).__name__}; send the item's own type"
                )
        return named

    def _parts(self, named: Mapping[Any, Any], key: str, what: str) -> list[dict[str, Any]]:
        parts, beside = _parts(named.get(key), f"{what}.{key}")
        self.beside += beside
        return parts

    def _call(self, named: Mapping[Any, Any]) -> None:
        label, name = named.get("call_id"), _name(named)
        self.names[label] = str(name)
        function = {"name": name, "arguments": named.get("arguments")}
        self._say("assistant", [], {"type": "function", "id": label, "function": function})

    def _think(self, thoughts: Sequence[Any], what: str) -> None:
        said = []
        for thought in thoughts:
            held = as_mapping(thought, f"a thought of {what}")
            said += [_text(words)] if isinstance(words := held.get("text"), str) and words else []
            self.beside += _labelled_words(held.get("type"))
            taken = {"type", "text"} if isinstance(words, str) else {"type"}
            self.beside.append(words_of({k: v for k, v in held.items() if k not in taken}))
        if said:
            self._say("assistant", said)

    def _other(self, item: Mapping[Any, Any], what: str) -> Mapping[Any, Any]:
        """An item of a tool that the provider or the SDK runs, read whole, calls and results alike.

        It is judged as something a user says: templates disagree on tools that nobody called. Tools
        that it brings are judged each by itself.
        """
        read = _ABOUT_ITEMS | {_CIPHER, _PROVIDERS}
        rest = {key: value for key, value in item.items() if key not in read}
        shown, tools, changed = rest.get("output"), rest.get("tools"), dict[Any, Any]()
        if isinstance(shown, Mapping) and shown.get("file_id"):
            raise UnsupportedContentError(
                f"{what} names a file that is stored elsewhere; send its data"
            )
        refuse_unread(rest, what)
        if isinstance(tools, list | tuple):
            readings = [read_value(tool, self.policy, f"a tool of {what}") for tool in tools]
            self.beside += [each.content for each in readings]
            changed["tools"] = [each.value for each in readings]
            del rest["tools"]
        reading = read_value(rest, self.policy, what)
        made = reading.said.get("result") if isinstance(reading.said, Mapping) else None
        if item.get("type") == "image_generation_call" and made:
            raise UnsupportedContentError(f"{what} holds no picture that a guard can read")
        if content := reading.content:
            self._say("user", content)
        if not enforces(self.policy) or not isinstance(reading.value, Mapping):
            return item
        return {**item, **reading.value, **changed}

    def _say(
        self, role: object, parts: list[dict[str, Any]], call: Mapping[str, Any] | None = None
    ) -> None:
        """One more turn; what an assistant thinks, says and then calls is one."""
        last = self.chat[-1] if self.chat else {}
        if not (role == last.get("role") == "assistant") or (parts and last.get("tool_calls")):
            last = {"role": role, "content": []}
            self.chat.append(last)
        last["content"] += parts
        if call is not None:
            last.setdefault("tool_calls", []).append(call)


def _name(named: Mapping[Any, Any]) -> Any:
    """The name of a called tool, in its namespace."""
    name, space = named.get("name"), named.get("namespace")
    return f"{space}.{name}" if space else name


def _is_ciphered(value: object) -> bool:
    """Whether a text is a cipher, or several on lines of their own."""
    lines = value.split("\n") if isinstance(value, str) else [value]
    return all(is_unspoken(_CIPHER, line, ()) for line in lines)


def _providers_words(value: object) -> list[str]:
    """What stands beside an item for one provider: models are shown thoughts from there."""
    match value:
        case Mapping():
            spoken = {
                key: item
                for key, item in value.items()
                if not is_unspoken(key, item, _PROVIDERS_LABELS, _PROVIDERS_CIPHERS)
            }
            said = [words for item in spoken.values() for words in _providers_words(item)]
            return [*(words for key in spoken for words in _labelled_words(key)), *said]
        case list() | tuple():
            return [words for item in value for words in _providers_words(item)]
    return [words] if (words := words_of(value)) else []


def _parts(content: object, what: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Content as parts that a guard reads, with the words of citations, and what comes beside."""
    if isinstance(content, str):
        return [_text(content)] if content else [], []
    if not isinstance(content, Sequence):
        raise UnsupportedContentError(f"{what} is a {type(content).__name__}; send text or parts")
    found: list[dict[str, Any]] = []
    beside: list[str] = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            found.append(_text(part))
            continue
        named = as_mapping(part, f"{what}[{i}]")
        found.append({str(k): v for k, v in named.items() if k not in _BESIDE_PARTS})
        if cited := words_of(named.get("annotations")):
            found.append(_text(f"\n{cited}"))
        for key in _ABOUT_PARTS & {*named}:
            beside += _labelled_words(named[key])
        beside += _tokens_words(named.get("logprobs"), named.get("text"))
    return found, beside


def _tokens_words(logprobs: object, text: object) -> list[str]:
    """What tokens and those in their stead say, beside the text that they make up."""
    tokens: list[Any] = list(logprobs) if isinstance(logprobs, list | tuple) else [logprobs]
    found = all(map(_is_token, tokens))
    others = (
        [other for token in tokens for other in token.get("top_logprobs") or ()] if found else []
    )
    if not found or not all(map(_is_token, others)):
        return [words] if (words := words_of(logprobs)) else []
    spelt = "".join(str(token.get("token")) for token in tokens)
    said = text if isinstance(text, str) else ""
    rest = dict.fromkeys(str(other.get("token")) for other in others)
    unsaid = [*([] if spelt == said else [spelt]), "".join(t for t in rest if t not in said)]
    return [words for words in unsaid if words.strip()]


def _is_token(value: object) -> bool:
    """Whether a value says no more than one token, others in its stead, and numbers about them."""
    if not isinstance(value, Mapping) or not {*value} <= _TOKEN:
        return False
    spelt, others = (value.get(key) or [] for key in ("bytes", "top_logprobs"))
    if not isinstance(spelt, list | tuple) or not isinstance(others, list | tuple):
        return False
    numbers = [value.get("logprob"), *spelt]
    return all(each is None or isinstance(each, int | float) for each in numbers)


def _labelled_words(value: object) -> list[str]:
    """Words that stand where labels should: texts that are none, and lists of texts.

    A list of labels could be a sentence.
    """
    match value:
        case str():
            return [value] if value.strip() and not is_label(value) else []
        case Mapping():
            held = [*value, *value.values()]
        case list() | tuple():
            said = " ".join(each for each in value if isinstance(each, str)).strip()
            rest = [each for each in value if not isinstance(each, str)]
            return [*([said] if said else []), *(w for each in rest for w in _labelled_words(each))]
        case _:
            return []
    return [words for each in held for words in _labelled_words(each)]


def refuse_unread(tool: object, what: str) -> None:
    """Refuse what a tool brings in a form that no guard reads, or that is kept elsewhere.

    Raises:
        UnsupportedContentError: it brings a skill that is packed or stored, or a stored picture.
    """
    if not isinstance(tool, Mapping):
        return
    for inner in _list(tool.get("tools")):
        refuse_unread(inner, what)
    environment, mask = tool.get("environment"), tool.get("input_image_mask")
    skills = environment.get("skills") if isinstance(environment, Mapping) else None
    for skill in _list(skills):
        if not isinstance(skill, Mapping) or {"skill_id", "source"} & {*skill}:
            raise UnsupportedContentError(
                f"{what} brings a skill that is packed or kept at the provider, which a guard "
                "cannot read; put it into the instructions, or use a local skill"
            )
    if isinstance(mask, Mapping) and mask.get("file_id") is not None:
        raise UnsupportedContentError(
            f"{what} names a picture that is kept at the provider (file_id), which a guard cannot "
            "read; send its data"
        )


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}
