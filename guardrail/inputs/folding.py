"""A copy of a request in plain letters: what a large model reads though a small one cannot.

Lookalikes, letters of other widths and styles, invisible characters, marks piled on letters and
letters set apart hide a word from the model that judges it, not from a larger one that answers.
A folded copy says the same in the letters of an ordinary text:

- Invisible characters go (zero-width, bidi, soft hyphens, fillers, variation selectors, controls),
  but for those that join emoji. Tag characters become the ASCII that they repeat.
- Letters and digits of other widths and styles become ordinary ones (NFKC).
- Letters of other scripts that look like Latin ones become those, by Unicode's confusables: in
  words that mix them with Latin letters, and, where most of the text reads as Latin, in words
  of lookalikes alone. Words of Russian or Greek hold other letters, and stay. So do the letters of
  European alphabets (`é`, `ß`, `æ`), whatever they look like.
- Marks that make no letter of any alphabet go from Latin letters, and from all of ASCII.
- 0 and 1 between letters become what they look like, in words without another digit.
- 0, 1, 3, 4, 5, 7, @ and $ become letters where half of a text's words, and three at least, are
  written with them: then they are no numbers, and no codes.
- Four or more letters set apart by the same character are joined. The same character twice or
  three times, or spaces, end a word.

What has no such rule stays: 3, 4, 5, 7, @ and $ in few words, letters in emoji, words that are
reversed, encoded or cut. It is a copy for scores: nobody answers or shows it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from guardrail.types import TextPart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guardrail.types import Message, Request

_USUAL = frozenset(string.printable)
_TAGS = range(0xE0020, 0xE007F)
_EUROPEAN = "\u024f"  # the last letter of Latin Extended-B
_LONGEST_LETTER = 4  # a base and its marks, as far as any alphabet has a letter of them
_LONGEST_SIGN = 4  # letters in it, as in "(10)"; some signs stand for whole sentences of Arabic
_HIDDEN_NAMES = ("VARIATION SELECTOR", "FILLER", "GRAPHEME JOINER")
# Possessive where they repeat, and every alternative ends at once: linear in any text.
_WORD = re.compile(r"[^\W_]++")
_WITH_DIGITS = re.compile(r"(?<!\w)[A-Za-z]++(?:[01]++[A-Za-z]++)++(?!\w)")
_SIGNS = "013457@$"
_SPELT = str.maketrans(_SIGNS, "oieastas")
_WITH_SIGNS = re.compile(rf"(?<![\w@$])[A-Za-z{_SIGNS}]++(?![\w@$])")
_AMONG = re.compile(rf"[A-Za-z][{_SIGNS}]++[A-Za-z]|\A[{_SIGNS}]++[A-Za-z]++[{_SIGNS}]++\Z")
_SPELT_WORDS, _SHORT = 3, 2  # words that show how a text is written; those too short to show it
_LONE = r"[^\W\d_](?![^\W_])"
_SPACED = re.compile(rf"(?<![^\W_]){_LONE}(?=([\W_]))(?:(?:\1{{1,3}}| {{1,3}}){_LONE}){{3,}}+")
_GAP = re.compile(r"[\W_]++")


def folded(request: Request) -> Request | None:
    """The request with every text in it folded; None where that changes nothing.

    Texts are all that a model may be shown: parts, names, ids, calls with their arguments, tools.
    """
    copy = replace(
        request,
        messages=tuple(map(_folded_message, request.messages)),
        tools=tuple(map(_folded_value, request.tools)),
    )
    return None if copy == request else copy


def folded_text(text: str) -> str:
    """The text in plain letters."""
    if odd := set(text) - _USUAL:
        text = _unmarked(_in_latin(_in_plain_characters(text, odd)))
    return _SPACED.sub(_joined, _WITH_DIGITS.sub(_lettered, _spelt(text)))


def _folded_message(message: Message) -> Message:
    calls = tuple(
        replace(
            call,
            name=folded_text(call.name),
            arguments=_folded_value(call.arguments),
            id=folded_text(call.id),
        )
        for call in message.tool_calls
    )
    return replace(
        message,
        parts=tuple(
            TextPart(folded_text(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        ),
        name=_folded_value(message.name),
        tool_call_id=_folded_value(message.tool_call_id),
        tool_calls=calls,
    )


def _folded_value(value: Any) -> Any:
    """JSON values with every string in them folded; keys too, unless two would become one."""
    if isinstance(value, str):
        return folded_text(value)
    if isinstance(value, Mapping):
        names = {key: _folded_value(key) for key in value}
        if len(set(names.values())) < len(names):
            names = dict(zip(value, value, strict=True))
        return {names[key]: _folded_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(_folded_value, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def _in_plain_characters(text: str, odd: Iterable[str]) -> str:
    """Without what nobody sees, in letters and digits of the usual width and style."""
    text = text.translate({ord(c): ord(c) & 0x7F for c in odd if ord(c) in _TAGS})
    if hidden := "".join(filter(_is_hidden, odd)):
        text = re.sub(f"([^{hidden}]?)[{hidden}]++", _seen, text)
    signs = ((c, unicodedata.normalize("NFKC", c)) for c in odd)
    plain = {ord(c): new for c, new in signs if len(new) <= _LONGEST_SIGN}
    # Typographic spaces, dots and quotes alone are ordinary text.
    if any(chr(c) != new and any(map(str.isalnum, new)) for c, new in plain.items()):
        text = text.translate(plain)
    return text


def _is_hidden(char: str) -> bool:
    if unicodedata.category(char) in ("Cc", "Cf"):
        return not char.isspace()
    name = unicodedata.name(char, "")
    return any(part in name for part in _HIDDEN_NAMES)


def _seen(found: re.Match[str]) -> str:
    """What stands before invisible characters; behind a symbol they may make an emoji of it."""
    before = found[1]
    return found[0] if before and unicodedata.category(before) in ("So", "Sk") else before


def _in_latin(text: str) -> str:
    """With Latin letters for what looks like them."""
    if not any(c > _EUROPEAN and c.isalpha() for c in set(text)):
        return text
    table = _lookalikes()
    mixed, alone, latin, foreign = set[str](), set[str](), 0, 0
    for word, times in Counter(_WORD.findall(text)).items():
        letters = list(filter(str.isalpha, word))
        others = set(letters) - table.keys()
        has_latin = any(map(_is_latin, others))
        if others and not has_latin:
            foreign += times * len(letters)
            continue
        latin += times * len(letters)
        if not table.keys().isdisjoint(letters):
            (mixed if has_latin else alone).add(word)
    chosen = mixed | alone if latin > foreign else mixed

    def shown(found: re.Match[str]) -> str:
        word = found[0]
        if word not in chosen:
            return word
        return "".join(table.get(c, c) if c.isalpha() else c for c in word)

    return _WORD.sub(shown, text) if chosen else text


def _unmarked(text: str) -> str:
    """ASCII and Latin letters without marks, but for letters that an alphabet has."""
    marks = "".join(c for c in set(text) if unicodedata.category(c).startswith("M"))
    return re.sub(f"[^{marks}][{marks}]++", _letter, text) if marks else text


def _letter(found: re.Match[str]) -> str:
    whole = found[0]
    base = unicodedata.normalize("NFD", whole[0])[0]
    if not _is_latin(base):
        return whole
    one = unicodedata.normalize("NFC", whole) if len(whole) <= _LONGEST_LETTER else base
    return one if len(one) == 1 else base


def _spelt(text: str) -> str:
    """With letters for the digits and signs that a whole text has in their place."""
    words = [word for word in _WITH_SIGNS.findall(text) if len(word) > _SHORT]
    shown = sum(_AMONG.search(word) is not None for word in words)
    if shown < _SPELT_WORDS or 2 * shown < len(words):
        return text

    def read(found: re.Match[str]) -> str:
        word = found[0]
        letters = any(map(str.isalpha, word))
        if not letters and len(word) > _SHORT:  # a number
            return word
        made = word.translate(_SPELT)
        return made.upper() if letters and word.isupper() else made

    return _WITH_SIGNS.sub(read, text)


def _lettered(found: re.Match[str]) -> str:
    word, table = found[0], _lookalikes()
    return "".join(_cased(table[c], word.isupper()) if c.isdigit() else c for c in word)


def _joined(found: re.Match[str]) -> str:
    separator = found[1]
    if unicodedata.category(separator).startswith("M"):  # part of a letter, as in Hindi
        return found[0]
    return _GAP.sub(lambda gap: "" if gap[0] == separator else " ", found[0])


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith("LATIN")


@cache
def _lookalikes() -> dict[str, str]:
    """The ASCII letters that 0, 1 and letters beyond the European alphabets look like."""
    # Read when first needed: a megabyte that most requests never ask for.
    from confusable_homoglyphs.confusables import confusables_data

    table = {}
    for char, alike in confusables_data.items():
        if char in ("0", "1") or (len(char) == 1 and char > _EUROPEAN and char.isalpha()):
            for each in (one["c"] for one in alike):
                if each.isascii() and each.isalpha():
                    table[char] = _cased(each, char.isupper())
    return table


def _cased(letters: str, upper: bool) -> str:
    """In capitals or not; to Unicode, l stands for I as well."""
    return letters.replace("l", "I").upper() if upper else letters.lower()
