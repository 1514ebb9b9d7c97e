"""A folder of pictures, videos and texts: each file is a row."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from guardrail.bulk.items import Item, Loaded, plain_key
from guardrail.bulk.listing import kind_of, list_folder
from guardrail.errors import InputError, UnsupportedContentError
from guardrail.requests.lines import turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.bulk.items import Wanted
    from guardrail.bulk.listing import Listing

_MAX_TEXT = 16_000_000  # bytes; the policy bounds characters


class FilesSource:
    """The files of a folder, sorted by path. `prompt` is asked beside pictures and videos."""

    kind = "files"

    def __init__(self, listing: Listing, *, prompt: str | None) -> None:
        self.listing, self._prompt = listing, prompt
        self.rows = listing.count

    def digest(self) -> str:
        """Over the list as it was made; for a later look a new list is made."""
        return self.listing.digest

    def now(self) -> str:
        """The digest of a new look at the folder."""
        again = list_folder(self.listing.folder, self.listing.place.parent)
        again.discard()
        return again.digest

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted files, in order."""
        for number, listed in enumerate(self.listing):
            if wanted.row(number):
                yield Item(number, partial(self._load, listed.path))

    def _load(self, name: str) -> Loaded:
        key, path = plain_key(name, name), self.listing.folder / name
        try:
            match kind_of(name):
                case "image":
                    return Loaded(key, turn(self._prompt, [path]))
                case "video":
                    return Loaded(key, turn(self._prompt, [], [path]))
                case "text":
                    return Loaded(key, _text(path))
            raise UnsupportedContentError(
                f"a file that ends in {path.suffix[:20]!r} is not read; pictures, videos and .txt "
                "are"
            )
        except InputError as error:
            return Loaded(key, error)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UnsupportedContentError("no regular file, or a link to nowhere")
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise UnsupportedContentError(f"the file cannot be read: {error.strerror}") from error
    if len(data) > _MAX_TEXT:
        raise UnsupportedContentError(f"the file is larger than {_MAX_TEXT} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedContentError(f"the file is no UTF-8 text ({error.reason})") from error
