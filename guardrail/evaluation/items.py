"""Labelled inputs of an evaluation, from JSONL files and from folders of files and texts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guardrail.errors import DatasetError
from guardrail.requests.messages import to_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.policy import Policy
    from guardrail.types import Request

__all__ = ["DEFAULT_PROMPT", "LABELS", "EvalItem", "load_items"]

DEFAULT_PROMPT = "Describe this picture."
VIDEO_PROMPT = "Describe this video."
"""What is asked about a folder's videos where the prompt is left at its default."""
LABELS: dict[str, Literal["harmful", "harmless"]] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
}


@dataclass(frozen=True, kw_only=True)
class EvalItem:
    """One labelled input; its pictures stay on disk until `request` reads them.

    `messages` is the chat in any form that a guard takes. `text` holds its words wherever they
    stand, in the chat or in a picture: what people read, what the text baseline and the length
    controls see. `images` and `videos` are the files of its pictures and videos, where they are
    files.
    """

    id: str
    label: Literal["harmful", "harmless"]
    messages: Sequence[Mapping[str, Any]]
    text: str
    category: str = ""
    source: str = ""
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no report could be written with.

        Raises:
            DatasetError: a lone surrogate in a name or in the words.
        """
        files = (*self.images, *self.videos)
        for name in (self.id, self.category, self.source, self.text, *files):
            if not name.isascii() and any("\ud800" <= sign <= "\udfff" for sign in name):
                raise DatasetError(
                    f"input {self.id!a}: {name[:80]!a} holds a lone surrogate, which is "
                    "no text; correct it, or rename the file"
                )

    @property
    def harmful(self) -> bool:
        """Whether it ought to be refused."""
        return self.label == "harmful"

    def request(self, policy: Policy) -> Request:
        """The input as the guard reads it, pictures decoded within the policy's limits.

        Files are read whatever `policy.local_files` says: the data is the evaluator's own.

        Raises:
            InputError: it cannot be read, or is larger than the policy allows.
        """
        reading = policy.model_copy(update={"local_files": True})
        return to_request(self.messages, policy=reading, tools=self.tools or None)


def load_items(paths: Sequence[str | Path], *, prompt: str = DEFAULT_PROMPT) -> list[EvalItem]:
    """The inputs of JSONL files and folders, in order, with unique ids.

    A line of a JSONL file has a `label` (harmful or unsafe; harmless, safe or benign) and `text`,
    `image` and `video` (one path or several, relative to the file), or a whole chat as `messages`
    (with `tools`, if any). `statement` holds words that stand in the picture. `id`, `category` and
    `source` (else the file's name) name the input; other labels (licence, language, note, ...) are
    allowed and not read.

    A folder holds either JSONL files (all are read), or a folder per label, in it pictures, videos
    and `.txt` files, directly or in one further level of folders, which name the category. A `.txt`
    beside a file of the same name is its prompt, else `prompt` is; alone it is a text input.

    Raises:
        DatasetError: a malformed line or folder, a missing file, a key that would be lost, or
            nothing at all; the message names the place.
    """
    from guardrail.evaluation.folders import folder_items
    from guardrail.evaluation.lines import line_items

    items: list[EvalItem] = []
    for path in map(Path, paths):
        if path.is_dir():
            items += folder_items(path, prompt=prompt)
        elif path.is_file():
            items += line_items(path)
        else:
            raise DatasetError(f"{path}: there is no such file or folder")
    if not items:
        raise DatasetError(f"there is no input in {', '.join(map(str, paths)) or 'no file'}")
    return _unique(items)


def _unique(items: Sequence[EvalItem]) -> list[EvalItem]:
    """The same inputs; an id that was there before gets a number."""
    taken: set[str] = set()
    counts: dict[str, int] = {}
    named = []
    for item in items:
        name = item.id
        while name in taken:
            counts[item.id] = counts.get(item.id, 1) + 1
            name = f"{item.id}#{counts[item.id]}"
        taken.add(name)
        named.append(item if name == item.id else replace(item, id=name))
    return named
